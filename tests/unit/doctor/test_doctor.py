"""The doctor: a healthy machine has no failure, and every break is found together with what mends it."""

import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from cxr_hvd import doctor
from cxr_hvd.console import Console
from cxr_hvd.doctor import questions, verdicts
from cxr_hvd.doctor.verdicts import Finding
from lab.launch import has_ended

TORCH = {"version": "2.14.1+cu130", "cuda": "13.0", "gpus": []}
LIBMPI = ["/usr/lib/libmpi.so.40.30.4"]
HOROVOD = {
    "version": "0.28.1",
    "built_for": "2.14.1+cu130",
    "torch": "2.14.1+cu130",
    "mpi": True,
    "gloo": True,
    "nccl": True,
    "cuda": True,
    "libmpi": LIBMPI,
}
MPIRUN = {"path": "/usr/bin/mpirun", "version": "mpirun (Open MPI) 4.1.4"}
MPI4PY = {"version": "4.1.2", "library": "Open MPI v4.1.4, package: Debian OpenMPI", "libmpi": LIBMPI}
ERROR = {"error": "ImportError: libmpi.so.40: cannot open shared object file (exit status 1)"}

NO_MPIRUN = {"error": "no mpirun on PATH"}

HEALTHY: list[Finding] = [
    verdicts.judge_python((3, 13, 1)),
    verdicts.judge_torch(TORCH),
    verdicts.judge_torch(TORCH | {"version": "2.10.0", "cuda": None}),
    verdicts.judge_works("opencv", {"version": "5.0", "works": True}),
    verdicts.judge_horovod(HOROVOD),
    verdicts.judge_mpirun(MPIRUN, HOROVOD),
    verdicts.judge_mpirun(NO_MPIRUN, HOROVOD, "srun"),
    verdicts.judge_mpirun(NO_MPIRUN, HOROVOD | {"mpi": False}),
    verdicts.judge_horovod(HOROVOD | {"mpi": False}),
    verdicts.judge_mpi4py(ERROR, NO_MPIRUN, HOROVOD | {"mpi": False}),
    verdicts.judge_gpu_launch(1, {"ranks": [(1, 1.0)], "way": "tensors of GPUs travel by NCCL"}),
    verdicts.judge_gpu_launch(2, {"ranks": [(2, 3.0)] * 2, "way": "through the host"}),
    verdicts.judge_mpi4py(MPI4PY, MPIRUN, HOROVOD),
    verdicts.judge_mpi4py(MPI4PY, MPIRUN, ERROR),
    verdicts.judge_mpi4py(
        MPI4PY | {"library": "MPICH Version:      4.0.2"},
        {"path": "/x", "version": "HYDRA Version: 4.0.2"},
        HOROVOD,
    ),
    verdicts.judge_gpu(TORCH, has_driver=False),
    verdicts.judge_gpu(TORCH | {"gpus": ["H100"]}, has_driver=True),
    verdicts.judge_nccl(TORCH, HOROVOD),
    verdicts.judge_nccl(TORCH, HOROVOD | {"nccl": False}),
    verdicts.judge_threads(8, None),
    verdicts.judge_threads(8, "4"),
    verdicts.judge_disk("/runs", 500.0),
    verdicts.judge_shm(1024),
    verdicts.judge_launch("two ranks", {"ranks": [(2, 3.0), (2, 3.0)]}),
]

FAILING: list[tuple[Finding, str]] = [
    (verdicts.judge_python((3, 10, 4)), "3.11"),
    (verdicts.judge_torch(ERROR), "libmpi"),
    (verdicts.judge_torch(TORCH | {"version": "2.8.1"}), "2.9"),
    (
        verdicts.judge_works("torchvision", {"error": "RuntimeError: operator torchvision::nms does not exist"}),
        "nms",
    ),
    (verdicts.judge_works("opencv", {"version": "5.0", "works": False}), "wrong"),
    (verdicts.judge_horovod(ERROR), "libmpi"),
    (verdicts.judge_horovod(HOROVOD | {"torch": "2.15.0"}), "2.15.0"),
    (verdicts.judge_horovod(HOROVOD | {"gloo": False}), "expected gloo"),
    (verdicts.judge_mpirun(NO_MPIRUN, HOROVOD), "PATH"),
    (verdicts.judge_mpirun(NO_MPIRUN, ERROR), "PATH"),
    (verdicts.judge_gpu_launch(2, {"error": "ncclCommInitRank failed (exit status 1)"}), "nccl"),
    (verdicts.judge_gpu_launch(2, {"ranks": [(2, 3.0)], "way": "by NCCL"}), "of each"),
    (verdicts.judge_mpi4py(ERROR, MPIRUN, HOROVOD), "libmpi"),
    (verdicts.judge_mpi4py(MPI4PY, MPIRUN | {"version": "mpirun (Open MPI) 5.0.3"}, HOROVOD), "5.0.3"),
    (verdicts.judge_mpi4py(MPI4PY, MPIRUN, HOROVOD | {"libmpi": ["/opt/libmpi.so.12"]}), "/opt/libmpi.so.12"),
    (verdicts.judge_h5py(ERROR), "libmpi"),
    (verdicts.judge_libraries(ERROR), "libmpi"),
    (verdicts.judge_nccl(TORCH, ERROR), "import"),
    (verdicts.judge_disk("/runs", 0.5), "/runs"),
    (verdicts.judge_launch("two ranks", {"error": "no answer within 60 s"}), "60 s"),
    (verdicts.judge_launch("two ranks", {"ranks": [(1, 1.0), (1, 1.0)]}), "only itself"),
    (verdicts.judge_launch("two ranks", {"ranks": [(2, 3.0)]}), "twice"),
    (verdicts.judge_launch("two ranks", {"ranks": [(2, 3.0), (2, 2.0)]}), "2.0"),
]

WARNING: list[tuple[Finding, str]] = [
    (verdicts.judge_gpu(TORCH, has_driver=True), "no GPU"),
    (verdicts.judge_gpu(TORCH | {"cuda": None}, has_driver=True), "without CUDA"),
    (verdicts.judge_nccl(TORCH | {"gpus": ["H100"]}, HOROVOD | {"nccl": False}), "host's memory"),
    (verdicts.judge_threads(2, "64"), "1 to 2"),
    (verdicts.judge_threads(2, "many"), "1 to 2"),
    (verdicts.judge_disk("/runs", 5.0), "/runs"),
    (verdicts.judge_shm(64), "64 MiB"),
    (verdicts.judge_shm(None), "not there"),
]


@pytest.mark.parametrize("finding", HEALTHY, ids=lambda finding: f"{finding.name}: {finding.detail}")
def test_what_is_in_order_is_ok_and_needs_no_mending(finding: Finding) -> None:
    assert (finding.status, finding.mend) == ("ok", None)


@pytest.mark.parametrize(
    ("finding", "status", "says"),
    [(finding, "fail", says) for finding, says in FAILING]
    + [(finding, "warn", says) for finding, says in WARNING],
    ids=lambda value: getattr(value, "detail", None),
)
def test_what_is_not_in_order_says_so_in_one_line_and_what_mends_it(
    finding: Finding, status: str, says: str
) -> None:
    assert finding.status == status
    assert says in finding.detail
    assert finding.mend
    assert "\n" not in finding.detail + finding.mend


def test_question_that_crashes_is_an_answer() -> None:
    assert "SIGSEGV" not in str(questions.ask("import json; print(json.dumps({'version': '1'}))"))
    assert questions.ask("print('{\"a\": 1}')") == {"a": 1}
    assert "no module named 'nothing'" in questions.ask("import nothing")["error"].lower()
    assert "error" in questions.ask("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert "error" in questions.ask("")


def test_question_that_hangs_ends_with_all_it_started(tmp_path: Path) -> None:
    child = tmp_path / "child"
    program = (
        "import subprocess, pathlib, time\n"
        f"pathlib.Path({str(child)!r}).write_text(str(subprocess.Popen(['sleep', '600']).pid))\n"
        "time.sleep(600)\n"
    )
    started = time.monotonic()
    answer = questions.ask(program, limit_s=2.0)
    assert "within 2 s" in answer["error"]
    assert time.monotonic() - started < 10
    assert has_ended(child.read_text())


def test_machine_without_mpirun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = verdicts.judge_mpirun(questions.ask_mpirun(), HOROVOD)
    assert finding.status == "fail"
    assert finding.mend and "openmpi-bin" in finding.mend
    assert (
        verdicts.judge_launch(
            "two ranks", questions.launch(questions.mpirun_command(questions.ask_mpirun()))
        ).status
        == "fail"
    )


def test_mpirun_that_does_not_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mpirun").write_text(
        "#!/bin/sh\necho 'error while loading shared libraries: libopen-rte.so.40' >&2\nexit 127\n"
    )
    (tmp_path / "mpirun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert "libopen-rte" in verdicts.judge_mpirun(questions.ask_mpirun(), HOROVOD).detail


def test_number_of_mpich_is_on_its_second_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mpirun").write_text("#!/bin/sh\necho 'HYDRA build details:\n    Version:      4.0.2'\n")
    (tmp_path / "mpirun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    mpich = MPI4PY | {"library": "MPICH Version:      4.0.2\nMPICH Release date: ..."}
    assert verdicts.judge_mpi4py(mpich, questions.ask_mpirun(), HOROVOD).status == "ok"
    assert verdicts.judge_mpi4py(MPI4PY, questions.ask_mpirun(), HOROVOD).status == "fail"


def test_launcher_that_hangs_is_stopped(tmp_path: Path) -> None:
    launcher = tmp_path / "mpirun"
    launcher.write_text("#!/bin/sh\nsleep 600\n")
    launcher.chmod(0o755)
    assert "within 1 s" in questions.launch([str(launcher)], limit_s=1.0)["error"]


def test_launcher_whose_ranks_do_not_see_each_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    launcher = tmp_path / "mpirun"
    launcher.write_text('#!/bin/sh\nshift 0\n"$@"\n"$@"\n')
    launcher.chmod(0o755)
    monkeypatch.setattr(questions, "TWO_RANKS", "print('size=1 sum=1.0')")
    assert "only itself" in verdicts.judge_launch("two ranks", questions.launch([str(launcher)])).detail


@pytest.mark.parametrize(
    ("num_gpus", "has_nccl", "launches"),
    [(0, True, []), (1, True, [1, 2]), (2, True, [2]), (8, True, [2]), (1, False, [2]), (2, False, [2])],
)
def test_gpus_are_tried_by_one_rank_each_and_a_single_one_also_alone(
    num_gpus: int, has_nccl: bool, launches: list[int]
) -> None:
    assert verdicts.gpu_launches(num_gpus, has_nccl) == launches


@pytest.mark.skipif(find_spec("horovod") is None, reason="horovod is not installed: run make setup")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("num_ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_ranks_of_a_gpu_say_which_way_their_tensors_travel(num_ranks: int) -> None:
    answer = questions.launch(questions.horovodrun_command(num_ranks), program=questions.GPU_RANKS)
    finding = verdicts.judge_gpu_launch(num_ranks, answer)
    assert finding.status == "ok", finding
    assert "tensors" in finding.detail


def test_another_torch_beside_horovod_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('torch is broken here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    findings = {finding.name: finding for finding in doctor.examine(launches=False)}
    for name in ("torch", "torchvision", "Horovod"):
        assert findings[name].status == "fail"
        assert "torch is broken here" in findings[name].detail
        assert findings[name].mend == "make setup"
    assert findings["h5py"].status == "ok"
    assert doctor.has_failed(list(findings.values()))


@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000", None), ("100000 100000", 1), ("50000 100000", 1), ("99900000 100000", None), ("?", None)],
)
def test_cores_of_a_container_are_its_share(tmp_path: Path, text: str, cores: int | None) -> None:
    (tmp_path / "cpu.max").write_text(text + "\n")
    everything = questions.count_cores(tmp_path / "no-such-folder")
    assert questions.count_cores(tmp_path) == (cores or everything)


def test_enclosing_job_is_not_joined() -> None:
    inside = {
        "OMPI_COMM_WORLD_SIZE": "4",
        "PMIX_RANK": "1",
        "HOROVOD_RANK": "1",
        "HOME": "/h",
        "OMPI_MCA_btl": "tcp",
    }
    kept = questions._launch_environment(inside)
    assert {"HOME", "OMPI_MCA_btl"} <= kept.keys()
    assert not {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "HOROVOD_RANK"} & kept.keys()


def test_table_shows_every_finding_and_its_mending() -> None:
    findings = [Finding("a [b]", "fail", "found [red]x[/]", "make setup"), Finding("c", "ok", "fine")]
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(doctor.render(findings))
    text = console.export_text()
    assert all(part in text for part in ("FAIL", "found [red]x[/]", "make setup", "fine"))


def test_dicts_hold_the_four_keys() -> None:
    expected: dict[str, Any] = {"name": "c", "status": "ok", "found": "fine", "mend": None}
    assert doctor.to_dicts([Finding("c", "ok", "fine")]) == [expected]


@pytest.mark.skipif(find_spec("horovod") is None, reason="horovod is not installed: run make setup")
@pytest.mark.skipif(shutil.which("mpirun") is None, reason="there is no mpirun here: run make setup")
@pytest.mark.timeout(300)
@pytest.mark.slow
def test_healthy_machine_has_no_failure() -> None:
    findings = doctor.examine()
    assert [finding for finding in findings if finding.status == "fail"] == []
    assert len(findings) == 16


def test_doctor_itself_imports_nothing_that_may_be_broken() -> None:
    names = ("torch", "horovod", "mpi4py", "cv2", "h5py")
    program = f"import sys, cxr_hvd.doctor; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
