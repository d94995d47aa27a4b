"""Experiments as a user types them: several set-ups trained, scored across sites, gone on with, compared."""

import json
from pathlib import Path

import numpy as np
import pytest

from cxr_hvd.errors import StudyFileError, UsageError
from cxr_hvd.experiment.plan import plan_experiment
from cxr_hvd.experiment.scores import NAME, read_scores
from cxr_hvd.experiment.variants import choose_variants
from cxr_hvd.study.layout import Split
from lab.launch import BIN, Finished, launch, need_horovod, run
from lab.study_files import write_study_file

need_horovod()

PROGRAM = str(BIN / "cxr-hvd")
SPLITS = (Split.TRAIN, Split.VALIDATE, Split.TEST)
CONFIG = """
experiment: D
sites: {{north: {{data: {0}/north.h5}}, south: {{ranks: {1}, data: {0}/south.h5}}}}
model: {{name: tiny, image_size: 32}}
training: {{epochs: 1, steps_per_epoch: {2}, batch_size: 4, precision: fp32}}
"""
LAUNCHER = "mpirun --allow-run-as-root --oversubscribe --bind-to none -np 2"


def ok(job: Finished) -> Finished:
    assert job.exit_code == 0, job.output
    return job


def write_sites(folder: Path, south_ranks: int = 1, num_steps: int = 2) -> Path:
    """Write two sites' study files and a config; return the config."""
    for seed, site in enumerate(("north", "south", "east")):
        write_study_file(folder / f"{site}.h5", num_studies=30, seed=seed, splits=SPLITS, site=site)
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(folder, south_ranks, num_steps))
    return path


def experiment(config: Path, out: Path, *words: str, limit_s: float = 240) -> Finished:
    names = [PROGRAM, "experiment", "--config", str(config), "--out", str(out), "--launcher", LAUNCHER]
    return run([*names, *words], limit_s)


@pytest.mark.slow
def test_scores_and_results_are_the_same_bit_for_bit_whatever_the_number_of_ranks(tmp_path: Path) -> None:
    config = write_sites(tmp_path, south_ranks=2)
    folder = tmp_path / "run"
    ok(launch(3, [PROGRAM, "train", str(config), "--run", str(folder)]))
    across = [PROGRAM, "evaluate", str(folder), "--pooled", "--outside", f"east={tmp_path / 'east.h5'}"]
    ok(run(across))
    alone = (folder / NAME).read_bytes()
    ok(launch(3, across))
    assert (folder / NAME).read_bytes() == alone

    scores = read_scores(folder / NAME)
    assert scores.origin.networks == ("north", "south", "averaged")
    assert (scores.origin.sites, scores.origin.outside) == (("north", "south"), ("east",))
    assert all(np.isfinite(found).all() and len(found) for found in scores.probabilities.values())
    assert (folder / NAME).stat().st_mode & 0o777 == 0o600
    assert b"patient" not in alone.replace(b"patients_N", b"")
    assert not list(folder.glob(".*"))

    # Each site by its own ranks, and all sites by one.
    results = [folder / site / "results.json" for site in ("north", "south")]
    ok(launch(3, [PROGRAM, "evaluate", str(folder)], "gloo"))
    by_three = [path.read_bytes() for path in results]
    ok(run([PROGRAM, "evaluate", str(folder)]))
    assert [path.read_bytes() for path in results] == by_three
    own = scores.probabilities["south", "south", "test"]
    truth = scores.truth["south", "test"]
    right = (own >= 0.5) == truth.targets_NL
    assert truth.known_NL.all()
    assert json.loads(by_three[1])["mean_accuracy"] == pytest.approx(right.mean())


@pytest.mark.slow
def test_an_experiment_is_trained_scored_and_reported_and_goes_on_where_it_stood(tmp_path: Path) -> None:
    config, out = write_sites(tmp_path), tmp_path / "out"
    told = ok(experiment(config, out, "C", "D", "--seeds", "1"))
    assert told.lines("2 runs of 2 steps each") and told.lines("2/2  D, seed 1: done")
    before = {path: path.read_bytes() for path in out.glob("*/seed-1/scores.safetensors")}
    assert len(before) == 2
    assert not list(out.glob("*/*/*/checkpoints/*/optimizer-*"))  # of no use any more
    assert (out / "D" / "config.yaml").is_file()

    # Nothing is done twice; the folder takes no other experiment.
    again = ok(experiment(config, out, "C", "D", "--seeds", "1"))
    assert not again.lines("done in")
    assert {path: path.read_bytes() for path in before} == before
    other = experiment(config, out, "C", "D", "--seeds", "1", "--set", "training.learning_rate=0.1")
    assert other.exit_code == 1 and other.lines("are of another config"), other.output

    # Scored runs and set-ups can be typed again: the commands are in the report.
    told = ok(run([PROGRAM, "report", str(out), "--resamples", "100"]))
    page = (out / "report.html").read_text()
    assert told.lines("report.html")
    assert f"cxr-hvd train {out}/D/config.yaml --run {out}/D/seed-1" in page.replace("\n", " ")
    compared = json.loads((out / "comparison.json").read_text())
    assert {(each["a"], each["b"]) for each in compared["differences"]} == {("D", "C")}
    assert [each["name"] for each in compared["experiments"]] == ["C", "D"]
    c, d = compared["experiments"]
    assert d["bytes_per_run"] < c["bytes_per_run"]


def test_what_cannot_be_planned_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    config, out, variants = write_sites(tmp_path), tmp_path / "out", tmp_path / "variants.yaml"
    variants.write_text("longer: {experiment: D, training.epochs: 3}\n")
    d, longer = choose_variants(["D", "longer"], variants)
    plan = plan_experiment(config, [], [d], 2, out, {"east": tmp_path / "east.h5"})
    assert [planned.name for planned in plan.runs] == ["D, seed 1", "D, seed 2"]
    assert plan.num_steps == 2 and set(plan.data_sha256) == {"north", "south", "east"}
    with pytest.raises(UsageError, match=r"all variants have to train as long, found \[2, 6\] steps"):
        plan_experiment(config, [], [d, longer], 1, out)
    with pytest.raises(StudyFileError, match="no study file here"):
        plan_experiment(config, ["sites.south.data=/nowhere.h5"], [d], 1, out)
    no_test = write_study_file(tmp_path / "no-test.h5", splits=(Split.TRAIN,), site="south")
    with pytest.raises(StudyFileError, match="found no TEST; draw some with --test N"):
        plan_experiment(config, [f"sites.south.data={no_test}"], [d], 1, out)
    with pytest.raises(UsageError, match="for several sites, found 1"):
        plan_experiment(config, ["sites={north: {data: " + str(tmp_path / "north.h5") + "}}"], [d], 1, out)
    assert not out.exists()
