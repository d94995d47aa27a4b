"""The run folder of a site: what is in it after a run, and that no run is replaced unasked."""

from pathlib import Path

import pytest

from cxr_hvd.comm.local import LocalComm
from cxr_hvd.config.file import parse_config
from cxr_hvd.config.sections import Model
from cxr_hvd.errors import CheckpointError
from cxr_hvd.models.build import build_model
from cxr_hvd.training.checkpoint.snapshot import load_judged_weights
from cxr_hvd.training.run_folder import RunFolder
from cxr_hvd.training.train import train
from lab.study_files import write_study_file


def test_a_run_is_kept_whole_and_never_silently_replaced(tmp_path: Path) -> None:
    data = write_study_file(tmp_path / "north.h5", num_studies=12)
    tree = {
        "experiment": "A",
        "sites": {"north": {"data": str(data)}},
        "model": {"name": "tiny", "image_size": 32},
        "training": {"epochs": 3, "batch_size": 3, "precision": "fp32"},
    }
    config = parse_config(tree, "test")
    train(config, tmp_path / "run", LocalComm())
    folder = RunFolder(tmp_path / "run", "north")
    assert {path.name for path in folder.path.iterdir()} == {
        "config.yaml", "environment.json", "plan.json", "metrics.jsonl", "tensorboard", "checkpoints",
        "ledger.jsonl", "validation.jsonl", "status-0.json",
    }  # fmt: skip
    assert folder.steps() == [6, 4]
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["latest", "step-4", "step-6"]
    latest = folder.checkpoints / "latest"
    assert load_judged_weights(latest, build_model(Model(name="tiny"), 14, seed=9)) == 6
    assert len((folder.path / "metrics.jsonl").read_text().splitlines()) == 6
    with pytest.raises(CheckpointError, match="holds a run already: go on with --resume auto"):
        train(config, tmp_path / "run", LocalComm())
    with pytest.raises(CheckpointError, match="another model"):
        load_judged_weights(latest, build_model(Model(name="tiny"), 3, seed=9))
    (folder.checkpoints / "latest" / "shared.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="cannot read it"):
        load_judged_weights(latest, build_model(Model(name="tiny"), 14, seed=9))
