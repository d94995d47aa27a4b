"""When this rank asks all to stop, and write a checkpoint, after the step that they are in.

A signal (SIGUSR1, SIGTERM, SIGINT) or a launcher that is gone sets a flag; a deadline is held against what a step
and a checkpoint have taken so far. What a rank asks travels with every step's status, so that all stop after the
same one, whichever of them was asked: the next one, where statuses are read late.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cxr_hvd.comm.step_status import StopReason
from cxr_hvd.errors import leave

SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
FIRST_SAVE_S = 10.0
SAFETY_S = 2.0
WITHOUT_LAUNCHER_S = 60.0  # the others may be gone, and a wait for them without end

REASONS = {
    StopReason.TIME: "the time limit is near",
    StopReason.SIGNAL: "a signal asked for it",
    StopReason.LAUNCHER: "the launcher is gone",
}


class StopRequest:
    """Whether, and why, this rank asks all to stop.

    Args:
        deadline: when the run has to be over, by `time.monotonic()`; None: whenever it likes.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self._deadline = deadline
        self._reason = StopReason.NONE
        self._slowest_step_s = 0.0
        self._save_s = FIRST_SAVE_S
        self._validation_s = 0.0
        self._step_began = time.monotonic()

    def ask(self, reason: StopReason) -> None:
        """Ask for a stop after this step. May be called from a signal's handler or another thread."""
        self._reason = max(self._reason, reason)

    def lose_launcher(self) -> None:
        """Ask for a stop, since what started this rank has died; where that does not come about, end the rank."""
        self.ask(StopReason.LAUNCHER)
        timer = threading.Timer(WITHOUT_LAUNCHER_S, leave, [1])
        timer.daemon = True
        timer.start()

    def reason(self, steps_late: int = 0) -> StopReason:
        """Return what is to be told to the others in this step; call it once a step.

        Args:
            steps_late: how many further steps all take before they stop.
        """
        now = time.monotonic()
        step_s, self._step_began = now - self._step_began, now
        self._slowest_step_s = max(0.9 * self._slowest_step_s, step_s)
        if self._deadline is not None:
            left_s = self._deadline - now - self._validation_s
            if is_near(left_s, self._slowest_step_s, self._save_s, steps_late):
                self.ask(StopReason.TIME)
        return self._reason

    def note_save(self, seconds: float) -> None:
        """Take note of how long a checkpoint took until it was on the disk."""
        self._save_s = seconds if self._save_s == FIRST_SAVE_S else max(seconds, 0.5 * self._save_s)

    def note_validation(self, seconds: float) -> None:
        """Take note of how long a validation took: it is no part of a step, but one may follow any."""
        self._validation_s = max(seconds, 0.5 * self._validation_s)
        self._step_began = time.monotonic()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take signals as requests while the body runs; a second SIGINT ends the process as usual."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._take) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:  # not SIGTERM: launchers send it to a process and once more to its group
            signal.signal(number, signal.SIG_DFL)
        self.ask(StopReason.SIGNAL)


def is_near(left_s: float, step_s: float, save_s: float, steps_late: int = 0) -> bool:
    """Return whether another step and a checkpoint may not fit into what is left, in seconds. Pure.

    Steps and disks are not even: two steps, half a checkpoint more and some seconds are kept in hand; and the
    steps that pass until all have heard of the stop.
    """
    return left_s < (2 + steps_late) * step_s + 1.5 * save_s + SAFETY_S
