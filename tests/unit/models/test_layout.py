"""Tensors by name and shape, told without the network: they are the network's."""

import subprocess
import sys

import pytest

from cxr_hvd.config.sections import Model
from cxr_hvd.models import build, layout
from cxr_hvd.models.densenet_sizes import DENSENETS
from cxr_hvd.partial.blocks import tensor_specs


@pytest.mark.parametrize("num_labels", [3, 14])
@pytest.mark.parametrize("name", DENSENETS)
def test_the_layout_is_that_of_the_network(name: str, num_labels: int) -> None:
    model = build.build_model(Model(name=name), num_labels, seed=0)
    assert layout.tensor_specs(Model(name=name), num_labels) == tensor_specs(model)


def test_a_plan_of_a_network_needs_no_torch() -> None:
    modules = "cxr_hvd.models.layout, cxr_hvd.training.sharing, cxr_hvd.training.budget, sys"
    check = f"import {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
