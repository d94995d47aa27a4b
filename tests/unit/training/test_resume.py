"""A run that goes on: what may change when it does, what is said of it, and that a run can be made longer."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from cxr_hvd.comm.contract import flat_items
from cxr_hvd.comm.job import Job
from cxr_hvd.comm.local import LocalComm
from cxr_hvd.comm.sites import Topology
from cxr_hvd.config.file import parse_config
from cxr_hvd.config.schema import Config
from cxr_hvd.errors import ConfigError
from cxr_hvd.training.checkpoint.writer import CheckpointWriter
from cxr_hvd.training.open_run import MAY_CHANGE, changed_settings, check_length, describe_changes
from cxr_hvd.training.run_folder import RunFolder
from cxr_hvd.training.train import LaunchOptions, train
from lab.study_files import write_study_file

GO_ON = LaunchOptions(resume="auto")


def a_config(data: Path | str = "x", **more: Any) -> Config:
    """Experiment A at one site, 32 pixels, one step an epoch."""
    training = {
        "batch_size": 2,
        "steps_per_epoch": 1,
        "precision": "fp32",
        "epochs": 1,
        **more.pop("training", {}),
    }
    tree = {"experiment": "A", "sites": {"north": {"data": str(data), **more.pop("north", {})}}}
    return parse_config({**tree, "model": {"image_size": 32}, **more, "training": training}, "test")


def a_run_of(config: Config, folder: Path) -> RunFolder:
    """Return a folder as a run with one checkpoint leaves it, as far as its config goes."""
    run = RunFolder(folder, "north")
    run.open_new(overwrite=False)
    run.write_record("config.yaml", config.model_dump(mode="json"))
    run.checkpoint(3).mkdir()
    return run


REFUSED: dict[str, dict[str, Any]] = {
    "sites.north.ranks was 1 and is 2 now": {"north": {"ranks": 2}},
    "seed was 1 and is 2 now": {"seed": 2},
    "training.batch_size was 2 and is 4 now": {"training": {"batch_size": 4}},
    'training.schedule was "one-cycle" and is "cosine" now': {"training": {"schedule": "cosine"}},
    "sharing.every was 1 and is 2 now": {"sharing": {"every": 2}},
    'labels.uncertain.Edema was not there and is "ones" now': {"labels": {"uncertain": {"Edema": "ones"}}},
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_would_make_it_another_run_is_said_with_both_values(said: str, tmp_path: Path) -> None:
    folder = a_run_of(a_config(), tmp_path)
    with pytest.raises(ConfigError) as caught:
        changed_settings(folder, a_config(**REFUSED[said]))
    assert said in str(caught.value) and "backup" not in str(caught.value)
    assert "what may change: training.epochs" in str(caught.value) and "\n" not in str(caught.value)


def test_a_site_more_or_less_is_said(tmp_path: Path) -> None:
    folder = a_run_of(a_config(), tmp_path)
    two = a_config().model_copy(update={"sites": {**a_config().sites, "south": a_config().sites["north"]}})
    with pytest.raises(ConfigError, match=r"sites\.south\.ranks was not there and is 1 now"):
        changed_settings(folder, two)


def test_every_other_value_may_change_and_is_told(tmp_path: Path) -> None:
    folder = a_run_of(a_config(), tmp_path)
    changed = a_config(
        training={"epochs": 7, "max_steps": 5, "device": "cpu", "on_nonfinite": "skip"},
        validation={"every_epochs": 2, "patience": 3, "min_delta": 0.5},
        checkpoints={"every_steps": 4, "keep": 3},
        loader={"threads": 2, "prefetch": 1},
        sharing={"evaluate_private": True},
    )
    told = changed_settings(folder, changed)
    assert set(told) == set(MAY_CHANGE) and told["training.epochs"] == ("1", "7")
    assert {f"config.{name}" for name in MAY_CHANGE} <= flat_items(changed.shared_part(), "config").keys()
    assert changed_settings(folder, a_config("elsewhere")) == {}


def test_a_run_without_a_checkpoint_is_started_with_any_config(tmp_path: Path) -> None:
    folder = a_run_of(a_config(), tmp_path)
    folder.checkpoint(3).rmdir()
    assert changed_settings(folder, a_config(seed=2)) == {}


def tensors(folder: RunFolder) -> dict[str, bytes]:
    """Return all tensors of the latest checkpoint; its files also say the config's digest, which has changed."""
    files = {path.name: load_file(path) for path in (folder.checkpoints / "latest").glob("*.safetensors")}
    return {f"{file}/{name}": t.numpy().tobytes() for file, held in files.items() for name, t in held.items()}


def test_a_run_that_is_made_longer_equals_one_that_was_that_long(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write_study_file(tmp_path / "north.h5", num_studies=4)
    of = {epochs: a_config(data, training={"epochs": epochs, "schedule": "constant"}) for epochs in (1, 2)}
    train(of[2], tmp_path / "whole", LocalComm())
    train(of[1], tmp_path / "longer", LocalComm())
    capfd.readouterr()
    changes = {"loader": {"threads": 2}, "validation": {"every_epochs": 2}, "checkpoints": {"keep": 3}}
    longer = a_config(data, training={"epochs": 2, "schedule": "constant"}, **changes)
    train(longer, tmp_path / "longer", LocalComm(), GO_ON)
    told = re.sub(r"\s+", " ", capfd.readouterr().out)
    assert "goes on from step 1: training.epochs was 1 and is 2 now" in told and "learning rate" not in told
    folders = [RunFolder(tmp_path / name, "north") for name in ("whole", "longer")]
    assert tensors(folders[0]) == tensors(folders[1]) and folders[1].steps() == [2, 1]
    assert folders[1].config().checkpoints.keep == 3
    assert json.loads((folders[1].path / "environment.json").read_text())["budget"]["num_steps"] == 2


def test_a_run_is_not_cut_to_less_than_it_has_done(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "north")
    for changed, step, num_steps in (((), 2, 2), (("training.epochs",), 2, 3), (("loader.threads",), 2, 2)):
        check_length(changed, step, num_steps, folder)
    for changed, step, num_steps in (((), 3, 2), (("training.epochs",), 2, 2), (("training.max_steps",), 3, 2)):
        with pytest.raises(ConfigError, match=f"more than the {step} steps that it has done, found {num_steps}"):
            check_length(changed, step, num_steps, folder)


def test_what_is_not_judged_again_is_not_called_the_best(tmp_path: Path) -> None:
    folder = a_run_of(a_config(), tmp_path)
    (folder.checkpoints / "best").symlink_to("step-3")
    writer = CheckpointWriter(folder, Job(LocalComm(), Topology(0, ("north",), (0,))), keep=2)
    writer.name_best(None)
    assert not (folder.checkpoints / "best").is_symlink()
    writer.name_best(3)
    assert (folder.checkpoints / "best").resolve() == folder.checkpoint(3)


def test_the_rate_of_another_length_is_said() -> None:
    said = describe_changes({"training.epochs": ("1", "2")}, "one-cycle", 10, 20)
    assert said.startswith(
        "training.epochs was 1 and is 2 now; from step 10 on the learning rate is that of a run"
    )
    assert said.endswith("a run of 20 steps (one-cycle)")
    assert "rate" not in describe_changes({"loader.threads": ("1", "2")}, "one-cycle", 10, 20)
