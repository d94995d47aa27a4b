"""Networks by `model.name` through the real commands: of a library on two ranks, and of a user's function."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lab.launch import BIN, LAUNCHERS, PROJECT, Finished, launch, need_horovod, run
from lab.study_files import write_study_file

need_horovod()

SITES = ("chexpert", "mimic")
LIMIT_S = 240.0
"""Each command imports torch, torchvision and timm, on processors that other tests share."""
NETS = """
from torch import nn

def build(num_channels, num_labels, image_size):
    return nn.Sequential(
        nn.Conv2d(num_channels, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_labels),
    )
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for site in SITES:
        write_study_file(tmp_path / f"{site}.h5", site=site)
    return tmp_path


def train(experiment: str, folder: Path, *more: str) -> list[str]:
    settings = ["model.image_size=64", "training.batch_size=4", "training.max_steps=2", "training.precision=fp32"]
    settings += [f"sites.{site}.data={folder / site}.h5" for site in SITES]
    words = [word for setting in (*settings, *more) for word in ("--set", setting)]
    config = str(PROJECT / "jobs" / "configs" / f"{experiment}.yaml")
    return [str(BIN / "cxr-hvd"), "train", config, "--run", str(folder / "run"), *words]


def ok(job: Finished) -> Finished:
    assert job.exit_code == 0, job.output
    return job


@pytest.mark.parametrize(
    ("name", "more", "last"),
    [
        pytest.param("timm/test_resnet", (), "fc.weight", marks=pytest.mark.slow),
        pytest.param(
            "torchvision/mobilenet_v3_small",
            ("model.norm=group", "training.precision=bf16"),
            "classifier.3.weight",
            marks=(pytest.mark.slow, pytest.mark.night),
        ),
        pytest.param("timm/test_vit", ("sharing.exchange=gradients",), "head.weight", marks=pytest.mark.slow),
    ],
)
def test_a_network_of_a_library_trains_at_two_sites_and_is_judged(
    name: str, more: tuple[str, ...], last: str, folder: Path
) -> None:
    job = ok(launch(2, train("D", folder, f"model.name={name}", *more), limit_s=LIMIT_S))
    assert job.lines("step 2/2") and job.lines("stem")
    checkpoints = [folder / "run" / site / "checkpoints" / "latest" for site in SITES]
    shared, private = (
        [load_file(path / f"{part}.safetensors") for path in checkpoints] for part in ("shared", "private")
    )
    assert shared[0] and all(np.array_equal(shared[0][key], shared[1][key]) for key in shared[0])
    assert not np.array_equal(private[0][last], private[1][last])
    judged = ok(run([str(BIN / "cxr-hvd"), "evaluate", str(folder / "run"), "--json"], LIMIT_S))
    assert [site["step"] for site in json.loads(judged.output)] == [2, 2]


@pytest.mark.slow
def test_a_function_in_the_current_folder_trains_and_is_judged(folder: Path) -> None:
    (folder / "my_nets.py").write_text(NETS)
    here = ["env", "-C", str(folder)]
    command = [*here, *train("A", folder, "model.name=my_nets:build"), "--site", "mimic"]
    assert ok(run(command, LIMIT_S)).lines("step 2/2")
    job = ok(run([*here, str(BIN / "cxr-hvd"), "evaluate", str(folder / "run"), "--json"], LIMIT_S))
    assert json.loads(job.output)[0]["step"] == 2


@pytest.mark.slow
def test_sites_whose_functions_differ_do_not_start(folder: Path) -> None:
    command = train("D", folder, "model.name=my_nets:build")
    ranks = []
    for site in SITES:
        (folder / site).mkdir()
        (folder / site / "my_nets.py").write_text(f"{NETS}\n# of {site}\n")
        ranks += [*([":"] if ranks else []), "--wdir", str(folder / site), "-np", "1", *command]
    job = run([*LAUNCHERS["mpirun"], *ranks], LIMIT_S)
    assert job.exit_code != 0
    assert len(job.lines("the sites differ on source of my_nets:build")) == 2, job.output
    assert "Traceback" not in job.output
