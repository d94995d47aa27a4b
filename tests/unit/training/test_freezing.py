"""What `model.freeze` chooses, which norms keep their statistics, and what is refused."""

from typing import Any

import pytest
import torch
from torch import nn

from cxr_hvd.config.file import parse_config
from cxr_hvd.config.sections import Model
from cxr_hvd.errors import ConfigError
from cxr_hvd.models.build import build_model
from cxr_hvd.partial.blocks import tensor_specs
from cxr_hvd.partial.plan import SharingPlan
from cxr_hvd.training.freezing import freeze, frozen_norms
from cxr_hvd.training.sharing import plan_sharing


def plan_of(model: nn.Module, freeze: list[str], **sharing: Any) -> SharingPlan:
    sites = {"north": {"data": "n.h5"}, "south": {"data": "s.h5"}}
    tree = {
        "experiment": "D",
        "sites": sites,
        "model": {"freeze": freeze},
        "sharing": {"private": "none", **sharing},
    }
    return plan_sharing(parse_config(tree, "test"), tensor_specs(model))


def tiny() -> nn.Module:
    return build_model(Model(name="tiny"), 14, seed=0)


@pytest.mark.parametrize(
    ("patterns", "parts", "num_norms"),
    [
        (["stem"], ["conv0", "norm0"], 1),
        (["denseblock?", "transition*"], ["denseblock", "transition"], 11),
        (["*.norm5.weight", "*.norm5.bias"], ["norm5.weight", "norm5.bias"], 1),
        (["*.running_*"], [], 13),
        (["*.norm5.weight"], ["norm5.weight"], 0),
        ([], [], 0),
    ],
)
@pytest.mark.parametrize("private", ["none", "ends", "all"])
def test_parameters_and_norms_that_are_frozen(
    patterns: list[str], parts: list[str], num_norms: int, private: str
) -> None:
    model = tiny()
    plan = plan_of(model, patterns, private=private)
    freeze(model, plan)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is not any(part in name for part in parts), name
    assert len(frozen_norms(model, plan)) == num_norms


def test_a_norm_without_parameters_follows_its_block() -> None:
    norm = nn.BatchNorm2d(3, affine=False)
    model = nn.Sequential(nn.Conv2d(1, 3, 1), norm, nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(3, 2))
    assert frozen_norms(model, plan_of(model, [])) == []
    (stem,) = {spec.block for spec in tensor_specs(model) if spec.name == "1.running_mean"}
    assert frozen_norms(model, plan_of(model, [stem])) == [norm]


def test_what_is_refused() -> None:
    for patterns, line in {
        ("denseblok1",): "model.freeze: 'denseblok1' matches no block and no tensor; did you mean 'denseblock1'",
        ("*",): "model.freeze: expected a block that is trained, found all frozen",
        ("*.weight", "*.bias"): "found all frozen",
    }.items():
        with pytest.raises(ConfigError, match=line.replace("*", r"\*")):
            plan_of(tiny(), list(patterns))


def test_gradients_end_where_all_before_is_frozen() -> None:
    model = tiny()
    freeze(model, plan_of(model, ["stem", "denseblock1", "transition1"]))
    model(torch.rand(2, 1, 64, 64)).sum().backward()
    has_gradient = {name: parameter.grad is not None for name, parameter in model.named_parameters()}
    assert (
        not has_gradient["features.conv0.weight"] and has_gradient["features.denseblock2.denselayer1.conv1.weight"]
    )
