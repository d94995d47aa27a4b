"""`cxr-preprocess` that is killed, delayed or watched: `python -m tests.helpers.faulty RANK POINT N VERB ...`.

POINT is where, N the how-manieth time: `load` (an image), `merge` (a block), `complete` (tables and attributes),
`named` (the file has got its name). `slow` sleeps N milliseconds for each image; `watch` does nothing. Each rank
writes the number of images that it loaded to a file in the folder `LOADED`, where that is set.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from preprocess import cli, convert
from preprocess.parallel.merge import Merger
from preprocess.parallel.work_folder import WorkFolder

RANK = int(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))
loaded = 0


def _killed_at(number: int, work: Callable[..., Any], after: bool = False) -> Callable[..., Any]:
    calls = 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = work(*arguments, **named)
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return counted


def _waits_at(number: int, work: Callable[..., Any]) -> Callable[..., Any]:
    def load_image(*arguments: Any, **named: Any) -> Any:
        # The launcher ends this rank when the other dies; where it does not, the test's limit does.
        while loaded >= number - 1:
            time.sleep(0.1)
        return work(*arguments, **named)

    return load_image


def _counted(work: Callable[..., Any], sleep_s: float) -> Callable[..., Any]:
    def load_image(*arguments: Any, **named: Any) -> Any:
        global loaded
        loaded += 1
        time.sleep(sleep_s)
        return work(*arguments, **named)

    return load_image


def main() -> None:
    """Patch, then run the command line."""
    rank, point, number = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    sys.argv = [cli.PROGRAM, *sys.argv[4:]]
    convert.load_image = _counted(convert.load_image, number / 1000 if point == "slow" else 0.0)
    if rank == RANK:
        if point == "load":
            convert.load_image = _killed_at(number, convert.load_image)
        elif point == "merge":
            Merger._merge = _killed_at(number, Merger._merge)  # type: ignore[method-assign]
        elif point == "complete":
            Merger.complete = _killed_at(number, Merger.complete, after=True)  # type: ignore[method-assign]
        elif point == "named":
            WorkFolder.publish = _killed_at(number, WorkFolder.publish, after=True)  # type: ignore[method-assign]
    elif point == "load":
        convert.load_image = _waits_at(number, convert.load_image)
    try:
        cli.main()
    finally:
        if "LOADED" in os.environ:
            Path(os.environ["LOADED"], f"{RANK}").write_text(str(loaded))


if __name__ == "__main__":
    main()
