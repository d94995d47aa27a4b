"""How tests call the two programs: as a process, or quickly in this one."""

import os
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from unittest.mock import patch

import typer

from cxr_hvd.cli import app as training_cli
from cxr_hvd.errors import CxrHvdError
from lab.launch import Finished
from preprocess import cli as preprocess_cli


def preprocess_command(*arguments: object) -> list[str]:
    """Return the command line of `cxr-preprocess` for these arguments."""
    return [sys.executable, "-m", "preprocess.cli", *map(str, arguments)]


def preprocess_here(*arguments: object) -> Finished:
    """Run a `cxr-preprocess` command in this process; standard error comes after standard output."""
    return _run_here(preprocess_cli.app, preprocess_cli.PROGRAM, arguments)


def cxr_here(*arguments: object) -> Finished:
    """Run a `cxr-hvd` command that joins no job in this process."""
    return _run_here(training_cli.app, training_cli.PROGRAM, arguments)


def _run_here(app: typer.Typer, program: str, arguments: tuple[object, ...]) -> Finished:
    output, errors, started, exit_code = StringIO(), StringIO(), time.monotonic(), 0
    with patch.dict(os.environ, COLUMNS="200"), redirect_stdout(output), redirect_stderr(errors):
        try:
            app([str(argument) for argument in arguments])
        except SystemExit as ended:
            exit_code = int(ended.code or 0)
        except CxrHvdError as error:
            print(f"{program}: error: {error}", file=sys.stderr)
            exit_code = error.exit_code
    return Finished(exit_code, output.getvalue() + errors.getvalue(), time.monotonic() - started)
