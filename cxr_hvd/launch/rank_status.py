"""The status of a rank: the record in `RUN/SITE/status-RANK.json` that its launcher and other ranks read.

A rank replaces its file about once a second while it lives, and once at its end. An old file that names no end
says that the rank was killed, frozen or cut off.
"""

from collections.abc import Iterator
from pathlib import Path

from cxr_hvd.record import Rank, Record, Step, Text, UnixTime, read_record

FINISHED, STOPPED, FAILED = "finished", "stopped on request", "failed"
SILENT_AFTER_S = 15.0
"""Age of a status from which on its rank counts as silent. It writes once a second, a busy disk takes longer."""

MAX_STATUS_BYTES = 1 << 14


class RankStatus(Record):
    """What a rank does.

    Attributes:
        site: its site.
        rank: its number among all ranks.
        num_steps: steps of the whole run.
        step: the step it is in, from 0; None before the first.
        doing: in words, such as `training`; at the end `FINISHED`, `STOPPED`, or `FAILED: one line`.
        since: when that began, in Unix seconds.
        exit_code: what the rank returns; None while it lives.
        time: when this was written, in Unix seconds.
    """

    site: Text = ""
    rank: Rank
    num_steps: Step | None
    step: Step | None
    doing: Text
    since: UnixTime
    exit_code: int | None = None
    time: UnixTime

    @property
    def has_ended(self) -> bool:
        """Whether the rank finished or stopped as it should."""
        return self.doing in (FINISHED, STOPPED)

    @property
    def has_failed(self) -> bool:
        """Whether the rank ended with an error."""
        return self.doing.startswith(f"{FAILED}: ")

    def is_silent(self, now: float) -> bool:
        """Whether the rank has not ended and has not written for too long.

        Args:
            now: Unix seconds.
        """
        return not self.has_ended and not self.has_failed and now - self.time > SILENT_AFTER_S


def status_path(site_folder: Path, rank_in_site: int) -> Path:
    """Return the path of a rank's status in the run folder of its site."""
    return site_folder / f"status-{rank_in_site}.json"


def read_status(path: Path) -> RankStatus:
    """Read the status of one rank.

    Raises:
        OSError, ValueError: it cannot be read, or is no status.
    """
    return read_record(path, RankStatus, MAX_STATUS_BYTES)


def read_statuses(run: Path) -> Iterator[RankStatus]:
    """Read the statuses of all ranks whose files are here and whole, by site and file name."""
    for path in sorted(run.glob("*/status-*.json")):
        try:
            yield read_status(path)
        except (OSError, ValueError):
            continue
