"""Runs that start from a file of trained weights, as a user types them."""

import json
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file

from lab.launch import BIN, PROJECT, Finished, launch, need_horovod
from lab.study_files import write_study_file

need_horovod()

TRAIN = [str(BIN / "cxr-hvd"), "train", str(PROJECT / "jobs/configs/D.yaml")]
QUICK = [
    *("model.name=densenet121", "model.image_size=32", "training.batch_size=2", "training.max_steps=2"),
    *("training.precision=fp32", "training.learning_rate=1e-12", "training.optimizer=sgd"),
    *("training.weight_decay=0", "validation.every_epochs=0"),
]
SITES = ("chexpert", "mimic")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Study files of two sites, and a file of each that holds the same DenseNet121 of ImageNet's shape."""
    folder = tmp_path_factory.mktemp("sites")
    torch.manual_seed(5)
    network = torchvision.models.densenet121(weights=None).state_dict()
    for seed, site in enumerate(SITES):
        write_study_file(folder / f"{site}.h5", num_studies=12, seed=seed, site=site)
        (folder / site).mkdir()
    torch.save(network, folder / "chexpert" / "densenet121.pth")
    old = {f"module.{name.replace('norm1', 'norm.1')}": tensor for name, tensor in network.items()}
    torch.save({"state_dict": old}, folder / "mimic" / "model.pt", _use_new_zipfile_serialization=False)
    return folder


def settings(folder: Path, *more: str) -> list[str]:
    data = [f"sites.{site}.data={folder / site}.h5" for site in SITES]
    return [word for setting in (*QUICK, *data, *more) for word in ("--set", setting)]


def trained(folder: Path, run: Path, *more: str) -> Finished:
    return launch(2, [*TRAIN, "--run", str(run), *settings(folder, *more)], "horovodrun")


@pytest.mark.slow
def test_torchvisions_densenet121_starts_a_run(folder: Path, tmp_path: Path) -> None:
    file = folder / "chexpert" / "densenet121.pth"
    job = trained(folder, tmp_path / "run", f"model.weights={file}")
    assert job.exit_code == 0, job.output
    assert job.lines(f"Weights from {file}: 99.8% of 7,")
    assert job.lines("features.conv0.weight")
    assert job.lines("classifier.weight (the file does not name its labels)")
    assert job.lines("step 2/2")
    network = torch.load(file, weights_only=True)
    for site in SITES:
        latest = tmp_path / "run" / site / "checkpoints" / "latest"
        after = load_file(latest / "shared.safetensors") | load_file(latest / "private.safetensors")
        expected = network["features.conv0.weight"].sum(1, keepdim=True).expand(-1, 20, -1, -1)
        torch.testing.assert_close(after["features.conv0.weight"], expected, rtol=0, atol=1e-5)
        name = "features.denseblock2.denselayer3.conv2.weight"
        torch.testing.assert_close(after[name], network[name], rtol=0, atol=1e-5)
    digests = {json.loads((tmp_path / "run" / s / "environment.json").read_text())["weights"] for s in SITES}
    assert len(digests) == 1


def test_sites_with_other_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    """Each site has its own path; what counts is what is in the file."""
    torch.save({"features.norm0.weight": torch.ones(12)}, tmp_path / "here.pt")
    torch.save({"features.norm0.weight": torch.zeros(12)}, tmp_path / "there.pt")
    whole = [*TRAIN, "--run", str(tmp_path / "run")]
    one, other = (
        [*whole, *settings(folder, "model.name=tiny", f"model.weights={tmp_path / name}")]
        for name in ("here.pt", "there.pt")
    )
    job = launch(1, [*one, ":", "-np", "1", *other])
    lines = job.lines("cxr-hvd: error:")
    assert job.exit_code == 1 and len(lines) == 2, job.output
    assert all("the sites differ on SHA-256 of the tensors of model.weights" in line for line in lines)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_damaged_file_is_one_line_on_every_rank(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.pt").write_bytes(b"PK\x03\x04" + bytes(100))
    job = trained(folder, tmp_path / "run", "model.name=tiny", f"model.weights={tmp_path / 'bad.pt'}")
    lines = job.lines("cxr-hvd: error:")
    assert job.exit_code == 1 and len(lines) == 2, job.output
    assert any("expected a state dict or a module as torch.save writes it" in line for line in lines)
    assert "Traceback" not in job.output
