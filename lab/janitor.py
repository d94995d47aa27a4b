"""A process that cleans up after a test run, however the run ends, also by SIGKILL.

The run holds the writing end of a pipe. When the pipe closes, the janitor kills every process with the run's mark
in its environment. Then it runs the commands that were handed to it, the last one first; they remove users,
namespaces and folders. Where a fixture has cleaned up itself, these commands find nothing to do.
"""

import contextlib
import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

MARK = "CXR_TEST_RUN"
LIMIT_S = 30.0


class Janitor:
    """The test run's end of the pipe."""

    def __init__(self) -> None:
        mark = os.environ[MARK] = secrets.token_hex(8)
        unmarked = {name: value for name, value in os.environ.items() if name != MARK}
        self._process = subprocess.Popen(
            [sys.executable, "-S", str(Path(__file__)), mark],
            env=unmarked,
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run_at_end(self, *command: str | Path) -> None:
        """Hand over a command to run when the test run has ended and its processes are gone."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([str(word) for word in command]) + "\n")
        self._process.stdin.flush()

    def finish(self) -> None:
        """Let the janitor clean up now, and wait for it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(LIMIT_S)


_janitor: Janitor | None = None


def start() -> Janitor:
    """Return this process's janitor; start it at the first call."""
    global _janitor
    if _janitor is None:
        _janitor = Janitor()
    return _janitor


def finish() -> None:
    """End this process's janitor, where there is one."""
    global _janitor
    if _janitor is not None:
        _janitor.finish()
        _janitor = None


def run_at_end(*command: str | Path) -> None:
    """Hand a command to this process's janitor."""
    start().run_at_end(*command)


def end_processes_of_namespace(name: str) -> str:
    """Return the shell's line that kills all that runs in a network namespace."""
    return f"ip netns pids {shlex.quote(name)} | xargs -r kill -9"


def marked_processes(mark: str) -> list[int]:
    """Return the processes that were started with the mark in their environment and have not ended."""
    wanted = f"{MARK}={mark}".encode()
    pids = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (path / "environ").read_bytes().split(b"\0"):
                pids.append(int(path.name))
    return pids


def _clean_up(mark: str, commands: list[list[str]]) -> None:
    deadline = time.monotonic() + LIMIT_S / 2
    while (pids := marked_processes(mark)) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    for command in reversed(commands):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(command, capture_output=True, timeout=LIMIT_S / 2, check=False)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _clean_up(sys.argv[1], [json.loads(line) for line in sys.stdin])
