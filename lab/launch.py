"""Start commands and real ranks for tests and benches, and wait for their end with a time limit."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
GRACE_S = 12.0
LAUNCHERS = {
    "mpirun": ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "--tag-output"],
    "gloo": [str(BIN / "horovodrun"), "--gloo"],
    "horovodrun": [str(BIN / "horovodrun")],
}


@dataclass(frozen=True)
class Finished:
    """A job that ended by itself."""

    exit_code: int
    output: str
    seconds: float

    def lines(self, containing: str) -> list[str]:
        """Return the lines of output that hold a text."""
        return [line for line in self.output.splitlines() if containing in line]


class Hung(AssertionError):
    """A job that did not end within its limit."""


def environment(**more: str) -> dict[str, str]:
    """Return the environment for ranks: this project, one thread each."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    variables = {"PATH": path, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return {**os.environ, **variables, **more}


def launch(
    num_ranks: int,
    command: list[str],
    launcher: str = "mpirun",
    limit_s: float = 120,
    folder: Path = PROJECT,
    **more: str,
) -> Finished:
    """Run a command on `num_ranks` ranks in a folder and wait for its end, at most `limit_s` seconds."""
    prefix = [*LAUNCHERS[launcher], "-np", str(num_ranks)]
    if launcher != "mpirun":
        prefix += ["-H", f"localhost:{num_ranks}"]  # more ranks than cores
    return run([*prefix, *command], limit_s, folder, **more)


def run(command: list[str], limit_s: float = 120, folder: Path = PROJECT, **more: str) -> Finished:
    """Run a command and wait for its end; where that does not come in time, end it and raise `Hung`."""
    started = time.monotonic()
    with subprocess.Popen(
        command,
        env=environment(**more),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            output = _end(process)
            raise Hung(f"no end after {limit_s} s: {' '.join(command)}\n{output[-3000:]}") from None
    return Finished(process.returncode, output, time.monotonic() - started)


def _end(process: "subprocess.Popen[str]") -> str:
    """Ask the launcher to end its ranks, then end what is left of its session."""
    process.terminate()
    try:
        output, _ = process.communicate(timeout=GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
    return output


def has_ended(pid: str) -> bool:
    """Return whether a process has ended, or ends within five seconds; a zombie has ended."""
    state = Path("/proc", pid, "stat")
    for _ in range(50):
        try:
            if state.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.1)
    return False


def need_horovod() -> None:
    """Skip the module, with the reason, where Horovod is not built."""
    pytest.importorskip("horovod.torch", reason="Horovod is not built here: make setup")
