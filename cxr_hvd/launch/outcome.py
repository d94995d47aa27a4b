"""How a run ended, from what its launcher returned and from what its ranks wrote down; and how far it had come.

`horovodrun --gloo` returns 1 whatever its ranks returned, so each rank's last word, `RUN/SITE/status-RANK.json`,
is read as well. Sites whose files lie on other machines are not seen: then the launcher's code alone counts.
"""

import json
import re
import signal
from dataclasses import dataclass
from pathlib import Path

from cxr_hvd.files import read_plain

DONE, USAGE, STOPPED = 0, 2, 75
STOPPED_WORDS = "stopped on request"
MAX_STATUS_BYTES = 4096
STEP = re.compile(r"step-([0-9]{1,18})")
# What a rank ends with that had not yet begun to listen for requests to stop.
UNHEARD = (128 + signal.SIGUSR1, 128 + signal.SIGTERM)


@dataclass(frozen=True)
class LastWord:
    """How a rank said that it ended.

    Attributes:
        doing: in words; `STOPPED_WORDS` where it was asked to stop and has written a checkpoint.
        exit_code: what it then returned.
    """

    doing: str
    exit_code: int


def read_last_words(run: Path, since: float) -> list[LastWord]:
    """Return the last words of all ranks that have ended after a time, as far as their files are here and whole.

    Args:
        run: the run folder.
        since: Unix time, in seconds.
    """
    found = (_read_last_word(path, since) for path in sorted(run.glob("*/status-*.json")))
    return [word for word in found if word is not None]


def _read_last_word(path: Path, since: float) -> LastWord | None:
    try:
        told = json.loads(read_plain(path, MAX_STATUS_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    match told:
        case {"doing": str(doing), "exit_code": int(code), "time": int(when) | float(when)} if when >= since:
            return None if isinstance(code, bool) else LastWord(doing, code)
    return None


def judge(code: int, last_words: list[LastWord], was_asked: bool) -> int:
    """Return what a run ended with: 0 done, 2 wrong usage or config, 75 stopped on request, else a failure. Pure.

    Args:
        code: what the launcher returned, or 128 and the number of the signal that ended it.
        last_words: of this start alone.
        was_asked: whether it was asked to stop, and not made to.
    """
    if code in (DONE, USAGE, STOPPED):
        return code
    if any(word.exit_code == USAGE for word in last_words):
        return USAGE
    if last_words and all(word.doing == STOPPED_WORDS for word in last_words):
        return STOPPED
    # Asked before it had begun: nothing is lost.
    return STOPPED if was_asked and code in UNHEARD else code


def newest_step(run: Path) -> int | None:
    """Return the step of the newest checkpoint of any site that is here, or None where there is none."""
    names = (STEP.fullmatch(path.name) for path in run.glob("*/checkpoints/step-*"))
    return max((int(found[1]) for found in names if found), default=None)
