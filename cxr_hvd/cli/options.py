"""Options that several commands have, and how they are read. Imports no torch."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cxr_hvd.errors import Stopped, UsageError

PROGRAM = "cxr-hvd"
STARTED = time.monotonic()  # what a time limit counts from

ConfigPath = Annotated[Path, typer.Argument(help="The YAML config, the same at all sites.", metavar="CONFIG")]
RunPath = Annotated[Path, typer.Argument(help="A run folder, as `train` makes.", metavar="RUN")]
RunPaths = Annotated[list[Path], typer.Argument(help="A run folder, as `train` makes.", metavar="RUN...")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a value of the config: section.key=value. May be repeated."),
]
SiteOption = Annotated[str | None, typer.Option("--site", help="One site of the config, alone on one rank.")]
TimeLimit = Annotated[
    str | None,
    typer.Option(
        "--time-limit",
        help="Stop with a checkpoint before this time is over: 3600, 90m, 12:00:00, 1-00:00:00.",
    ),
]
Outside = Annotated[
    list[str] | None,
    typer.Option("--outside", help="NAME=FILE: studies of an institution that took no part. May be repeated."),
]


class WhichCheckpoint(StrEnum):
    """Words for --checkpoint."""

    AUTO = "auto"
    BEST = "best"
    LATEST = "latest"


CheckpointOption = Annotated[
    WhichCheckpoint,
    typer.Option("--checkpoint", help="auto: the best by validation, or the latest without any."),
]
StudyPaths = Annotated[
    list[Path],
    typer.Argument(help="Study files, folders of JPEG, PNG or DICOM, and single images.", metavar="PATHS"),
]
TableOption = Annotated[
    Path | None,
    typer.Option("--table", help="CSV that says which images of a folder are a study: path, study."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier PNG.")]


def read_deadline(time_limit: str | None) -> float | None:
    """Return when `--time-limit` is over, by `time.monotonic()`; None where none is given.

    Raises:
        UsageError: it is no length of time.
    """
    from cxr_hvd.launch.launchers import parse_duration

    return STARTED + parse_duration(time_limit) if time_limit else None


def read_named_files(options: list[str] | None) -> dict[str, Path]:
    """Read `--outside NAME=FILE` options.

    Raises:
        UsageError: one has another form.
    """
    files = {}
    for option in options or []:
        name, _, path = option.partition("=")
        if not name or not path:
            raise UsageError(f"--outside {option}: expected NAME=FILE")
        files[name] = Path(path)
    return files


@contextmanager
def stopped_on_request() -> Iterator[None]:
    """Clean up where SIGTERM asks this process to stop."""

    def stop(number: int, frame: object) -> None:
        raise Stopped(f"stopped by {signal.Signals(number).name}; nothing is written: run the same again")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
