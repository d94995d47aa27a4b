"""Show progress: a bar on a terminal, a line every tenth in a log, nothing on other ranks."""

import sys
import time
from typing import Any, Protocol

_QUIET_S = 2.0


class Progress(Protocol):
    """Shows each phase and the images done in it."""

    def start(self, phase: str, num_images: int) -> None:
        """Begin a phase of `num_images`, of all ranks together."""

    def advance(self, num_images: int) -> None:
        """Count images as done."""

    def stop(self) -> None:
        """End the last phase."""


class Silence:
    """Shows nothing: for ranks that do not lead, and for callers that want only the result."""

    def start(self, phase: str, num_images: int) -> None:
        pass

    def advance(self, num_images: int) -> None:
        pass

    def stop(self) -> None:
        pass


class ProgressLines:
    """Plain lines on standard error, at most ten a phase, none in the first seconds."""

    def start(self, phase: str, num_images: int) -> None:
        self._phase, self._total, self._done, self._tenth = phase, num_images, 0, 0
        self._started = self._printed_at = time.monotonic()

    def advance(self, num_images: int) -> None:
        self._done += num_images
        now, tenth = time.monotonic(), 10 * self._done // max(1, self._total)
        if tenth > self._tenth and now - self._printed_at > _QUIET_S:
            self._tenth, self._printed_at = tenth, now
            rate = self._done / (now - self._started)
            print(
                f"{self._phase}: {self._done:,} of {self._total:,} images, {rate:,.0f}/s",
                file=sys.stderr,
                flush=True,
            )

    def stop(self) -> None:
        pass


class Bar:
    """A bar on the terminal, on standard error."""

    def __init__(self) -> None:
        self._bar: Any = None

    def start(self, phase: str, num_images: int) -> None:
        from rich import progress

        from cxr_hvd.console import Console

        self.stop()
        columns = (*progress.Progress.get_default_columns(), progress.MofNCompleteColumn())
        self._bar = progress.Progress(*columns, console=Console(stderr=True))
        self._bar.start()
        self._task = self._bar.add_task(phase, total=num_images)

    def advance(self, num_images: int) -> None:
        self._bar.advance(self._task, num_images)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def build_progress(is_leader: bool) -> Progress:
    """Return a bar where standard error is a terminal, lines where it is not, silence on other ranks."""
    if not is_leader:
        return Silence()
    return Bar() if sys.stderr.isatty() else ProgressLines()
