"""The record of an experiment, `OUT/experiment.json`: what was asked, and the commands that do it."""

from collections.abc import Sequence
from pathlib import Path

from cxr_hvd.record import Record, read_record

NAME = "experiment.json"
MAX_BYTES = 1 << 24


class RunRecord(Record):
    """One run of an experiment, and the commands of each of its ranks."""

    variant: str
    seed: int
    config_sha256: str
    train: str
    score: str


class ExperimentRecord(Record):
    """An experiment.

    Attributes:
        command: the words that started it.
        num_steps: of each run.
        data_sha256: digest of each institution's study file.
        variants: names of the set-ups.
    """

    tool: str
    command: str
    num_steps: int
    data_sha256: dict[str, str]
    variants: tuple[str, ...]
    runs: tuple[RunRecord, ...]


def read_experiment(path: Path) -> ExperimentRecord | None:
    """Read `experiment.json`; None where there is none, or a file that no experiment made."""
    try:
        record = read_record(path, ExperimentRecord, MAX_BYTES)
    except (OSError, ValueError):
        return None
    return record if record.tool.startswith("cxr-hvd ") else None


def read_command(folders: Sequence[Path]) -> str | None:
    """Return the command of the first experiment among these folders; None where there is none."""
    records = (read_experiment(folder / NAME) for folder in folders)
    return next((record.command for record in records if record), None)
