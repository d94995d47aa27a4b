"""A launcher dies, and its ranks learn of it; nobody else's end is taken for that."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cxr_hvd.launch.launchers import RANK_VARIABLES
from lab.launch import BIN, LAUNCHERS, environment, need_horovod

LIMIT_S = 15.0
NUM_RANKS = 2
MPI = [str(BIN / "horovodrun"), "--mpi"]

# A rank that writes down who it watches, and ends when its launcher is lost, or of SIGTERM if it is not deaf.
RANK = """
import os, signal, sys, time
from pathlib import Path
from cxr_hvd.launch.orphan import LauncherWatch

if sys.argv[3] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
folder = Path(sys.argv[1])

def lost():
    (folder / f"lost.{os.getpid()}").write_text(watch.lost)
    os._exit(75)

watch = LauncherWatch(lost, poll_s=0.2)
beside = folder / f".{os.getpid()}"
beside.write_text(" ".join(process.name for process in watch.watched))
beside.replace(folder / f"watched.{os.getpid()}")
time.sleep(float(sys.argv[2]))
(folder / f"done.{os.getpid()}").touch()
"""
# Starts a run, as the command does.
SUPERVISOR = """
import sys
from pathlib import Path
from cxr_hvd.launch.supervise import supervise
sys.exit(supervise(sys.argv[2:], Path(sys.argv[1]), 2, 0))
"""


@pytest.fixture(scope="module", autouse=True)
def horovod() -> None:
    need_horovod()


def ranks(folder: Path, seconds: float = 60.0, hearing: str = "deaf") -> list[str]:
    return [sys.executable, "-c", RANK, str(folder), str(seconds), hearing]


@contextmanager
def started(folder: Path, command: list[str], num_ranks: int = NUM_RANKS) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a command, wait until its ranks watch, and in the end leave nothing of it."""
    own = {name: value for name, value in environment(JOB=str(folder)).items() if name not in RANK_VARIABLES}
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            command, env=own, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline = time.monotonic() + LIMIT_S
        while len(told(folder, "watched")) < num_ranks and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(told(folder, "watched")) == num_ranks, (folder / "output").read_text()
        yield process
    finally:
        for pid in left(folder):
            os.kill(pid, signal.SIGKILL)
        process.wait()


def told(folder: Path, what: str) -> list[str]:
    """Return what the ranks wrote down."""
    return [path.read_text() for path in folder.glob(f"{what}.*")]


def left(folder: Path) -> list[int]:
    """Return the processes that belong to the job of a folder, those aside that are only waited for."""
    pids = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            is_its_own = f"JOB={folder}\0".encode() in (path / "environ").read_bytes()
        except OSError:
            continue
        if is_its_own:
            pids.append(int(path.name))
    return pids


def wait_until_none_is_left(folder: Path) -> None:
    """Wait until no process of the job is left, at most `LIMIT_S` seconds."""
    began = time.monotonic()
    while (pids := left(folder)) and time.monotonic() - began < LIMIT_S:
        time.sleep(0.05)
    assert not pids, (folder / "output").read_text()


@pytest.mark.parametrize(
    ("launcher", "number", "who"),
    [
        (LAUNCHERS["mpirun"], signal.SIGKILL, "mpirun"),
        pytest.param(LAUNCHERS["horovodrun"], signal.SIGTERM, "sh", marks=pytest.mark.slow),
        pytest.param(MPI, signal.SIGTERM, "sh", marks=pytest.mark.slow),
        pytest.param(MPI, signal.SIGKILL, "sh", marks=pytest.mark.slow),
        (LAUNCHERS["gloo"], signal.SIGKILL, "horovodrun"),
    ],
    ids=["mpirun-KILL", "horovodrun-TERM", "mpi-TERM", "mpi-KILL", "gloo-KILL"],
)
def test_ranks_learn_that_their_launcher_has_died(
    tmp_path: Path, launcher: list[str], number: signal.Signals, who: str
) -> None:
    hosts = [] if launcher[0] == "mpirun" else ["-H", f"localhost:{NUM_RANKS}"]
    command = [*launcher, "-np", str(NUM_RANKS), *hosts, *ranks(tmp_path)]
    with started(tmp_path, command) as process:
        process.send_signal(number)
        wait_until_none_is_left(tmp_path)
        lost = told(tmp_path, "lost")
        assert len(lost) == NUM_RANKS and all(said.startswith(f"{who} (process ") for said in lost), lost


@pytest.mark.parametrize("launcher", ["mpirun", "gloo"])
def test_a_launcher_that_is_asked_to_end_ends_its_ranks(tmp_path: Path, launcher: str) -> None:
    hosts = [] if launcher == "mpirun" else ["-H", f"localhost:{NUM_RANKS}"]
    command = [*LAUNCHERS[launcher], "-np", "2", *hosts, *ranks(tmp_path, hearing="normal")]
    with started(tmp_path, command) as process:
        process.terminate()
        wait_until_none_is_left(tmp_path)


def test_a_wrapper_between_hides_nothing(tmp_path: Path) -> None:
    wrapper = ["sh", "-c", '"$@"; exit $?', "wrapper", *ranks(tmp_path)]
    with started(tmp_path, [*LAUNCHERS["mpirun"], "-np", "2", *wrapper]) as process:
        assert told(tmp_path, "watched") == ["sh mpirun"] * 2
        process.kill()
        wait_until_none_is_left(tmp_path)
        assert len(told(tmp_path, "lost")) == 2


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_ranks_learn_that_their_supervisor_was_killed(tmp_path: Path, num_ranks: int) -> None:
    text = SUPERVISOR.replace("2, 0", f"{num_ranks}, 0")
    with started(tmp_path, [sys.executable, "-c", text, str(tmp_path), *ranks(tmp_path)], num_ranks) as process:
        process.kill()
        wait_until_none_is_left(tmp_path)
        lost = told(tmp_path, "lost")
        assert len(lost) == num_ranks and all(f"(process {process.pid})" in said for said in lost)


MPIRUN = " ".join(LAUNCHERS["mpirun"])


@pytest.mark.parametrize(
    ("script", "num_ranks", "watched"),
    [
        (f'nohup {MPIRUN} -np 2 "$@" & sleep 1', 2, "mpirun"),
        (f'{MPIRUN} -np 2 "$@" & sleep 1.5; exit 0', 2, "mpirun"),
        ('nohup "$@" & sleep 1', 1, ""),
    ],
    ids=["nohup", "batch-script", "alone"],
)
def test_the_end_of_a_users_shell_is_nothing_to_them(
    tmp_path: Path, script: str, num_ranks: int, watched: str
) -> None:
    command = ["bash", "-c", script, "shell", *ranks(tmp_path, 3.5)]
    with started(tmp_path, command, num_ranks) as process:
        assert told(tmp_path, "watched") == [watched] * num_ranks
        process.wait(timeout=LIMIT_S)
        wait_until_none_is_left(tmp_path)
        assert told(tmp_path, "lost") == [] and len(told(tmp_path, "done")) == num_ranks
