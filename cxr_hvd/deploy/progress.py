"""How far a network's answers are: a bar on a terminal, nothing elsewhere."""

from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cxr_hvd.console import Console


class AnswerProgress:
    """Two bars, one after the other: images that are read, and batches that are answered. Used as a context.

    Args:
        console: where to show them; None shows nothing.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._bar: Progress | None = None
        if console is not None and console.is_terminal:
            words = TextColumn("{task.description}", markup=False)
            columns = (words, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task("reading", total=None)

    def read(self, num_done: int, num_images: int) -> None:
        """Take note of how many images are read."""
        if self._bar is not None:
            self._bar.update(self._task, description="reading images", completed=num_done, total=num_images)

    def begin_answers(self, num_batches: int) -> None:
        """Begin to count batches."""
        if self._bar is not None:
            self._bar.remove_task(self._task)
            self._task = self._bar.add_task("answering, batches", total=num_batches)

    def advance(self) -> None:
        """Count a batch."""
        if self._bar is not None:
            self._bar.advance(self._task)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
