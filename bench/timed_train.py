"""`cxr-hvd` whose leader writes down how long each checkpoint held training up: `python -m bench.timed_train ...`.

Held up is a rank while it copies its tensors, and while a written checkpoint gets its name. What the thread that
writes takes of the cores is in the steps' own times.
"""

import atexit
import json
import os
import time
from pathlib import Path
from typing import Any

from cxr_hvd.cli import app as cli
from cxr_hvd.training.between_steps import BetweenSteps
from cxr_hvd.training.checkpoint.writer import CheckpointWriter


def main() -> None:
    """Time what a checkpoint does in the loop, then run the command line."""
    stalls: list[float] = []
    save, finish = BetweenSteps._save, CheckpointWriter.finish

    def timed_save(self: Any, done: int) -> None:
        started = time.perf_counter()
        save(self, done)
        stalls.append(time.perf_counter() - started)

    def timed_finish(self: Any) -> None:
        is_under_way = self._step is not None
        started = time.perf_counter()
        finish(self)
        if is_under_way and stalls:
            stalls[-1] += time.perf_counter() - started

    BetweenSteps._save = timed_save  # type: ignore[method-assign]
    CheckpointWriter.finish = timed_finish  # type: ignore[method-assign]
    if os.environ.get("OMPI_COMM_WORLD_RANK") == "0":
        # The last one is waited for, as there is nothing left to do meanwhile.
        atexit.register(lambda: Path(os.environ["STALLS"]).write_text(json.dumps(stalls[:-1])))
    cli.main()


if __name__ == "__main__":
    main()
