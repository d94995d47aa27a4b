"""Installed without Horovod, all works that needs one rank: in an environment that has everything else."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from cxr_hvd.doctor import verdicts
from cxr_hvd.doctor.verdicts import Finding
from lab.launch import PROJECT, environment
from lab.study_files import write_study_file

BROKEN = Finding("torch", "fail", "broken", verdicts.SETUP)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with all packages of this one but Horovod."""
    root = tmp_path_factory.mktemp("bare")
    packages = root / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    packages.mkdir(parents=True)
    (root / "bin").mkdir()
    (root / "bin" / "python").symlink_to(Path(sys.executable).resolve())
    (root / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).resolve().parent}\n")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith(("horovod", "__editable__", "cxr_hvd", "__pycache__")):
            (packages / path.name).symlink_to(path)
    for name in ("cxr_hvd", "preprocess"):
        (packages / name).symlink_to(PROJECT / name)
    return root / "bin" / "python"


def run(python: Path, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-c", "from cxr_hvd.cli.app import main; main()", *map(str, words)]
    kept = environment(COLUMNS="200", **variables)
    del kept["PYTHONPATH"]
    return subprocess.run(
        command, env=kept, cwd=python.parents[1], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.slow
def test_one_site_trains_is_judged_and_looked_at(python: Path, tmp_path: Path) -> None:
    absent = subprocess.run([python, "-c", "import horovod"], capture_output=True, text=True, check=False)
    assert "No module named 'horovod'" in absent.stderr
    data = write_study_file(tmp_path / "north.h5", 8, site="north")
    config = tmp_path / "A.yaml"
    config.write_text(
        f"experiment: A\nsites: {{north: {{data: {data}}}, south: {{data: south.h5}}}}\n"
        "model: {image_size: 32}\ntraining: {batch_size: 2, max_steps: 1, precision: fp32}\n"
    )
    trained = run(python, "train", config, "--site", "north", "--run", tmp_path / "run")
    assert trained.returncode == 0 and "trained 1 steps" in trained.stdout, trained.stderr
    packages = json.loads((tmp_path / "run" / "north" / "environment.json").read_text())["packages"]
    assert packages["horovod"] == "not installed" and packages["torch"][0].isdigit()
    for words in (
        ["plan", config],
        ["evaluate", tmp_path / "run"],
        ["inspect-run", tmp_path / "run"],
        ["ledger", "verify", tmp_path / "run"],
    ):
        done = run(python, *words)
        assert done.returncode == 0 and not done.stderr, (words, done.stdout, done.stderr)
    several = run(python, "train", config, "--run", tmp_path / "both")
    assert several.returncode == 1 and "train one site alone with --site NAME" in several.stderr
    assert several.stderr.count("\n") == 1


def test_a_horovod_that_does_not_import_is_told_in_one_line(python: Path, tmp_path: Path) -> None:
    (tmp_path / "horovod").mkdir()
    (tmp_path / "horovod" / "__init__.py").write_text("raise ImportError('libmpi.so.40: cannot open')")
    program = "from cxr_hvd.errors import reported\nfrom cxr_hvd.comm.start import joined_job\n"
    program += "with reported('cxr-hvd'), joined_job('cxr-hvd'): pass"
    done = subprocess.run(
        [python, "-c", program],
        env=environment(PYTHONPATH=f"{tmp_path}:{PROJECT}", OMPI_COMM_WORLD_SIZE="2"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and done.stderr.startswith("cxr-hvd: error: expected Horovod")
    assert "libmpi.so.40" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_doctor_finds_no_fault_in_it(python: Path) -> None:
    done = run(python, "doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 0, findings
    assert findings["Horovod"]["status"] == "warn" and "--site" in findings["Horovod"]["found"]
    assert not any(name.startswith("two ranks") for name in findings)


@pytest.mark.parametrize("name", [*verdicts.WITHOUT_MAKEFILE, "NCCL", "two ranks, mpirun"])
def test_without_a_makefile_nothing_is_mended_by_one(name: str) -> None:
    judged = Finding(name, "fail", "broken", verdicts.MPI_PACKAGES)
    [fitted] = verdicts.fit_to_installation([judged], has_makefile=False, has_horovod=True)
    assert (fitted.mend and not fitted.mend.startswith(("make", "tools"))) or "clone of the sources" in str(
        fitted.mend
    )
    assert verdicts.fit_to_installation([judged], has_makefile=True, has_horovod=True) == [judged]
    asks_for_space = Finding("disk", "warn", "full", "du -xh")
    assert verdicts.fit_to_installation([asks_for_space], has_makefile=False, has_horovod=True) == [asks_for_space]


def test_what_one_rank_needs_is_a_fault_all_the_same() -> None:
    missing = {"error": f"ModuleNotFoundError: {verdicts.NO_HOROVOD} (exit status 1)"}
    several = [
        verdicts.judge_horovod(missing),
        verdicts.judge_nccl({}, missing),
        verdicts.judge_mpirun(missing, missing),
    ]
    fitted = verdicts.fit_to_installation([*several, BROKEN], has_makefile=True, has_horovod=False)
    assert [finding.status for finding in fitted] == ["warn", "warn", "warn", "fail"]
