"""End a rank that hangs, or that waits too long for one that does, and say which and where.

Horovod's own stall check does not fire under Gloo, and under MPI it names tensors. Here each rank notes what it
is doing, and a thread of its own looks at the clock. A rank whose own work takes too long names itself: site,
rank, step. The ranks that wait for it give it that much time and a little more, so that its line comes first;
where it cannot speak (frozen, cut off), they name who may be meant.
"""

import faulthandler
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from cxr_hvd.errors import PeerError, TrainingError, leave, print_error

STALL_LIMIT_S = 600.0
GRACE_S = 5.0


@dataclass(frozen=True)
class Doing:
    """What a rank does.

    Attributes:
        what: in words, for example `training` or `waiting for the other ranks in status`.
        is_waiting: whether it waits for other ranks.
        step: the step it is in, from 0; None before the first.
        since: when that began, in seconds since 1970.
    """

    what: str
    is_waiting: bool
    step: int | None
    since: float


class Observer(Protocol):
    """Where a watchdog reports what its rank does. The watching thread calls it; it must not raise."""

    def tick(self, doing: Doing) -> None:
        """Take what the rank does, about once a second."""
        ...

    def fail(self, line: str) -> None:
        """Take the error's line before the rank is ended."""
        ...

    def suspects(self) -> str:
        """Return in words which ranks may be the ones that this rank waits for."""
        ...


class Watchdog:
    """Note what this rank is doing and since when; end the rank where that takes too long.

    Args:
        limit_s: the longest that a piece of own work may take, in seconds.
    """

    def __init__(self, limit_s: float) -> None:
        self._name = "this rank"
        self._observer: Observer | None = None
        self._limit_s = limit_s
        self._doing: Doing | None = None
        self._step: int | None = None
        # Monotonic, unlike what `Doing` tells others: a corrected clock must not end a job.
        self._since = time.monotonic()
        self._thread: threading.Thread | None = None

    def call_rank(self, name: str) -> None:
        """Have messages call this rank by a name, such as `site north, rank 0`."""
        self._name = name

    def report_to(self, observer: Observer) -> None:
        """Report to an observer from now on, instead of the one before."""
        self._observer = observer

    def works(self, what: str, step: int | None = None) -> None:
        """Note that this rank begins a piece of work; each piece has the whole limit to itself."""
        self._step = self._step if step is None else step
        self._note(Doing(what, False, step, time.time()))

    def rests(self) -> None:
        """Stop watching, until the next piece of work or wait."""
        self._doing = None

    @contextmanager
    def waits(self, purpose: str) -> Iterator[None]:
        """Count the time of the body as a wait for other ranks; go back afterwards to what was done before."""
        before = self._doing
        step = before.step if before else None
        self._note(Doing(f"waiting for the other ranks in {purpose}", True, step, time.time()))
        try:
            yield
        finally:
            self._doing = before and Doing(before.what, before.is_waiting, before.step, time.time())
            self._since = time.monotonic()

    def place(self) -> str:
        """Return which rank this is, and its step so far as it has taken any, for messages."""
        return self._name if self._step is None else f"{self._name} in step {self._step}"

    def _note(self, doing: Doing) -> None:
        self._since = time.monotonic()
        self._doing = doing
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def _watch(self) -> None:
        grace_s = min(GRACE_S, self._limit_s)
        is_armed = False
        while True:
            time.sleep(min(1.0, self._limit_s / 4))
            doing, spent_s = self._doing, time.monotonic() - self._since
            if doing is None:
                if is_armed:
                    faulthandler.cancel_dump_traceback_later()
                    is_armed = False
                continue
            # Horovod may block with Python's lock held while a peer is frozen, and then this thread stands still,
            # too: a thread outside of Python, wound up anew by every turn, ends the rank and says where it stood.
            faulthandler.dump_traceback_later(self._limit_s + 2 * grace_s + GRACE_S, exit=True)
            is_armed = True
            if self._observer:
                # Whatever becomes of a report, here and below: this thread goes on watching, and ends the rank.
                with suppress(Exception):
                    self._observer.tick(doing)
            if spent_s > self._limit_s + (grace_s if doing.is_waiting else 0.0) and doing is self._doing:
                self._end(doing)

    def _end(self, doing: Doing) -> None:
        where = "" if doing.step is None else f" in step {doing.step}"
        error: PeerError | TrainingError
        if doing.is_waiting:
            suspects = "one hangs or is cut off"
            if self._observer:
                with suppress(Exception):
                    suspects = self._observer.suspects()
            error = PeerError(
                f"{self._name}{where}: {doing.what} for more than {self._limit_s:.0f} s: {suspects}; "
                "look at each rank's last line, then go on with --resume auto"
            )
        else:
            error = TrainingError(
                f"{self._name} hangs{where}: {doing.what} for more than {self._limit_s:.0f} s; look at its disk "
                "and machine, then go on with --resume auto, or give it more time with --stall-limit"
            )
        print_error("cxr-hvd", error)
        if self._observer:
            with suppress(Exception):
                self._observer.fail(str(error))
        leave(error.exit_code)
