"""The processes of this machine, read from /proc: who started whom, who is left, and how to end them.

Owns reading and ending. Which processes matter is for `orphan` and `supervise` to say.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
POLL_S = 0.1
KILL_LIMIT_S = 5.0


@dataclass(frozen=True)
class Process:
    """A process that runs.

    Attributes:
        pid: its id, which the system gives to another one once it has ended.
        parent: the id of the process that started it, or that took it over.
        session: the id of the process that leads its session.
        started: ticks from the machine's start to its own; with the id, no other has the same.
        name: its program, at most 15 characters, as the system keeps it.
    """

    pid: int
    parent: int
    session: int
    started: int
    name: str

    @property
    def identity(self) -> str:
        """What tells it from every other process of this machine, past ones too."""
        return f"{self.pid}.{self.started}"


def read_process(pid: int) -> Process | None:
    """Return a process, or None where it has ended, is waited for only, or is hidden from this user."""
    try:
        before, _, after = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")
    except OSError:
        return None
    fields = after.split()
    if fields[0] in ("Z", "X"):
        return None
    return Process(pid, int(fields[1]), int(fields[3]), int(fields[19]), before.partition("(")[2])


def is_running(process: Process) -> bool:
    """Return whether this very process runs, not another with its id."""
    current = read_process(process.pid)
    return current is not None and current.started == process.started


def ancestors() -> list[Process]:
    """Return the parent of this process, its parent, and so on, as far as they can be seen."""
    chain: list[Process] = []
    pid = os.getppid()
    while pid > 0 and (process := read_process(pid)):
        chain.append(process)
        pid = process.parent
    return chain


def arguments_of(pid: int) -> list[str]:
    """Return the words that a process was started with; none where it has ended."""
    return _words(pid, "cmdline")


def descendants(session: int, mark: str) -> list[Process]:
    """Return the processes of a session, and all others of this user that were started with `mark`.

    A launcher may give its ranks sessions of their own (horovodrun --gloo does); what they are started with they
    hand on. Only one that has both cleared its environment and left the session is not found.

    Args:
        session: the id of the process that leads the session.
        mark: a variable of the environment, as `NAME=VALUE`.
    """
    return [process for process in _all() if process.session == session or mark in _words(process.pid, "environ")]


def processes_named(name: str, mark: str) -> list[Process]:
    """Return the processes of this user that go by a name and were started with `mark` in their environment."""
    return [process for process in _all() if process.name == name and mark in _words(process.pid, "environ")]


def wait_for_end(find: Callable[[], list[Process]], limit_s: float) -> list[Process]:
    """Wait until `find` gives no process any more; return what it still gives after `limit_s` seconds.

    Blocking: at most `limit_s`.
    """
    deadline = time.monotonic() + limit_s
    while (left := find()) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return left


def end(find: Callable[[], list[Process]], grace_s: float) -> None:
    """Ask all processes that `find` gives to end; after `grace_s` seconds, if any, make them.

    Blocking: at most `grace_s` and five seconds, for one that waits for a dead disk cannot be made to end.
    """
    if grace_s:
        for process in find():
            send(process, signal.SIGTERM)
        wait_for_end(find, grace_s)
    deadline = time.monotonic() + KILL_LIMIT_S
    # More than once: a process may have started another one in between.
    while (left := find()) and time.monotonic() < deadline:
        for process in left:
            send(process, signal.SIGKILL)
        time.sleep(POLL_S)


def send(process: Process, number: signal.Signals) -> None:
    """Send a signal to a process, unless it has ended."""
    if is_running(process):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, number)


def _all() -> Iterator[Process]:
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (process := read_process(int(entry.name))):
            yield process


def _words(pid: int, name: str) -> list[str]:
    """Return what a file of /proc holds that parts its words by zero bytes."""
    try:
        content = (PROC / str(pid) / name).read_bytes()
    except OSError:
        return []
    return content.decode(errors="replace").split("\0")[:-1]
