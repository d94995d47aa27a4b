"""A network of a function of the user: what can be wrong is one line that names place and remedy."""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cxr_hvd.config.sections import Model
from cxr_hvd.errors import ConfigError
from cxr_hvd.models import layout
from cxr_hvd.models.build import build_model, network_items
from cxr_hvd.partial import blocks

NETS = """
from torch import nn

LAYERS = 2

def build(num_channels, num_labels, image_size):
    return nn.Sequential(
        nn.Conv2d(num_channels, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_labels),
    )

def three_channels(num_labels, **_):
    return build(3, num_labels, 0)

def wrong_shape(num_labels, **_):
    return nn.Sequential(nn.Conv2d(20, num_labels, 3))

def wrong_input(num_labels, **_):
    return nn.Sequential(nn.Conv2d(7, 8, 3), nn.Flatten())

def nothing(**_):
    return {"a": 1}

def no_arguments():
    return build(20, 14, 0)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with my_nets.py; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (tmp_path / "my_nets.py").write_text(NETS)
    (tmp_path / "broken.py").write_text("import torch\n\nWIDTH = 3 / 0\n")
    yield tmp_path
    for name in ("my_nets", "broken"):
        sys.modules.pop(name, None)


def settings_of(name: str) -> Model:
    return Model(name=name, image_size=32)


@pytest.mark.parametrize("function", ["build", "three_channels"])
def test_a_function_in_the_current_folder_builds_a_network(folder: Path, function: str) -> None:
    settings = settings_of(f"my_nets:{function}")
    model = build_model(settings, 14, seed=1)
    images = torch.rand(2, 3, 32, 32)
    padded = torch.cat([images, torch.zeros(2, 17, 32, 32)], dim=1)
    torch.testing.assert_close(model(images), model(padded), rtol=1e-5, atol=1e-6)
    assert model.get_parameter("0.weight").shape == (8, 20, 3, 3)
    assert layout.tensor_specs(settings, 14) == blocks.tensor_specs(model)
    same = build_model(settings, 14, seed=1).state_dict()
    assert torch.equal(same["0.weight"], build_model(settings, 14, seed=1).get_parameter("0.weight"))


def test_sites_compare_the_file_that_a_function_is_written_in(folder: Path) -> None:
    digest = hashlib.sha256(NETS.encode()).hexdigest()
    assert network_items(settings_of("my_nets:build")) == {"source of my_nets:build": digest}
    assert list(network_items(settings_of("timm/test_resnet"))) == ["version of timm"]
    assert network_items(Model()) == network_items(settings_of("torchvision/resnet50")) == {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_net:build", "found no module my_net for my_net:build, neither on Python's path nor in "),
        ("my_nets:buidl", "my_nets has no function buidl; did you mean 'build'?"),
        ("my_nets:LAYERS", "my_nets has no function LAYERS"),
        ("broken:build", "importing broken raised ZeroDivisionError: division by zero ("),
        ("my_nets:no_arguments", "raised TypeError: no_arguments() got an unexpected keyword argument"),
        ("my_nets:nothing", "expected my_nets:nothing to return a torch.nn.Module, found dict"),
        (
            "my_nets:wrong_shape",
            "my_nets:wrong_shape to return logits (2, 14) for 2 studies, found (2, 14, 30, 30)",
        ),
        (
            "my_nets:wrong_input",
            "my_nets:wrong_input did not take images of 32 x 32 px: RuntimeError: Given",
        ),
    ],
)
def test_what_cannot_be_built_is_one_line(folder: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_model(settings_of(name), 14, seed=0)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_line_names_where_in_the_users_file(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"broken\.py, line 3\)"):
        build_model(settings_of("broken:build"), 14, seed=0)


def test_no_file_of_the_current_folder_stands_before_an_installed_module(folder: Path) -> None:
    (folder / "torchvision.py").write_text("raise SystemExit('not this one')")
    build_model(settings_of("my_nets:build"), 14, seed=0)
    assert sys.path[-1] == str(folder)
