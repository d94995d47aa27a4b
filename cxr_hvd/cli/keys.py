"""The verbs of `cxr-hvd key`: make the secret that all sites of a job share."""

from pathlib import Path
from typing import Annotated

import typer

from cxr_hvd.terminal import say

key_app = typer.Typer(help="The secret file that all ranks prove to hold, with train --key.", no_args_is_help=True)


@key_app.command(epilog="Example: cxr-hvd key new job.key")
def new(file: Annotated[Path, typer.Argument(metavar="FILE", help="Where it goes; never overwritten.")]) -> None:
    """Make a key of 32 random bytes, readable by you alone. Hand the same file to every site in a safe way."""
    from cxr_hvd.secret import create_key

    create_key(file)
    say(f"{file}: a new key of 32 random bytes, mode 0600; give every site the same file, not by mail")


@key_app.callback()
def key() -> None:
    """Keep `new` a word of its own: Typer would drop the only command's name."""
