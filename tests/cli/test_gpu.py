"""`make gpu` without a GPU: its dry run on the CPU, the folder for a machine without a network, and its guards."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.guarded import Part, Skipped, run_parts, work
from lab.launch import need_horovod

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "tools" / "gpu_bundle.sh"
GPU = ROOT / "tools" / "gpu.sh"
CHECKS = {
    "collectives": "pass",
    "exchanges": "pass",
    "one-gpu-for-two": "no GPU",
    "cpu-build": "dry run: nothing was built",
    "short-wire": "pass",
    "layout": "pass",
    "waits": "no GPU",
    "runs": "pass",
    "loader": "pass",
    "speed": "pass",
}
"""The ten checks: those that run on a CPU, and why the others do not."""
FIGURES = {
    "step-bf16-4": {"engine_ms", "bare_ms", "studies_per_s", "engine_to_bare", "peak_gb"},
    "step-fp32-4": {"engine_ms", "bare_ms", "studies_per_s", "engine_to_bare", "peak_gb"},
    "kernels-bf16-4": {"kernels", "copies", "busy_ms", "step_ms", "busy_share", "shares", "longest"},
    "kernels-fp32-4": {"kernels", "copies", "busy_ms", "step_ms", "busy_share", "shares", "longest"},
    "cuda-graphs-4": {"bare_to_candidate", "pays", "is_real", "prepare_s", "logits_differ_by"},
    "compile-4": {"bare_to_candidate", "pays", "is_real", "prepare_s", "logits_differ_by"},
    "run-4": {"studies_per_s", "waiting_for_data", "loader_studies_per_s", "threads"},
    "layout": {"nchw_to_channels_last", "channels_last_ms"},
    "first-convolution": {"all_to_occupied", "all_ms", "occupied_ms"},
}
MACHINE = {"gpus", "gpu_memory_gb", "driver", "nvcc", "nccl", "cuda_of_torch", "processor", "python", "packages"}
NOT_IN_A_BUNDLE = ("torch-", "torchvision-", "scipy-", "numpy-", "nvidia_", "opencv")


def run_script(*words: str | Path, limit_s: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script with one thread a process."""
    return subprocess.run(
        [*map(str, words)],
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.mark.slow
def test_the_dry_run_lists_ten_checks_and_has_all_figures(tmp_path: Path) -> None:
    need_horovod()
    out = tmp_path / "gpu.json"
    done = run_script(GPU, "--dry-run", "--out", out, limit_s=500)
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(out.read_text())
    assert content["schema"] == 1
    assert content["is_dry_run"] is True
    assert content["machine"].keys() >= MACHINE
    assert content["stages"].keys() == {"build", "measure"}

    checks = content["checks"]
    assert {name: checks[name]["reason"] for name in CHECKS if checks[name]["verdict"] == "skipped"} == {
        name: reason for name, reason in CHECKS.items() if reason != "pass"
    }
    assert list(checks) == list(CHECKS)
    assert all_passed_or_skipped(checks) == []
    ways = checks["exchanges"]["figures"]["ways"]
    assert ways.keys() >= {
        f"{what} {wire}" for what in ("weights", "gradients") for wire in ("float32", "bfloat16")
    }

    measurements = content["measurements"]
    assert all_passed_or_skipped(measurements) == []
    for name, figures in FIGURES.items():
        assert measurements[name]["figures"].keys() == figures, name
    assert measurements["step-bf16-4"]["figures"]["studies_per_s"] > 0
    assert measurements["kernels-bf16-4"]["figures"]["kernels"] > 500
    assert content["conclusions"]["candidates"] == dict.fromkeys(
        ("cuda-graphs", "compile"), "not measured: no setting"
    )


def all_passed_or_skipped(records: dict[str, Any]) -> list[str]:
    """Return what failed, with the reason; every record has to say how it ended and how long it took."""
    for name, record in records.items():
        assert record["verdict"] in ("pass", "fail", "skipped"), name
        assert record["seconds"] >= 0, name
        assert record["verdict"] == "pass" or record["reason"], f"{name}: {record['verdict']} without a reason"
    return [f"{name}: {record['reason']}" for name, record in records.items() if record["verdict"] == "fail"]


def fail_at_once() -> dict[str, Any]:
    raise ValueError("of no use")


def skip_at_once() -> dict[str, Any]:
    raise Skipped("not here")


def hang_forever() -> dict[str, Any]:
    time.sleep(600)
    return {}


def crash_at_once() -> dict[str, Any]:
    os._exit(7)


PARTS = {
    "works": Part("works", lambda: {"one": 1}),
    "fails": Part("fails", fail_at_once),
    "hangs": Part("hangs", hang_forever, limit_s=0.5),
    "is skipped": Part("is skipped", skip_at_once),
    "crashes": Part("crashes", crash_at_once),
    "works, too": Part("works, too", lambda: {"two": 2}),
}


def worker_main() -> None:
    """Be a worker; `python -m tests.cli.test_gpu` is what `run_parts` starts."""
    words = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    names, deadline = words["--parts"].split(","), float(words["--deadline"])
    parts = {name.replace(", ", " and "): part for name, part in PARTS.items()}
    work(parts, names, Path(words["--worker"]), deadline, is_fragile=words.get("--fragile") == "yes")


@pytest.mark.parametrize("fragile", ["yes", "no"])
def test_a_part_that_fails_hangs_or_crashes_stops_no_other(tmp_path: Path, fragile: str) -> None:
    limits = {name.replace(", ", " and "): part.limit_s for name, part in PARTS.items()}
    noted: list[str] = []
    deadline = time.monotonic() + 300
    words = ["--fragile", fragile]
    records = run_parts(
        "tests.cli.test_gpu", limits, words, tmp_path, deadline, lambda name, _: noted.append(name)
    )
    verdicts = {name: record["verdict"] for name, record in records.items()}
    assert verdicts == {
        "works": "pass",
        "fails": "fail",
        "hangs": "fail",
        "is skipped": "skipped",
        "crashes": "fail",
        "works and too": "pass",
    }
    assert noted == list(limits)
    assert records["works and too"]["figures"] == {"two": 2}
    assert records["fails"]["reason"] == "ValueError: of no use"
    assert "Timeout (" in records["hangs"]["reason"]
    assert "status 7" in records["crashes"]["reason"]


def test_parts_without_time_are_said_to_be_left_out(tmp_path: Path) -> None:
    records = run_parts("tests.cli.test_gpu", {"works": 60.0}, [], tmp_path, time.monotonic(), lambda *_: None)
    assert records["works"]["verdict"] == "skipped"
    assert records["works"]["reason"] == "no time was left in this stage"


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        (BUNDLE, [], "expected a folder to fill"),
        (BUNDLE, ["a", "b"], "expected one folder, found a and b"),
        (BUNDLE, ["a", "--python", "2.7"], "--python: expected a version such as 3.12, found 2.7"),
        (BUNDLE, ["a", "--torch", "2.8"], "--torch: 2.9 or newer is needed, found 2.8"),
        (BUNDLE, ["a", "--machine", "sparc"], "--machine: expected x86_64 or aarch64, found sparc"),
        (GPU, [], "--bundle is missing"),
        (GPU, ["--bundle", "/nowhere"], "was not filled by tools/gpu_bundle.sh"),
        (GPU, ["--dry-run", "--stage", "train"], "--stage: expected build, measure or all, found train"),
        (GPU, ["--colour"], "unknown option '--colour'"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    script: Path, words: list[str], message: str, tmp_path: Path
) -> None:
    done = subprocess.run([script, *words], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_scripts_are_shellcheck_clean() -> None:
    done = subprocess.run(["shellcheck", GPU, BUNDLE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_bundle_for_another_python_is_refused(tmp_path: Path) -> None:
    (tmp_path / "made-for.txt").write_text("python=3.9\ntorch=2.11\nmachine=x86_64\n")
    done = run_script(GPU, "--bundle", tmp_path, "--python", sys.executable, "--work", tmp_path / "work")
    assert done.returncode == 1
    assert "is for Python 3.9" in done.stderr
    assert done.stderr.count("\n") == 1


def test_every_bundled_package_is_tested_or_a_tool_and_none_is_of_torch() -> None:
    script = f"source '{BUNDLE}'; bundled_requirements"
    lines = run_script("bash", "-c", script).stdout.split()
    unpinned = {line for line in lines if "==" not in line}
    assert unpinned <= {"pip", "ninja"}
    assert not [line for line in lines if line.startswith(("torch", "nvidia", "scipy", "numpy"))]


@pytest.mark.slow
@pytest.mark.night
def test_a_bundle_is_small_and_brings_all_that_is_imported(tmp_path: Path) -> None:
    """The folder for Python 3.12 is whole; the one for this Python lets a bare environment import and run."""
    for version in ("3.12", f"3.{sys.version_info.minor}"):
        folder = tmp_path / version
        done = run_script(BUNDLE, folder, "--python", version, "--torch", "2.11", limit_s=500)
        assert done.returncode == 0, done.stdout + done.stderr
        files = [*folder.glob("*.whl"), *folder.glob("*.tar.gz")]
        assert sum(file.stat().st_size for file in files) < 20_000_000
        assert not [file.name for file in files if file.name.startswith(NOT_IN_A_BUNDLE)]
    base = bare_python(tmp_path / "base")
    options = f"parse_gpu_options --bundle '{folder}' --python '{base}'"
    script = f"source '{GPU}'; {options}; STATE='{tmp_path}'; make_environment '{tmp_path}/venv'"
    installed = run_script("bash", "-c", script, limit_s=300)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    modules = "cxr_hvd.training.train, cxr_hvd.partial.averager, cxr_hvd.deploy.predict, preprocess.cli, bench.gpu"
    script = f"import {modules}; from cxr_hvd.cli.app import main; main()"
    shown = run_script(tmp_path / "venv/bin/python", "-c", script, "--help", PYTHONPATH="", limit_s=120)
    assert shown.returncode == 0, shown.stderr
    assert "train" in shown.stdout


def bare_python(folder: Path) -> Path:
    """Make a Python that has what a machine with a GPU is expected to have, and nothing else; return its path."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    there = Path(next(path for path in sys.path if path.endswith("site-packages")))
    here = next(folder.glob("lib/python3.*/site-packages"))
    for name in EXPECTED_THERE:
        for path in there.glob(f"{name}*"):
            if not (here / path.name).exists():
                (here / path.name).symlink_to(path)
    return folder / "bin" / "python"


EXPECTED_THERE = (
    *("torch", "functorch", "triton", "nvidia", "cuda", "filelock", "sympy", "mpmath", "networkx", "fsspec"),
    *("numpy", "scipy", "sklearn", "scikit_learn", "joblib", "threadpoolctl", "narwhals", "h5py", "cv2", "opencv"),
    *("PIL", "pillow", "tensorboard", "matplotlib", "dateutil", "kiwisolver", "contourpy", "cycler", "pyparsing"),
)


if __name__ == "__main__":
    worker_main()
