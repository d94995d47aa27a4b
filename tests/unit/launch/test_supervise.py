"""The supervisor: real programs that fail, stop and leave processes behind; and the rules it goes by."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_hvd.errors import UsageError
from cxr_hvd.launch.launchers import (
    RANK_VARIABLES,
    choose_launcher,
    parse_duration,
    receiver,
    split_launcher,
    stop_signal,
)
from cxr_hvd.launch.orphan import SUPERVISOR, LauncherWatch, who_matters
from cxr_hvd.launch.outcome import judge, newest_step, read_last_statuses
from cxr_hvd.launch.processes import Process, ancestors, is_running, read_process
from cxr_hvd.launch.rank_status import MAX_STATUS_BYTES, RankStatus
from cxr_hvd.launch.supervise import LISTENED, command_of_ranks, pause_before, supervise
from lab.launch import has_ended, need_horovod

# Counts its starts, and ends the n-th with the n-th code.
COUNTS = """
import sys
from pathlib import Path
starts = Path(sys.argv[1], "starts")
starts.open("a").write("x")
codes = [int(code) for code in sys.argv[2:]]
sys.exit(codes[min(len(starts.read_text()), len(codes)) - 1])
"""
# Starts a child, deaf to SIGTERM and in a session of its own, writes down both ids; then does `sys.argv[2]`.
LEAVES = """
import os, signal, subprocess, sys, time
from pathlib import Path
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
Path(sys.argv[1], f"pids{os.environ.get('OMPI_COMM_WORLD_RANK', '')}").write_text(f"{os.getpid()} {child.pid}")
exec(sys.argv[2])
"""
# Says which signal came, and ends with 75 as a rank does; "deaf" goes on.
LISTENS = """
import os, signal, sys, time
from pathlib import Path
def hear(number, frame):
    Path(sys.argv[1], f"heard{os.environ.get('OMPI_COMM_WORLD_RANK', '')}").open("a").write(f"{number} ")
    if sys.argv[2] != "deaf":
        os._exit(75)
signal.signal(signal.SIGTERM, hear)
signal.signal(signal.SIGUSR1, hear)
Path(sys.argv[1], f"ready{os.environ.get('OMPI_COMM_WORLD_RANK', '')}").touch()
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """These tests are no ranks, whatever runs them; wait shortly for what is deaf; and live if one fails."""
    for name in RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("cxr_hvd.launch.supervise.LEFT_S", 0.5)
    before = {number: signal.signal(number, lambda *_: None) for number in LISTENED}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def program(text: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", text, *map(str, arguments)]


def num_starts(folder: Path) -> int:
    return len((folder / "starts").read_text())


def send_when(
    ready: list[Path], *numbers: signal.Signals, pause_s: float = 0.0, delay_s: float = 0.0
) -> threading.Thread:
    """Send signals to this process, as a batch system does, `delay_s` seconds after files are there."""

    def wait_and_send() -> None:
        deadline = time.monotonic() + 10
        while not all(path.exists() for path in ready) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(delay_s)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(pause_s)

    thread = threading.Thread(target=wait_and_send)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("codes", "num_restarts", "then", "starts"),
    [
        ([0], 3, 0, 1),
        ([1, 137, 0], 3, 0, 3),
        ([1, 3], 1, 3, 2),
        ([9], 0, 9, 1),
        ([1, 75, 0], 3, 75, 2),
        ([2, 0], 3, 2, 1),
    ],
)
def test_starts_again_what_failed_and_nothing_else(
    tmp_path: Path, codes: list[int], num_restarts: int, then: int, starts: int
) -> None:
    code = supervise(program(COUNTS, tmp_path, *codes), tmp_path, 1, num_restarts, first_pause_s=0.01)
    assert (code, num_starts(tmp_path)) == (then, starts)


def test_each_event_is_one_line_with_its_time(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for site, step in (("north", 80), ("south", 120)):
        (tmp_path / site / "checkpoints" / f"step-{step}").mkdir(parents=True)
    supervise(program(COUNTS, tmp_path, 4), tmp_path, 1, 1, first_pause_s=0.01)
    lines = capfd.readouterr().err.splitlines()
    found = [re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d cxr-hvd: supervise: (.*)", line) for line in lines]
    told = [line[1] if line else "" for line in found]
    assert [line.partition(":")[0] for line in told] == [
        *("start 1 of 2", "start 2 of 2 in 0.01 s", "start 2 of 2", "given up after start 2 of 2")
    ]
    assert told[1].endswith(": the run ended with 4 after step 120")
    assert told[3].endswith(": the run ended with 4 after step 120")


@pytest.mark.parametrize("then", ["sys.exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_nothing_is_left_of_a_start(tmp_path: Path, then: str) -> None:
    code = supervise(program(LEAVES, tmp_path, then), tmp_path, 1, 0)
    assert code == (0 if "exit" in then else 137)
    own, child = (tmp_path / "pids").read_text().split()
    assert not Path("/proc", own).exists() and has_ended(child)


@pytest.mark.parametrize(
    ("sent", "heard"),
    [(signal.SIGTERM, "15 "), (signal.SIGINT, "15 "), (signal.SIGUSR1, "10 "), (signal.SIGHUP, "15 ")],
)
def test_a_request_to_stop_is_handed_on_and_ends_it(tmp_path: Path, sent: signal.Signals, heard: str) -> None:
    thread = send_when([tmp_path / "ready"], sent)
    assert supervise(program(LISTENS, tmp_path, "stops"), tmp_path, 1, 3, first_pause_s=0.01) == 75
    thread.join()
    assert (tmp_path / "heard").read_text() == heard


def test_one_that_does_not_stop_is_made_to(tmp_path: Path) -> None:
    thread = send_when([tmp_path / "ready"], signal.SIGTERM)
    assert supervise(program(LISTENS, tmp_path, "deaf"), tmp_path, 1, 3, grace_s=0.5) == 137
    thread.join()
    assert (tmp_path / "heard").read_text() == "15 15 "


def test_a_second_request_ends_it_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    thread = send_when([tmp_path / "ready"], signal.SIGTERM, signal.SIGINT, pause_s=1.3)
    assert supervise(program(LISTENS, tmp_path, "deaf"), tmp_path, 1, 3) == 137
    thread.join()
    assert time.monotonic() - began < 8


def test_one_request_that_comes_twice_is_one(tmp_path: Path) -> None:
    thread = send_when([tmp_path / "ready"], signal.SIGTERM, signal.SIGTERM, pause_s=0.2)
    code = supervise(program(LISTENS, tmp_path, "deaf"), tmp_path, 1, 3, grace_s=1.0)
    thread.join()
    assert code == 137 and (tmp_path / "heard").read_text() == "15 15 "


def test_a_request_in_a_pause_ends_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    thread = send_when([tmp_path / "starts"], signal.SIGTERM, delay_s=1.0)
    began = time.monotonic()
    assert supervise(program(COUNTS, tmp_path, 1), tmp_path, 1, 3, first_pause_s=30) == 75
    thread.join()
    assert time.monotonic() - began < 10 and num_starts(tmp_path) == 1
    assert "in the pause; the run stands before its first checkpoint" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_rank_that_was_asked_before_it_listened_has_stopped_on_request(tmp_path: Path) -> None:
    thread = send_when([tmp_path / "pids"], signal.SIGUSR1)
    assert supervise(program(LEAVES, tmp_path, "time.sleep(60)"), tmp_path, 1, 3) == 75
    thread.join()


def test_what_nohup_ignores_stays_ignored(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        thread = send_when([tmp_path / "ready"], signal.SIGHUP, signal.SIGTERM, pause_s=0.2)
        assert supervise(program(LISTENS, tmp_path, "stops"), tmp_path, 1, 0) == 75
        thread.join()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (tmp_path / "heard").read_text() == "15 " and "SIGHUP" not in capfd.readouterr().err


def test_a_time_limit_is_told_to_each_start_and_kept(tmp_path: Path) -> None:
    text = "import sys; open(sys.argv[1], 'a').write(sys.argv[-1] + ' '); sys.exit(1)"
    command = program(text, tmp_path / "limits", "--time-limit", "999")
    code = supervise(command, tmp_path, 1, 5, first_pause_s=1.5, deadline=time.monotonic() + 4)
    assert code == 1
    limits = [int(limit) for limit in (tmp_path / "limits").read_text().split()]
    assert len(limits) == 2 and limits[0] == 3 and limits[1] < 3  # the second pause would be too long


def test_mpirun_gives_its_ranks_time(tmp_path: Path) -> None:
    thread = send_when([tmp_path / "ready0", tmp_path / "ready1"], signal.SIGTERM)
    assert supervise(program(LISTENS, tmp_path, "stops"), tmp_path, 2, 3) == 75
    thread.join()
    assert [(tmp_path / f"heard{rank}").read_text() for rank in (0, 1)] == ["10 ", "10 "]


def test_nothing_is_left_of_a_killed_mpirun(tmp_path: Path) -> None:
    kill = "time.sleep(0.5); os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)"
    assert supervise(program(LEAVES, tmp_path, kill), tmp_path, 2, 0) == 137
    pids = [pid for path in tmp_path.glob("pids*") for pid in path.read_text().split()]
    assert len(pids) == 4 and all(has_ended(pid) for pid in pids)


def test_horovodrun_returns_1_and_the_ranks_own_words_are_read(tmp_path: Path) -> None:
    need_horovod()
    text = """
import json, os, sys, time
from pathlib import Path
rank = os.environ["HOROVOD_RANK"]
folder = Path(sys.argv[1], rank)
folder.mkdir(exist_ok=True)
now = time.time()
status = {"rank": int(rank), "num_steps": 9, "step": 7, "doing": "stopped on request", "since": now}
(folder / "status-0.json").write_text(json.dumps(status | {"exit_code": 75, "time": now}))
(folder / "env").write_text(os.environ["OMPI_MCA_mpi_yield_when_idle"])
while not Path(sys.argv[1], str(1 - int(rank)), "env").exists():
    time.sleep(0.01)
sys.exit(75)
"""
    launcher = [str(Path(sys.executable).parent / "horovodrun"), "--gloo", "-np", "2", "-H", "localhost:2"]
    assert supervise(program(text, tmp_path), tmp_path, 2, 3, launcher) == 75
    assert [(tmp_path / rank / "env").read_text() for rank in "01"] == ["1", "1"]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores that could be left idle")
def test_ranks_that_it_starts_by_mpirun_may_use_all_cores(tmp_path: Path) -> None:
    text = """
import os, sys
from pathlib import Path
Path(sys.argv[1], os.environ["OMPI_COMM_WORLD_RANK"]).write_text(str(len(os.sched_getaffinity(0))))
"""
    assert supervise(program(text, tmp_path), tmp_path, 2, 0, None) == 0
    assert [(tmp_path / rank).read_text() for rank in "01"] == [str(len(os.sched_getaffinity(0)))] * 2


@pytest.mark.parametrize(
    ("hosts", "environment", "flags"),
    [
        (["-H", "localhost:2"], {}, "none"),
        (["-H", "hospital-a:1,hospital-b:1"], {}, "1"),
        (["--hostfile", "hosts"], {}, "1"),
        (["-host", "node1,node2"], {"SLURM_JOB_ID": "7"}, "none"),
        (["-host", "node1,node2"], {"OMPI_MCA_btl_tcp_flags": "311"}, "311"),
    ],
)
def test_hosts_without_a_scheduler_are_taken_for_a_slow_line(
    hosts: list[str], environment: dict[str, str], flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    launcher = tmp_path / "mpirun"
    launcher.write_text(f"#!/bin/sh\nprintf %s ${{OMPI_MCA_btl_tcp_flags:-none}} >{tmp_path}/flags\n")
    launcher.chmod(0o755)
    assert supervise(["true"], tmp_path, 2, 0, [str(launcher), "-np", "2", *hosts]) == 0
    assert (tmp_path / "flags").read_text() == flags


def test_a_request_to_stop_is_handed_on_by_the_signal_that_a_launcher_hands_on() -> None:
    said = {
        name: stop_signal(Process(7, 1, 7, 0, name), has_launcher=True, asked=signal.SIGTERM)
        for name in ("mpirun", "srun", "horovodrun")
    }
    assert said == {"mpirun": signal.SIGUSR1, "srun": signal.SIGUSR1, "horovodrun": signal.SIGTERM}


@pytest.mark.parametrize("name", RANK_VARIABLES)
def test_a_rank_is_no_supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "2")
    with pytest.raises(UsageError, match="run it without one"):
        supervise(["true"], tmp_path, 2, 1)


def test_which_launcher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert choose_launcher(1, None) == []
    assert choose_launcher(1, ["env", "-u", "A"]) == ["env", "-u", "A"]
    for name in ("mpirun", "horovodrun"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert choose_launcher(3, None) == ["mpirun", "-np", "3"]
    (tmp_path / "mpirun").unlink()
    assert choose_launcher(3, None)[1:] == ["--gloo", "-np", "3"]
    monkeypatch.setattr("cxr_hvd.launch.launchers.executable", "/nowhere/python")
    (tmp_path / "horovodrun").unlink()
    with pytest.raises(UsageError, match="3 ranks need a launcher"):
        choose_launcher(3, None)
    with pytest.raises(UsageError, match="'mpirum' is not a program"):
        choose_launcher(3, ["mpirum"])


def test_words_of_the_launcher() -> None:
    assert split_launcher("mpirun -np 2 -x 'A=b c'") == ["mpirun", "-np", "2", "-x", "A=b c"]
    for wrong in ("", "  ", "mpirun 'open"):
        with pytest.raises(UsageError):
            split_launcher(wrong)


def test_the_command_of_the_ranks() -> None:
    options = ["--supervise", "3", "--run", "r", "--launcher=mpirun -np 2", "--resume", "latest", "--set", "a=b"]
    assert command_of_ranks(["/bin/cxr-hvd", "train", "c.yaml", *options]) == [
        *("/bin/cxr-hvd", "train", "c.yaml", "--run", "r", "--set", "a=b", "--resume", "auto")
    ]
    with pytest.raises(UsageError, match="--overwrite replaces"):
        command_of_ranks(["cxr-hvd", "train", "c.yaml", "--supervise", "3", "--overwrite"])


@given(st.integers(2, 2000))
def test_pauses_double_up_to_ten_minutes(number: int) -> None:
    assert pause_before(2) == 10.0
    assert pause_before(number + 1) == min(600.0, 2 * pause_before(number))


def last_status(doing: str, exit_code: int) -> RankStatus:
    return RankStatus(rank=0, num_steps=9, step=7, doing=doing, since=2e9, exit_code=exit_code, time=2e9)


STOP, FAIL, BAD = last_status("stopped on request", 75), last_status("failed: x", 1), last_status("failed: y", 2)


@pytest.mark.parametrize(
    ("code", "statuses", "was_asked", "judged"),
    [
        (1, [], False, 1),
        (1, [STOP, STOP], False, 75),
        (1, [STOP, FAIL], True, 1),
        (1, [BAD, FAIL], False, 2),
        (0, [BAD], False, 0),
        (138, [], True, 75),
        (143, [], True, 75),
        (138, [], False, 138),
        (137, [], True, 137),
    ],
)
def test_verdicts(code: int, statuses: list[RankStatus], was_asked: bool, judged: int) -> None:
    assert judge(code, statuses, was_asked) == judged


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[" * 4000,
        b"\xff\xfe\x00",
        b'"stopped on request"',
        STOP.model_dump_json(exclude={"exit_code"}).encode(),
        STOP.model_dump_json().replace("75", "true").encode(),
        STOP.model_dump_json().replace("75", '"75"').encode(),
        STOP.model_dump_json().replace('"time":2000000000.0', '"time":NaN').encode(),
        STOP.model_copy(update={"time": 1e9}).model_dump_json().encode(),
        STOP.model_dump_json().replace('"stopped on request"', "7").encode(),
        STOP.model_dump_json().encode() + b" " * MAX_STATUS_BYTES,
    ],
)
def test_words_that_are_damaged_or_old_do_not_count(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "north").mkdir()
    (tmp_path / "north" / "status-0.json").write_bytes(content)
    os.mkfifo(tmp_path / "north" / "status-1.json")
    assert read_last_statuses(tmp_path, since=1.5e9) == []
    (tmp_path / "north" / "status-2.json").write_text(STOP.model_dump_json())
    assert read_last_statuses(tmp_path, since=1.5e9) == [STOP]


def test_the_newest_step(tmp_path: Path) -> None:
    assert newest_step(tmp_path / "nowhere") is None
    for name in (
        "a/checkpoints/step-9",
        "b/checkpoints/step-10",
        "b/checkpoints/.step-99.part",
        "b/checkpoints/step-x",
    ):
        (tmp_path / name).mkdir(parents=True)
    assert newest_step(tmp_path) == 10


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3600", 3600),
        ("0.5", 0.5),
        ("90m", 5400),
        ("1h30m", 5400),
        ("2d", 172_800),
        ("45s", 45),
        ("12:00:00", 43_200),
        ("1-00:00:00", 86_400),
        ("0-00:01:00", 60),
    ],
)
def test_a_time_limit_is_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "0m", "m", "-5", "1h30", "30m1h", "12:00", "1:60:00", "1-2", "1e3", "nan", " 5", "٣", "1 h"]
)
def test_another_time_limit_is_not(text: str) -> None:
    with pytest.raises(UsageError, match="expected 3600"):
        parse_duration(text)


@given(st.integers(0, 400), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_clocks_and_counts_tell_the_same(days: int, hours: int, minutes: int, seconds: int) -> None:
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if total:
        assert parse_duration(f"{days}-{hours:02}:{minutes:02}:{seconds:02}") == total
        assert parse_duration(f"{days}d{hours}h{minutes}m{seconds}s") == total


def chain(*names: str) -> list[Process]:
    """Return made-up ancestors, the parent first."""
    return [Process(1_000_000_000 + number, 0, 0, 7, name) for number, name in enumerate(names)]


@pytest.mark.parametrize(
    ("names", "num_watched"),
    [
        (["mpirun", "bash", "sshd"], 1),
        (["mpirun.openmpi", "python"], 1),
        (["bash", "numactl", "mpirun", "slurm_script"], 3),
        (["sh", "python", "horovodrun", "bash"], 3),
        (["orted", "sshd"], 1),
        (["slurmstepd", "systemd"], 1),
        (["bash", "slurmstepd"], 1),
        ([], 0),
    ],
)
def test_a_rank_watches_up_to_its_launcher(names: list[str], num_watched: int) -> None:
    assert who_matters(chain(*names), {"PMI_SIZE": "2"}) == chain(*names)[:num_watched]
    assert who_matters(chain(*names), {}) == []


def test_the_supervisor_is_watched_where_it_started_the_launcher() -> None:
    above = chain("mpirun", "cxr-hvd", "bash")
    marked = {"PMI_SIZE": "2", SUPERVISOR: above[1].identity}
    assert who_matters(above, marked) == above[:2]
    assert who_matters(above[1:], {SUPERVISOR: above[1].identity}) == above[1:2]
    assert who_matters(above, marked | {SUPERVISOR: f"{above[1].pid}.8"}) == above[:1]
    assert who_matters(above, marked | {SUPERVISOR: above[2].identity}) == above[:1]


def test_signals_go_to_mpirun_wherever_it_stands() -> None:
    shell, mpirun, real = (
        Process(pid, pid - 1, 0, 0, name) for pid, name in ((5, "sh"), (6, "mpirun"), (7, "mpiexec"))
    )
    rank = Process(8, 7, 0, 0, "python")
    assert receiver(shell, [shell, rank]) == shell
    assert receiver(shell, [rank, mpirun, shell]) == mpirun
    assert receiver(shell, [mpirun, real, rank]) == real


def test_processes_are_read() -> None:
    own = read_process(os.getpid())
    assert own and own.parent == os.getppid() and own.session == os.getsid(0)
    assert ancestors()[0].pid == os.getppid()
    assert is_running(own) and not is_running(replace(own, started=own.started + 1))
    with subprocess.Popen(["sh", "-c", "exec -a 'a) b (c' sleep 60"], executable="bash") as child:
        child.kill()
        assert has_ended(str(child.pid))
        assert read_process(child.pid) is None  # a zombie, until it is waited for


def test_a_process_without_a_launcher_watches_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SUPERVISOR, raising=False)
    before = threading.active_count()
    assert LauncherWatch(lambda: None).watched == []
    assert threading.active_count() == before
