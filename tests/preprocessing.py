"""How tests call `cxr-preprocess`: as a process, or quickly in this one."""

import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

from cxr_hvd.errors import CxrHvdError
from preprocess.cli import PROGRAM, app
from tests.launch import Finished


def preprocess_command(*arguments: object) -> list[str]:
    """Return the command line for these arguments."""
    return [sys.executable, "-m", "preprocess.cli", *map(str, arguments)]


def preprocess_here(*arguments: object) -> Finished:
    """Run a command line in this process; standard error comes after standard output."""
    output, errors, started, exit_code = StringIO(), StringIO(), time.monotonic(), 0
    with redirect_stdout(output), redirect_stderr(errors):
        try:
            app([str(argument) for argument in arguments])
        except SystemExit as ended:
            exit_code = int(ended.code or 0)
        except CxrHvdError as error:
            print(f"{PROGRAM}: error: {error}", file=sys.stderr)
            exit_code = error.exit_code
    return Finished(exit_code, output.getvalue() + errors.getvalue(), time.monotonic() - started)
