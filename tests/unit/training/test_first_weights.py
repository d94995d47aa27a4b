"""What a run starts from: a file or an earlier run's folder, read once and never again when it goes on."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cxr_hvd.comm.local import LocalComm
from cxr_hvd.config.file import parse_config
from cxr_hvd.config.schema import Config
from cxr_hvd.config.sections import Model
from cxr_hvd.deploy.network import load_model
from cxr_hvd.errors import CheckpointError, ConfigError, UsageError, WeightsError
from cxr_hvd.models.build import build_model
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import Split
from cxr_hvd.training.first_weights import OF_RUN, load_first_weights, read_run_weights
from cxr_hvd.training.run_folder import RunFolder
from cxr_hvd.training.train import LaunchOptions, train
from lab.study_files import write_study_file

STEADY = {"precision": "fp32", "schedule": "constant"}
GO_ON = LaunchOptions(resume="auto")
SPLITS = (Split.TRAIN, Split.TRAIN, Split.VALIDATE)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "north.h5"
    return write_study_file(path, num_studies=18, splits=SPLITS)


def config_for(data: Path, weights: Path | None = None, max_steps: int = 4, **training: object) -> Config:
    tree = {
        "experiment": "A",
        "sites": {"north": {"data": str(data)}},
        "model": {"name": "tiny", "image_size": 32, "weights": str(weights) if weights else None},
        "training": {"max_steps": max_steps, "batch_size": 3, **STEADY, **training},
        "checkpoints": {"every_steps": 2},
    }
    return parse_config(tree, "test")


@pytest.fixture(scope="module")
def earlier(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one site, with a running mean of its weights."""
    run = tmp_path_factory.mktemp("earlier") / "run"
    train(config_for(data, ema_decay=0.5), run, LocalComm())
    return run


def tensors_of(run: Path, step: int) -> dict[str, torch.Tensor]:
    folder = run / "north" / "checkpoints" / f"step-{step}"
    return load_file(folder / "shared.safetensors") | load_file(folder / "private.safetensors")


def test_an_earlier_run_starts_another(data: Path, earlier: Path, tmp_path: Path) -> None:
    best = earlier / "north" / "checkpoints" / "best"
    mean = load_file(best / "mean-0.safetensors")
    weights = read_run_weights(earlier)
    assert weights.label_names == LABELS
    assert all(torch.equal(weights.tensors[name], tensor) for name, tensor in mean.items())
    assert weights.source == f"{best}, step {json.loads((best / 'state.json').read_text())['step']}"
    for path in (earlier / "north", best, earlier / "north/checkpoints/latest/../best"):
        assert read_run_weights(path).digest == weights.digest

    model = build_model(Model(name="tiny"), len(LABELS), seed=1)
    first = load_first_weights(earlier, model, LABELS, RunFolder(tmp_path, "north"), may_resume=False)
    assert first.table is not None and not first.table.fresh and not first.table.not_used
    assert all(torch.equal(tensor, weights.tensors[name]) for name, tensor in model.state_dict().items())
    # Of a run the sites compare what they share, not each other's private blocks; of a file all of it.
    assert first.digest == weights.digest and first.compared == OF_RUN
    save_file(dict(weights.tensors), tmp_path / "file.safetensors")
    of_file = load_first_weights(tmp_path / "file.safetensors", model, LABELS, RunFolder(tmp_path, "north"), False)
    assert of_file.compared == of_file.digest == weights.digest
    # A run with so small a learning rate ends where it began.
    train(config_for(data, earlier, learning_rate=1e-12, max_steps=1), tmp_path / "next", LocalComm())
    after = tensors_of(tmp_path / "next", 1)
    weight = "classifier.weight"
    torch.testing.assert_close(after[weight], weights.tensors[weight], rtol=0, atol=1e-6)
    record = json.loads((tmp_path / "next/north/environment.json").read_text())
    assert record["weights_of_run"] is True
    again = load_first_weights(tmp_path / "gone", model, LABELS, RunFolder(tmp_path / "next", "north"), True)
    assert (again.digest, again.compared) == (weights.digest, OF_RUN)
    assert record["weights"] == weights.digest and tuple(record["label_names"]) == LABELS


def test_a_run_goes_on_without_its_file_bit_for_bit(data: Path, earlier: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(earlier, tmp_path / "copied", symlinks=True)
    train(config_for(data, earlier), tmp_path / "whole", LocalComm())
    train(config_for(data, copied, max_steps=2), tmp_path / "stopped", LocalComm())
    shutil.rmtree(copied)
    with pytest.raises(ConfigError, match=r"model.weights was \"given\" and is not there now"):
        train(config_for(data), tmp_path / "stopped", LocalComm(), GO_ON)
    train(config_for(data, copied), tmp_path / "stopped", LocalComm(), GO_ON)
    whole, stopped = tensors_of(tmp_path / "whole", 4), tensors_of(tmp_path / "stopped", 4)
    assert all(torch.equal(tensor, stopped[name]) for name, tensor in whole.items())
    digests = [json.loads((tmp_path / run / "north/environment.json").read_text())["weights"] for run in
               ("whole", "stopped")]  # fmt: skip
    assert digests[0] and digests[0] == digests[1]
    with pytest.raises(CheckpointError, match="no run here"):  # with nothing to go on from, the file is read
        (tmp_path / "empty").mkdir()
        train(config_for(data, tmp_path / "empty"), tmp_path / "new", LocalComm(), GO_ON)


def test_what_is_refused(data: Path, earlier: Path, tmp_path: Path) -> None:
    two = tmp_path / "two"
    for site in ("north", "south"):
        shutil.copytree(earlier / "north", two / site, symlinks=True)
    with pytest.raises(UsageError, match="holds the networks of north, south, which differ: name one, such as"):
        read_run_weights(two)
    shutil.rmtree(two / "south" / "checkpoints")
    with pytest.raises(CheckpointError, match="expected a checkpoint with"):
        read_run_weights(two / "south")
    (two / "north" / "environment.json").write_text("{")
    with pytest.raises(CheckpointError, match="expected the record of a run"):
        read_run_weights(two / "north")
    (two / "north" / "environment.json").unlink()
    with pytest.raises(WeightsError, match=r"expected the folder of a run with environment.json"):
        read_run_weights(two / "north")
    with pytest.raises(WeightsError, match="No such file"):
        train(config_for(data, tmp_path / "gone.pt"), tmp_path / "run", LocalComm())
    assert not (tmp_path / "run").exists()


def test_a_frozen_head_knows_what_it_had_learnt(data: Path, tmp_path: Path) -> None:
    """Also where the run goes on and its first weights are read no more."""
    few = write_study_file(tmp_path / "few.h5", num_studies=18, splits=SPLITS, unknown=("Fracture", "Edema"))
    train(config_for(few), tmp_path / "first", LocalComm())
    frozen = {"model": {"name": "tiny", "image_size": 32, "weights": str(tmp_path / "first"), "freeze": ["head"]}}
    for max_steps in (2, 4):
        whole = config_for(data, max_steps=max_steps).model_dump(mode="json")
        config = parse_config({**whole, **frozen}, "test")
        train(config, tmp_path / "run", LocalComm(), GO_ON)
        record = load_model(tmp_path / "run").record
        assert set(LABELS) - set(record.trained_labels) == {"Fracture", "Edema"}
        assert record.known_labels == {"north": list(LABELS)}
