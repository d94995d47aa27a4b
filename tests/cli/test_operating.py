"""What an operator types beside the main job: a trial, a profile, a look at a batch or at a run, going on."""

import gzip
import json
from pathlib import Path

import cv2
import pytest

from cxr_hvd.study.layout import Split
from lab.launch import BIN, PROJECT, Finished, launch, need_horovod, run
from lab.study_files import write_study_file
from tests.helpers.commands import cxr_here

need_horovod()

CXR = str(BIN / "cxr-hvd")
CONFIG = str(PROJECT / "jobs" / "configs" / "D.yaml")
SITES = ("chexpert", "mimic")
SPLITS = (Split.TRAIN, Split.TRAIN, Split.VALIDATE, Split.TEST)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for seed, site in enumerate(SITES):
        write_study_file(folder / f"{site}.h5", 48, seed, SPLITS, site=site)
    return folder


def settings(data: Path, *more: str) -> list[str]:
    quick = ["model.name=tiny", "model.image_size=32", "training.batch_size=4", "training.precision=fp32", *more]
    return [
        word for each in [*quick, *[f"sites.{s}.data={data / s}.h5" for s in SITES]] for word in ("--set", each)
    ]


def ok(job: Finished) -> Finished:
    assert job.exit_code == 0, job.output
    return job


@pytest.mark.slow
def test_a_trial_runs_every_phase_without_data_and_leaves_nothing(tmp_path: Path) -> None:
    nowhere = settings(tmp_path / "no data here")
    told = ok(launch(2, [CXR, "train", CONFIG, "--smoke", "--run", str(tmp_path / "run"), *nowhere]))
    assert told.lines("smoke: training, validation, checkpoint, resume and evaluation work here")
    assert told.lines("step 2/2") and told.lines("validation after step 2")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_profile_says_where_the_time_went_and_a_look_says_how_the_run_is(data: Path, tmp_path: Path) -> None:
    own = tmp_path / "run"
    words = settings(data, "training.epochs=3", "training.steps_per_epoch=5")
    told = ok(launch(2, [CXR, "train", CONFIG, "--profile", "--run", str(own), *words]))
    assert told.lines("Where steps 4 to 13 of rank 0 went")
    for part in ("forward", "backward", "averaging", "optimizer"):
        assert told.lines(f"│ {part} "), part
    with gzip.open(own / "mimic" / "profile" / "trace-rank1.json.gz") as trace:
        names = {event.get("name") for event in json.load(trace)["traceEvents"]}
    assert {"forward", "backward", "exchange", "status", "update"} <= names
    timeline = (own / "chexpert" / "profile" / "horovod-timeline.json").read_text()
    assert "weights.all." in timeline and "classifier" not in timeline

    picture = tmp_path / "curves.png"
    told = ok(run([CXR, "inspect-run", str(own), "--out", str(picture)]))
    assert told.lines("step 15 of 15, 100.0%") and told.lines("Step 15 is the newest that all sites hold whole")
    assert cv2.imread(str(picture)).std() > 10
    view = json.loads(ok(run([CXR, "inspect-run", str(own), "--json"])).output)
    assert [site["site"] for site in view["sites"]] == list(SITES)


def test_a_batch_is_shown_as_the_network_sees_it(data: Path, tmp_path: Path) -> None:
    picture = tmp_path / "batch.png"
    ok(cxr_here("show-batch", CONFIG, "--site", "mimic", "--out", picture, *settings(data)))
    assert cv2.imread(str(picture)).std() > 10
    told = cxr_here("show-batch", CONFIG, "--site", "mimik", "--out", picture, *settings(data))
    assert told.exit_code == 2 and told.lines("did you mean 'mimic'?")


@pytest.mark.slow
def test_going_on_with_nothing_is_said_and_starting_with_auto_is_not(data: Path, tmp_path: Path) -> None:
    command = [CXR, "train", CONFIG, "--site", "mimic", "--run", str(tmp_path / "run"), *settings(data)]
    command += ["--set", "training.max_steps=2"]
    told = run([*command, "--resume", "latest"])
    assert told.exit_code == 2 and told.lines("nothing to resume; start with --resume auto")
    ok(run([*command, "--resume", "auto"]))
    assert ok(run([*command, "--resume", "auto"])).lines("trained 2 steps")
    assert cxr_here(*command[1:], "--resume", "auto", "--overwrite").exit_code == 2
    assert cxr_here(*command[1:], "--time-limit", "soon").lines("--time-limit soon: expected 3600")
    for limit in ("nan", "inf", "0"):
        refused = cxr_here(*command[1:], "--stall-limit", limit)
        assert refused.exit_code == 2 and refused.lines("--stall-limit")


@pytest.mark.slow
def test_a_run_is_supervised_from_outside_of_a_launcher_only(data: Path, tmp_path: Path) -> None:
    command = [CXR, "train", CONFIG, "--run", str(tmp_path / "run"), "--supervise", "1", *settings(data)]
    told = launch(2, command)
    assert told.exit_code == 2 and told.lines("--supervise starts the launcher itself: run it without one")
    told = ok(run([*command, "--site", "mimic", "--set", "training.max_steps=2"]))
    assert told.lines("supervise: start 1 of 2") and told.lines("trained 2 steps")
