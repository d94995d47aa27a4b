"""How far an experiment is: one bar with the time left on a terminal, one line for each run elsewhere."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from cxr_hvd.console import Console
from cxr_hvd.launch.rank_status import read_statuses

LOOK_EVERY_S = 1.0
TRAINING_SHARE = 0.9
"""Of a run's time; the rest is scoring."""


class ExperimentProgress:
    """The progress of several runs, one after the other.

    Args:
        num_runs: how many there are.
        num_steps: of each.
    """

    def __init__(self, num_runs: int, num_steps: int, console: Console) -> None:
        self._num_runs, self._num_ended = num_runs, 0
        self._num_steps = num_steps
        self._console = console
        self._started = self._began = time.monotonic()
        self._name = ""
        self._run: Path | None = None
        words = TextColumn("{task.fields[words]}", markup=False)
        self._bar = Progress(TextColumn("experiment"), BarColumn(), TaskProgressColumn(), words, console=console)
        self._task = self._bar.add_task("experiment", total=num_runs, words="")

    def start(self) -> None:
        if self._console.is_terminal:
            self._bar.start()

    def stop(self) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def begin(self, name: str, run: Path) -> None:
        """Take note of the run that is worked on from now on."""
        self._name, self._run, self._began = name, run, time.monotonic()

    def end(self, how: str) -> None:
        """Say how that run ended."""
        self._run = None
        self._num_ended += 1
        seconds = time.monotonic() - self._began
        self._console.print(
            f"{self._num_ended}/{self._num_runs}  {self._name}: {how} in {seconds:.0f} s  {self._left()}",
            highlight=False,
            soft_wrap=True,
        )

    def look(self) -> None:
        """Move the bar to where the run stands."""
        if self._run and self._console.is_terminal:
            done = self._num_ended + TRAINING_SHARE * min(1.0, step_of(self._run) / self._num_steps)
            self._bar.update(self._task, completed=done, words=f"{self._name}  {self._left(done)}")

    def _left(self, done: float | None = None) -> str:
        done = self._num_ended if done is None else done
        if not done or self._num_ended == self._num_runs:
            return ""
        left_s = (time.monotonic() - self._started) / done * (self._num_runs - done)
        return f"about {left_s / 60:.0f} min left"


@contextmanager
def progress_shown(num_runs: int, num_steps: int, console: Console) -> Iterator[ExperimentProgress]:
    """Show the progress while the body runs."""
    progress = ExperimentProgress(num_runs, num_steps, console)
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK_EVERY_S):
            progress.look()

    thread = threading.Thread(target=look, daemon=True)
    progress.start()
    thread.start()
    try:
        yield progress
    finally:
        over.set()
        thread.join()
        progress.stop()


def step_of(run: Path) -> int:
    """Return how many steps a run has done, as far as its ranks' status files tell."""
    return next((status.step or 0 for status in read_statuses(run)), 0)
