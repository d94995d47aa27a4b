"""The demo's script, with programs that only write down what they are asked: names, files and what is printed."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from lab.launch import PROJECT

STUB = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >> "$CALLS"
while [ $# -gt 0 ]; do if [ "$1" = --out ]; then touch "$2"; fi; shift; done
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the script, its configs, and programs that write down how they are called."""
    project = tmp_path / "project"
    (project / "jobs").mkdir(parents=True)
    shutil.copy(PROJECT / "jobs" / "demo.sh", project / "jobs")
    shutil.copytree(PROJECT / "jobs" / "configs", project / "jobs" / "configs")
    (project / "bin").mkdir()
    for name in ("cxr-preprocess", "cxr-hvd", "mpirun", "horovodrun"):
        (project / "bin" / name).write_text(STUB)
        (project / "bin" / name).chmod(0o755)
    return project


def demo(project: Path, data: Path | str = "") -> subprocess.CompletedProcess[str]:
    variables = {"PATH": f"{project / 'bin'}:/usr/bin:/bin", "CALLS": str(project / "calls"), "DATA": str(data)}
    return subprocess.run(
        ["bash", "jobs/demo.sh"], cwd=project, env=variables, capture_output=True, text=True, check=False
    )


def hospitals(folder: Path, first: str, second: str) -> Path:
    (folder / first / "CheXpert-v1.0-small").mkdir(parents=True)
    (folder / second / "mimic-cxr-jpg").mkdir(parents=True)
    (folder / second / "mimic-cxr-jpg" / "mimic-cxr-2.0.0-metadata.csv.gz").touch()
    return folder


def test_ranks_are_started_by_train_itself_and_no_codes_go_into_a_pipe(project: Path) -> None:
    done = demo(project)
    assert done.returncode == 0 and "\033" not in done.stdout + done.stderr
    calls = (project / "calls").read_text().splitlines()
    assert any(call.startswith("cxr-hvd train jobs/configs/demo.yaml --run runs/demo") for call in calls)
    assert "cxr-hvd evaluate runs/demo" in calls  # one process writes the tables: no launcher cuts their lines
    assert not any("horovodrun" in call for call in calls)


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        ("charite", "st mary's", ["charite", "st-mary-s"]),
        ("site-nih", "site-guangzhou", ["nih", "guangzhou"]),
        ("no", "010", ["no", "010"]),
    ],
)
def test_hospitals_are_called_as_their_folders_are(
    project: Path, tmp_path: Path, first: str, second: str, names: list[str]
) -> None:
    done = demo(project, hospitals(tmp_path / "data", first, second))
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load((project / "runs/demo-data/demo-real.yaml").read_text())
    assert list(config["sites"]) == names
    assert [site["data"] for site in config["sites"].values()] == [f"runs/demo-data/{name}.h5" for name in names]
    calls = (project / "calls").read_text()
    assert all(f"--out runs/demo-data/{name}.h5 --site {name} " in calls for name in names)
    assert "cxr-hvd train runs/demo-data/demo-real.yaml" in calls


def test_a_study_file_of_another_hospital_is_not_taken_for_this_one(project: Path, tmp_path: Path) -> None:
    assert demo(project, hospitals(tmp_path / "a", "north", "south")).returncode == 0
    assert demo(project, tmp_path / "a").returncode == 0
    done = demo(project, hospitals(tmp_path / "b", "north", "south"))
    assert done.returncode == 1 and "north.h5 was made from" in done.stderr


def test_folders_that_name_no_two_hospitals_are_refused(project: Path, tmp_path: Path) -> None:
    done = demo(project, hospitals(tmp_path / "data", "same", "same"))
    assert done.returncode == 1 and "found 'same' and 'same'" in done.stderr
    done = demo(project, tmp_path / "project")
    assert done.returncode == 1 and "expected a folder CheXpert-v1.0*" in done.stderr
