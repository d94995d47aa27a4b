"""How a run ended: judged by what its launcher returned and by what its ranks wrote in their statuses.

`horovodrun --gloo` returns 1 whatever its ranks returned, so the status of each rank is read as well. Statuses of
sites whose files lie on other machines are not seen: then the launcher's code alone counts.
"""

import re
import signal
from collections.abc import Sequence
from pathlib import Path

from cxr_hvd.launch.rank_status import STOPPED as STOPPED_WORDS
from cxr_hvd.launch.rank_status import RankStatus, read_statuses

DONE, USAGE, STOPPED = 0, 2, 75
STEP = re.compile(r"step-([0-9]{1,18})")
# A rank ends with these where a signal comes before it listens for requests to stop.
BEFORE_LISTENING = (128 + signal.SIGUSR1, 128 + signal.SIGTERM)


def read_last_statuses(run: Path, since: float) -> list[RankStatus]:
    """Return the statuses of all ranks that have ended after a time, as far as their files are here and whole.

    Args:
        run: the run folder.
        since: Unix time, in seconds.
    """
    return [status for status in read_statuses(run) if status.exit_code is not None and status.time >= since]


def judge(code: int, statuses: Sequence[RankStatus], was_asked: bool) -> int:
    """Return what a run ended with: 0 done, 2 wrong usage or config, 75 stopped on request, else a failure. Pure.

    Args:
        code: what the launcher returned, or 128 and the number of the signal that ended it.
        statuses: the last ones of the ranks of this start alone.
        was_asked: whether it was asked to stop, and ended by itself.
    """
    if code in (DONE, USAGE, STOPPED):
        return code
    if any(status.exit_code == USAGE for status in statuses):
        return USAGE
    if statuses and all(status.doing == STOPPED_WORDS for status in statuses):
        return STOPPED
    # Asked before it had begun: nothing is lost.
    return STOPPED if was_asked and code in BEFORE_LISTENING else code


def newest_step(run: Path) -> int | None:
    """Return the step of the newest checkpoint of any site that is here, or None where there is none."""
    names = (STEP.fullmatch(path.name) for path in run.glob("*/checkpoints/step-*"))
    return max((int(match[1]) for match in names if match), default=None)
