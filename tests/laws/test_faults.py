"""What becomes of a run in which something breaks, in real launches: bounded in time, told in one line, nothing
lost.

Each fault is put into one rank by `tests.helpers.faulty_training`. The measure of all is one undisturbed run:
a run that was disturbed goes on from `latest` and ends with the same files, byte by byte.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cxr_hvd.study.layout import Split
from lab.launch import BIN, LAUNCHERS, PROJECT, Finished, Hung, environment, has_ended, launch, need_horovod, run
from lab.study_files import write_study_file

need_horovod()
pytestmark = pytest.mark.slow

FAULTY = [sys.executable, "-m", "tests.helpers.faulty_training"]
SITES = ("chexpert", "mimic")
SPLITS = (Split.TRAIN, Split.TRAIN, Split.VALIDATE, Split.TEST)
QUICK = (
    "model.image_size=32", "training.batch_size=4", "training.precision=fp32", "training.epochs=2",
    "training.steps_per_epoch=4", "checkpoints.every_steps=2", "checkpoints.keep=3",
)  # fmt: skip
GONE_WITHIN_S = 15.0
# The other launcher by night: a failure that does not depend on it is looked at under one.
BY_MPIRUN = pytest.mark.parametrize("launcher", ["mpirun", pytest.param("gloo", marks=pytest.mark.night)])
BY_GLOO = pytest.mark.parametrize("launcher", [pytest.param("mpirun", marks=pytest.mark.night), "gloo"])


class Case:
    """A run folder of two sites on one machine, and the commands to train in it."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data, self.run = folder, data, folder / "run"
        self.pids = folder / "pids"
        self.pids.mkdir(exist_ok=True)

    def settings(self, *more: str) -> list[str]:
        data = [f"sites.{site}.data={self.data / site}.h5" for site in SITES]
        return [word for setting in (*QUICK, *data, *more) for word in ("--set", setting)]

    def command(
        self, fault: str = "none", rank: int = 1, step: int = 0, *words: str, settings: tuple[str, ...] = ()
    ) -> list[str]:
        config = str(PROJECT / "jobs" / "configs" / "D.yaml")
        train = ["train", config, "--run", str(self.run), "--resume", "auto", *words, *self.settings(*settings)]
        return [*FAULTY, str(rank), fault, str(step), *train]

    def environment(self, rank: int = 1) -> dict[str, str]:
        return {"PIDS": str(self.pids), "STUDY_FILE": str(self.data / f"{SITES[rank]}.h5")}

    def train(
        self, launcher: str = "mpirun", fault: str = "none", rank: int = 1, step: int = 0, *words: str,
        settings: tuple[str, ...] = (), limit_s: float = 150,
    ) -> Finished:  # fmt: skip
        for pid in self.pids.iterdir():
            pid.unlink()
        command = self.command(fault, rank, step, *words, settings=settings)
        return launch(2, command, launcher, limit_s, **self.environment(rank))

    def are_gone(self) -> bool:
        """Whether all ranks of the last job are; in time after one was killed, if one was."""
        pids = [path.read_text() for path in self.pids.iterdir()]
        assert len(pids) == 2
        have_ended = all(has_ended(pid) for pid in pids)
        killed = self.pids.with_name("killed")
        return have_ended and (not killed.exists() or time.time() - float(killed.read_text()) < GONE_WITHIN_S)

    def latest(self) -> list[dict[str, bytes]]:
        return [
            {path.name: path.read_bytes() for path in (self.run / site / "checkpoints" / "latest").iterdir()}
            for site in SITES
        ]

    def statuses(self) -> list[dict[str, object]]:
        return [json.loads((self.run / site / "status-0.json").read_text()) for site in SITES]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for seed, site in enumerate(SITES):
        write_study_file(folder / f"{site}.h5", 24, seed, SPLITS, site=site)
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: Path) -> list[dict[str, bytes]]:
    """The last checkpoints of a run that nothing happened to."""
    case = Case(tmp_path_factory.mktemp("undisturbed"), data)
    ok(case.train())
    return case.latest()


@pytest.fixture
def case(tmp_path: Path, data: Path) -> Iterator[Case]:
    yield Case(tmp_path, data)


def ok(job: Finished) -> Finished:
    assert job.exit_code == 0, job.output
    assert "Traceback" not in job.output
    return job


def errors(job: Finished) -> list[str]:
    return [line.partition("cxr-hvd: error: ")[2] for line in job.lines("cxr-hvd: error: ")]


def is_undisturbed(case: Case, undisturbed: list[dict[str, bytes]]) -> None:
    """Go on, and end as the undisturbed run."""
    ok(case.train())
    assert case.latest() == undisturbed
    for site in SITES:
        steps = [json.loads(line)["step"] for line in (case.run / site / "metrics.jsonl").read_text().splitlines()]
        assert steps == list(range(8))


# ---- a rank that is killed


@BY_GLOO
@pytest.mark.parametrize(("fault", "step"), [("kill", 0), ("kill", 5), ("kill-writing", 4)])
def test_a_killed_rank_ends_all_and_the_run_goes_on(
    launcher: str, fault: str, step: int, case: Case, undisturbed: list[dict[str, bytes]]
) -> None:
    job = case.train(launcher, fault, 1, step)
    assert job.exit_code not in (0, 75)
    assert case.are_gone()
    is_undisturbed(case, undisturbed)


@pytest.mark.parametrize(("fault", "rank"), [
    ("kill-copied", 0),
    pytest.param("kill-written", 0, marks=pytest.mark.night),
    ("kill-written", 1),
    pytest.param("kill-renamed", 1, marks=pytest.mark.night),
    pytest.param("kill-linked", 1, marks=pytest.mark.night),
])  # fmt: skip
def test_a_kill_at_any_point_of_a_checkpoint_loses_nothing(
    fault: str, rank: int, case: Case, undisturbed: list[dict[str, bytes]]
) -> None:
    job = case.train("mpirun", fault, rank, 4)
    assert job.exit_code not in (0, 75)
    assert case.are_gone()
    for site in SITES:
        latest = case.run / site / "checkpoints" / "latest"
        assert (latest / "state.json").is_file() and (latest / "shared.safetensors").stat().st_size
    is_undisturbed(case, undisturbed)


@BY_MPIRUN
def test_a_rank_killed_in_evaluation_ends_all(launcher: str, case: Case) -> None:
    ok(case.train())
    for pid in case.pids.iterdir():
        pid.unlink()
    before = case.latest()
    job = launch(
        2, [*FAULTY, "1", "kill-judging", "0", "evaluate", str(case.run)], launcher, 90, **case.environment()
    )
    assert job.exit_code != 0
    assert case.are_gone()
    assert case.latest() == before
    ok(run([str(BIN / "cxr-hvd"), "evaluate", str(case.run)]))


# ---- a rank that hangs


@pytest.mark.parametrize(
    ("fault", "launcher"),
    [
        ("stall", "mpirun"),
        ("freeze", "gloo"),
        pytest.param("stall", "gloo", marks=pytest.mark.night),
        pytest.param("freeze", "mpirun", marks=pytest.mark.night),
    ],
)
def test_a_rank_that_hangs_is_named_and_ends_the_run_in_time(
    launcher: str, fault: str, case: Case, undisturbed: list[dict[str, bytes]]
) -> None:
    job = case.train(launcher, fault, 1, 3, "--stall-limit", "8", limit_s=90)
    assert job.exit_code not in (0, 75)
    said = [line for line in errors(job) if "site mimic, rank 1" in line]
    assert said and "step 3" in said[0], job.output
    for pid in case.pids.iterdir():
        if not has_ended(pid.read_text()):
            assert fault == "freeze"  # a stopped process takes SIGTERM only when it goes on
            os.kill(int(pid.read_text()), signal.SIGKILL)
    is_undisturbed(case, undisturbed)


# ---- errors


@BY_GLOO
def test_a_defect_on_one_rank_ends_all_with_its_message_once(launcher: str, case: Case) -> None:
    job = case.train(launcher, "raise", 1, 3)
    assert job.exit_code not in (0, 75)
    assert len(job.lines("RuntimeError: a defect of the program")) == 1
    assert case.are_gone()


@BY_MPIRUN
def test_a_full_gpu_ends_all_and_is_told_in_one_line_on_its_rank(launcher: str, case: Case) -> None:
    job = case.train(launcher, "fill-memory", 1, 3)
    assert job.exit_code not in (0, 75)
    assert not job.lines("Traceback")
    (line,) = job.lines("the GPU's memory is full")
    assert (
        "site mimic, rank 1 in step 3: the GPU's memory is full: expected 2.00 GiB more, found 78.44 MiB" in line
    )
    assert case.are_gone()


@BY_MPIRUN
def test_a_loss_that_is_not_finite_stops_all_at_that_step(
    launcher: str, case: Case, undisturbed: list[dict[str, bytes]]
) -> None:
    job = case.train(launcher, "nan", 1, 5)
    assert job.exit_code == 1
    said = errors(job)
    assert len(said) == 2 and said[0] == said[1]
    assert "the loss is nan in step 5 (site mimic, rank 1): the images of its batch are not finite" in said[0]
    is_undisturbed(case, undisturbed)


def test_a_step_that_is_not_finite_is_left_out_where_the_config_allows(case: Case) -> None:
    job = ok(case.train("mpirun", "nan", 1, 5, settings=("training.on_nonfinite=skip",)))
    assert job.lines("1 skipped")
    rows = [json.loads(line) for line in (case.run / "mimic" / "metrics.jsonl").read_text().splitlines()]
    assert [row["is_skipped"] for row in rows] == [False] * 5 + [True] + [False] * 2
    assert rows[5]["loss"] is None


@BY_GLOO
def test_a_study_file_that_is_cut_short_ends_all_in_one_line(launcher: str, tmp_path: Path) -> None:
    for seed, site in enumerate(SITES):
        write_study_file(tmp_path / f"{site}.h5", 24, seed, SPLITS, site=site)
    case = Case(tmp_path, tmp_path)
    job = case.train(launcher, "truncate", 1, 2)
    assert job.exit_code not in (0, 75)
    assert any("mimic.h5: study" in line and "cannot be read" in line for line in errors(job)), job.output
    assert not [line for line in job.lines("Traceback") if line.startswith("[")]  # horovodrun has its own
    assert case.are_gone()


def test_a_study_file_that_vanishes_is_read_to_the_end_and_missed_at_the_next_start(tmp_path: Path) -> None:
    for seed, site in enumerate(SITES):
        write_study_file(tmp_path / f"{site}.h5", 24, seed, SPLITS, site=site)
    case = Case(tmp_path, tmp_path)
    ok(case.train("mpirun", "unlink", 1, 2))
    job = case.train("mpirun")
    assert job.exit_code == 1
    assert any("mimic.h5: no study file here" in line for line in errors(job))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that holds two checkpoints of one site, and not three."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=240m", "tmpfs", disk]).returncode:
        pytest.skip("only root may mount a small disk, and not in every container")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_leaves_the_earlier_checkpoint_whole(
    small_disk: Path, data: Path, tmp_path: Path, undisturbed: list[dict[str, bytes]]
) -> None:
    case = Case(tmp_path, data)
    (case.run).mkdir()
    (case.run / "mimic").symlink_to(small_disk)
    job = case.train("mpirun")
    assert job.exit_code == 1
    said = errors(job)
    assert any("cannot write" in line and "free the disk, then use --resume auto" in line for line in said), said
    assert any("rank 1 failed while saving a checkpoint" in line for line in said), said
    assert case.are_gone() and "Traceback" not in job.output
    subprocess.run(["mount", "-o", "remount,size=1g", small_disk], check=True)
    is_undisturbed(case, undisturbed)


def test_a_disk_that_became_read_only_leaves_the_earlier_checkpoint_whole(
    small_disk: Path, data: Path, tmp_path: Path, undisturbed: list[dict[str, bytes]]
) -> None:
    subprocess.run(["mount", "-o", "remount,size=1g", small_disk], check=True)
    case = Case(tmp_path, data)
    case.run.mkdir()
    (case.run / "mimic").symlink_to(small_disk)
    job = case.train("mpirun", "signal", 1, 3)
    assert job.exit_code == 75
    remount = "remount,ro,size=1g"
    assert subprocess.run(["mount", "-o", remount, small_disk]).returncode == 0
    before = case.latest()
    job = case.train("mpirun")
    assert job.exit_code == 1 and "Traceback" not in job.output
    assert any("mimic" in line and ("Read-only" in line or "cannot" in line) for line in errors(job)), job.output
    assert case.latest() == before
    subprocess.run(["mount", "-o", "remount,rw,size=1g", small_disk], check=True)
    is_undisturbed(case, undisturbed)


# ---- stopped on request


@BY_MPIRUN
def test_a_signal_to_one_rank_stops_all_with_a_checkpoint(
    launcher: str, case: Case, undisturbed: list[dict[str, bytes]]
) -> None:
    job = case.train(launcher, "signal", 1, 4)
    assert job.exit_code == (75 if launcher == "mpirun" else 1)  # horovodrun over Gloo knows no other code
    assert len(job.lines("cxr-hvd: stopped after step 6 of 8, since a signal asked for it")) == 1
    assert not errors(job)
    assert [status["doing"] for status in case.statuses()] == ["stopped on request"] * 2
    assert [status["exit_code"] for status in case.statuses()] == [75] * 2
    is_undisturbed(case, undisturbed)


def test_a_time_limit_stops_all_before_it(case: Case) -> None:
    settings = ("training.epochs=10000",)
    job = case.train("mpirun", "none", 0, 0, "--time-limit", "45s", settings=settings)
    assert job.exit_code == 75, job.output
    assert job.seconds < 45 + 3  # mpirun's own start and end
    assert job.lines("since the time limit is near")
    assert [status["exit_code"] for status in case.statuses()] == [75] * 2
    assert all("state.json" in checkpoint for checkpoint in case.latest())


@pytest.mark.parametrize("launcher", ["mpirun", "gloo", "horovodrun"])
def test_sigterm_to_the_launcher_leaves_no_orphan(launcher: str, case: Case) -> None:
    started = Started(case, launcher)
    started.wait_for(lambda: bool(list(case.run.glob("*/checkpoints/latest"))))
    pids = [path.read_text() for path in case.pids.iterdir()]
    started.process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    started.process.wait(GONE_WITHIN_S)
    while time.monotonic() - asked < GONE_WITHIN_S and not all(has_ended(pid) for pid in pids):
        time.sleep(0.2)
    assert all(has_ended(pid) for pid in pids)
    assert list(case.run.glob("*/checkpoints/latest/state.json"))


def test_sigusr1_to_mpirun_stops_all_with_a_checkpoint(case: Case) -> None:
    started = Started(case, "mpirun")
    started.wait_for(lambda: bool(list(case.run.glob("*/checkpoints/latest"))))
    started.process.send_signal(signal.SIGUSR1)
    assert started.process.wait(GONE_WITHIN_S) == 75
    assert [status["doing"] for status in case.statuses()] == ["stopped on request"] * 2


class Started:
    """A long run that goes on while the test does something to it."""

    def __init__(self, case: Case, launcher: str) -> None:
        self.log = case.folder / "log"
        prefix = [*LAUNCHERS[launcher], "-np", "2", *([] if launcher == "mpirun" else ["-H", "localhost:2"])]
        self.process = subprocess.Popen(
            [*prefix, *case.command(settings=("training.epochs=10000",))],
            env=environment(**case.environment()),
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait_for(self, is_so: Callable[[], bool], limit_s: float = 90) -> None:
        ends = time.monotonic() + limit_s
        while not is_so():
            if self.process.poll() is not None or time.monotonic() > ends:
                os.killpg(self.process.pid, signal.SIGKILL)
                raise Hung(self.log.read_text()[-3000:])
            time.sleep(0.2)


def test_a_supervised_run_starts_again_until_it_is_done(case: Case, undisturbed: list[dict[str, bytes]]) -> None:
    """The first start is killed in step 3, the second goes on from the checkpoint of step 2."""
    marker = case.folder / "killed"
    wrapper = case.folder / "cxr-hvd-once"
    words = " ".join(f"'{word}'" for word in FAULTY)
    wrapper.write_text(
        "#!/bin/sh\n"
        'if [ "$OMPI_COMM_WORLD_RANK" = 1 ] && mkdir "$MARKER" 2>/dev/null; then fault=kill; else fault=none; fi\n'
        f'shift; exec {words} 1 $fault 3 "$@"\n'
    )
    wrapper.chmod(0o755)
    config = str(PROJECT / "jobs" / "configs" / "D.yaml")
    train = [str(BIN / "cxr-hvd"), "train", config, "--run", str(case.run), *case.settings()]
    launcher = f"mpirun --allow-run-as-root --oversubscribe --bind-to none -np 2 {wrapper}"
    job = run([*train, "--supervise", "2", "--launcher", launcher], 180, MARKER=str(marker), **case.environment())
    assert job.exit_code == 0, job.output
    assert job.lines("supervise: start 2")
    assert case.latest() == undisturbed
