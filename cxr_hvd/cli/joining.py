"""What is checked before a rank joins the job that a launcher started.

What is wrong with a job is told before it is joined wherever all ranks must come to the same verdict, for joining
takes seconds.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from cxr_hvd.errors import CxrHvdError, leave, print_error
from cxr_hvd.launch.early import NO_HOROVOD, may_start_ranks, wait_for_refusals

if TYPE_CHECKING:
    from cxr_hvd.config.schema import Config


@contextmanager
def refused_alike(program: str) -> Iterator[None]:
    """Have all ranks of this machine say what is wrong before the first one leaves: a launcher then ends the rest.

    Of use where every rank comes to the same verdict by itself. Not collective: nothing is joined yet.
    """
    try:
        yield
    except CxrHvdError as error:
        print_error(program, error)
        wait_for_refusals(os.environ)
        leave(error.exit_code)


def check_start(config: "Config", num_ranks: int) -> None:
    """Check that a config fits the ranks that a launcher started.

    Raises:
        CxrHvdError: it does not, or several ranks have no Horovod.
    """
    from cxr_hvd.launch.site_hosts import check_num_ranks

    check_num_ranks({name: site.ranks for name, site in config.sites.items()}, num_ranks)
    if num_ranks > 1:
        check_horovod()


def check_run(config: "Config", run: Path, resume: str, overwrite: bool) -> None:
    """Check that the sites' run folders, all on this machine, are fit for a new run, or to go on in.

    Raises:
        CxrHvdError: a site's is not.
    """
    from cxr_hvd.training.run_folder import RunFolder

    for folder in (RunFolder(run, site) for site in config.sites):
        if resume == "latest":
            folder.check_resumable()
        elif resume == "never" and not overwrite:
            folder.check_new()


def check_horovod() -> None:
    """Check that Horovod is installed; whether it works, its import tells.

    Raises:
        CxrHvdError: it is not.
    """
    if find_spec("horovod") is None:
        raise CxrHvdError(NO_HOROVOD)


def starts_ranks(config: "Config") -> bool:
    """Return whether this process, which no launcher started, is to start the config's ranks on this machine."""
    return sum(site.ranks for site in config.sites.values()) > 1 and may_start_ranks(os.environ)


def run_own_ranks(config: "Config", run: Path) -> int:
    """Run this very command on as many ranks as the config wants, on this machine; return its exit code. Blocking.

    Raises:
        CxrHvdError: Horovod or a launcher is missing.
    """
    from cxr_hvd.launch.supervise import run_ranks

    check_horovod()
    command = [str(Path(sys.argv[0]).absolute()), *sys.argv[1:]]
    return run_ranks(command, run, sum(site.ranks for site in config.sites.values()))
