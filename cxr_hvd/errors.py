"""What went wrong, in one line that a user can act on.

Every mistake that a user, a file or another site can make is raised as a `CxrHvdError`. Its message is one
line: what was expected, what was found, where, and what to do. It never holds a patient's identifier: name a
row, an index or a file that the site itself chose to name. The command lines print the message and leave with
`exit_code`; a traceback that reaches a user is a defect of this program. So it is where standard output is full,
is closed, or knows only ASCII.
"""

import io
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from typing import Any, NoReturn, Self

from cxr_hvd.terminal import shown

EXIT_CODES = (
    "Exit codes: 0 done · 1 failed, one line says what, where and what to do · 2 wrong usage or config, nothing "
    "was started · 75 stopped on request, run the same again to go on"
)
MAX_MESSAGE = 4000


class CxrHvdError(Exception):
    """Base of all errors with a one-line message for the user.

    Attributes:
        exit_code: 1 where the work failed, 2 where the command or the config was wrong, 75 where it may go on.
        is_agreed: whether all ranks know of it and raise, too, so that they may leave together.
    """

    exit_code = 1
    is_agreed = False

    def __init__(self, message: str) -> None:
        super().__init__(shown(message, MAX_MESSAGE))

    def agreed(self, exit_code: int | None = None) -> Self:
        """Return this error, marked as one that all ranks raise; `exit_code` replaces its own."""
        self.is_agreed = True
        self.exit_code = self.exit_code if exit_code is None else exit_code
        return self


class UsageError(CxrHvdError):
    """The command line asks for something that cannot be."""

    exit_code = 2


class ConfigError(CxrHvdError):
    """The config holds an unknown key, a wrong type or an impossible value."""

    exit_code = 2


class DataError(CxrHvdError):
    """A table or an image of the source is not what its layout promises."""


class StudyFileError(CxrHvdError):
    """A study file is missing, unfinished, damaged or of another schema."""


class ContractError(CxrHvdError):
    """The sites do not agree on what they are about to do together."""


class PeerError(CxrHvdError):
    """Another rank failed; this one stops with it."""


class CheckpointError(CxrHvdError):
    """A run folder or a checkpoint cannot be read or written."""


class WeightsError(CxrHvdError):
    """A file of weights cannot be read, or is of another network."""


class TrainingError(CxrHvdError):
    """Training cannot go on, for example because a loss is not finite."""


class Stopped(CxrHvdError):
    """All ranks stopped on request, with a checkpoint written. Not a failure: run again to go on."""

    exit_code = 75
    is_agreed = True


def nearest(name: str, valid: list[str]) -> str:
    """Return `; did you mean 'x'?` for the closest valid name, or an empty string."""
    close = get_close_matches(name, valid, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def say_exit_codes(commands: Iterable[Any]) -> None:
    """Say all exit codes at the end of the help of Typer's commands."""
    for command in commands:
        command.epilog = f"{command.epilog}\n\n{EXIT_CODES}"


def leave(code: int) -> NoReturn:
    """End this process now, with its output written and no clean-up.

    For a rank of a parallel job: an orderly exit would wait in MPI's or Horovod's shutdown for ranks that may
    be waiting for this one, whereas a plain non-zero exit makes the launcher end the whole job.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # full, closed, or none at all
            stream.flush()
    os._exit(code)


def print_error(program: str, error: CxrHvdError) -> None:
    """Print one line on standard error, in one piece: two ranks' lines must not run into each other."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"{program}: error: {error}\n")
        sys.stderr.flush()


def print_stopped(program: str, stopped: Stopped, remark: str = "") -> None:
    """Print on standard output that all stopped on request; where that is gone, the exit code has to say it."""
    with suppress(OSError):
        print(f"{program}: {stopped}{remark}", flush=True)


@contextmanager
def reported(program: str) -> Iterator[None]:
    """Turn a `CxrHvdError` into one line on standard error and its exit code; to be stopped is no error.

    So is an error of a disk or of standard output. A reader that has seen enough (`| head`) is told nothing.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an ASCII terminal shows ? for what it does not know
    try:
        try:
            yield
        except SystemExit:
            _flush()
            raise
        _flush()
    except Stopped as stopped:
        print_stopped(program, stopped)
        leave(stopped.exit_code)
    except CxrHvdError as error:
        print_error(program, error)
        leave(error.exit_code)
    except BrokenPipeError:
        leave(1)
    except OSError as error:
        where = error.filename or "standard output"
        print_error(program, CxrHvdError(f"{where}: cannot read or write it ({error.strerror or error})"))
        leave(1)


def _flush() -> None:
    """Write what is still to be printed, while an error of that can be said."""
    if sys.stdout is not None:
        sys.stdout.flush()
