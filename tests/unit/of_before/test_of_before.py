"""Files of an earlier version are read by this one: study file, ledger, checkpoint, run folder, comparison."""

import json
import math
import tarfile
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from cxr_hvd.experiment.comparison_file import parse_comparison
from cxr_hvd.experiment.scores import read_scores
from cxr_hvd.report.page import write_report
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile
from lab.launch import BIN, Finished, run

FILES = Path(__file__).with_name("files.tar.xz")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the earlier version's files."""
    with tarfile.open(FILES) as files:
        if hasattr(tarfile, "data_filter"):  # not in Python 3.11.2, which is Debian 12's
            files.extraction_filter = tarfile.data_filter
        files.extractall(tmp_path)
    return tmp_path


def succeed(program: str, *words: object) -> Finished:
    job = run([str(BIN / program), *map(str, words)])
    assert job.exit_code == 0, job.output
    return job


def rows(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_no_file_names_the_machine_that_made_it(folder: Path) -> None:
    """Neither a folder of a user, nor anything else that stands outside of the made-up hospitals' disk."""
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".h5":
            content = path.read_bytes()
            assert not [word for word in (b"/home/", b"/root", b"/tmp", b"/work") if word in content], path


def test_the_study_file_opens_and_verifies(folder: Path) -> None:
    succeed("cxr-preprocess", "verify", folder / "north.h5")
    file = StudyFile(folder / "north.h5")
    assert (file.header.site, file.header.image_size, len(file.num_images)) == ("north", 32, 12)
    assert len(file.indices(Split.TRAIN)) == 4
    assert [file.images(study).shape for study in range(3)] == [(2, 32, 32), (1, 32, 32), (1, 32, 32)]
    file.close()


@pytest.mark.parametrize("variant", ["A", "D"])
def test_the_ledger_verifies(folder: Path, variant: str) -> None:
    succeed("cxr-hvd", "ledger", "verify", folder / "runs" / "experiment" / variant / "seed-1")


def test_a_changed_ledger_does_not(folder: Path) -> None:
    path = folder / "runs/experiment/D/seed-1/north/ledger.jsonl"
    path.write_text(path.read_text().replace('"bytes":', '"bytes":1', 1))
    job = run([str(BIN / "cxr-hvd"), "ledger", "verify", str(folder / "runs/experiment/D/seed-1")])
    assert job.exit_code == 1, job.output


def test_inspect_run_reads_the_run(folder: Path) -> None:
    job = succeed("cxr-hvd", "inspect-run", folder / "runs/experiment/D/seed-1", "--json")
    shown = json.loads(job.output)
    assert {site["site"] for site in shown["sites"]} == {"north", "south"}


@pytest.mark.slow
def test_the_checkpoint_resumes(folder: Path) -> None:
    """Two steps of the earlier version, and two of this one, come to the losses of four of the earlier one."""
    site = folder / "runs" / "alone" / "north"
    before, aurocs = rows(site / "metrics.jsonl"), rows(site / "validation.jsonl")
    weights = load_file(site / "checkpoints" / "latest" / "private.safetensors")
    study_file = f"sites.north.data={folder / 'north.h5'}"
    words = ("--site", "north", "--run", folder / "runs" / "alone", "--resume", "latest", "--set", study_file)
    succeed("cxr-hvd", "train", folder / "config.yaml", *words)
    after = rows(site / "metrics.jsonl")
    assert [row["step"] for row in after] == [0, 1, 2, 3]
    for old, new in zip(before, after, strict=True):
        assert math.isclose(old["loss"], new["loss"], rel_tol=1e-3)
    assert len(rows(site / "validation.jsonl")) == len(aurocs)
    assert (site / "checkpoints" / "latest").readlink() == Path("step-4")
    assert load_file(site / "checkpoints" / "latest" / "private.safetensors").keys() == weights.keys()


def test_scores_and_comparison_are_read(folder: Path) -> None:
    experiment = folder / "runs" / "experiment"
    scores = read_scores(experiment / "D" / "seed-1" / "scores.safetensors")
    assert scores.origin.networks == ("north", "south", "averaged")
    page = write_report(parse_comparison((experiment / "comparison.json").read_bytes()), folder / "report")
    assert "north" in page.read_text()
