"""The blocks of networks that nobody foresaw, and of the one that was published."""

import pytest
import torch
from torch import nn

from cxr_hvd.errors import ConfigError
from cxr_hvd.partial.blocks import assign_blocks, tensor_specs
from cxr_hvd.partial.plan import Scope, build_plan
from cxr_hvd.partial.tensor_spec import Kind


def mlp() -> nn.Sequential:
    layers = [nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)]
    return nn.Sequential(*layers)


def test_plain_networks_have_a_stem_and_a_head() -> None:
    blocks = assign_blocks(mlp())
    assert blocks == {
        **{f"1.{part}": "stem" for part in ("weight", "bias")},
        **{f"3.{part}": "3" for part in ("weight", "bias")},
        **{f"4.{part}": "3" for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")},
        **{f"5.{part}": "head" for part in ("weight", "bias")},
    }
    assert set(assign_blocks(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))).values()) == {"stem", "head"}
    assert set(assign_blocks(nn.Linear(4, 5)).values()) == {"head"}


def test_own_tensors_of_an_opened_module_are_its_stem() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(3))
            self.layers = nn.ModuleList([mlp(), mlp(), mlp()])

    blocks = assign_blocks(Tokens())
    assert blocks["token"] == blocks["layers.0.1.weight"] == "stem"
    assert blocks["layers.1.1.weight"] == "layers.1"
    assert blocks["layers.2.5.bias"] == "head"


def test_blocks_are_named_by_globs() -> None:
    specs = tensor_specs(mlp(), {"body": ["1.*", "3.*"], "rest": ["*"]})
    assert {spec.name: spec.block for spec in specs if spec.kind is Kind.PARAMETER} == {
        "1.weight": "body",
        "1.bias": "body",
        "3.weight": "body",
        "3.bias": "body",
        "4.weight": "rest",
        "4.bias": "rest",
        "5.weight": "rest",
        "5.bias": "rest",
    }
    with pytest.raises(ConfigError, match=r"tensor '4.weight' is in none of body; add a glob"):
        tensor_specs(mlp(), {"body": ["1.*", "3.*"]})


def test_norms_are_known_by_their_type() -> None:
    plan = build_plan(tensor_specs(mlp()), "norms")
    assert plan.names(Scope.PRIVATE) == ("4.weight", "4.bias", "4.running_mean", "4.running_var")
    assert plan.names(Scope.LOCAL) == ("4.num_batches_tracked",)


def test_buffers_that_are_not_saved_are_no_part_of_a_plan() -> None:
    model = mlp()
    model.register_buffer("scratch", torch.zeros(3), persistent=False)
    assert tensor_specs(model) == tensor_specs(mlp())


def test_tied_tensors_are_one_tensor_of_two_blocks() -> None:
    model = mlp()
    model[3].weight = nn.Parameter(torch.zeros(5, 5))
    model.add_module("again", nn.Linear(5, 5))
    model.again.weight = model[3].weight  # type: ignore[union-attr, assignment]
    names = [spec.name for spec in tensor_specs(model)]
    assert len(names) == len(set(names)) and "again.weight" not in names
    for private in (["again.*"], ["3.*"], ["3"], "head"):
        with pytest.raises(ConfigError, match=r"3.weight and again.weight are one tensor \(tied weights\)"):
            build_plan(tensor_specs(model, {"3": ["3.*"], "head": ["again.*"], "rest": ["*"]}), private)
    specs = tensor_specs(model, {"3": ["3.*"], "head": ["again.*"], "rest": ["*"]})
    assert "3.weight" in build_plan(specs, ["3", "head"]).names(Scope.PRIVATE)


@pytest.mark.parametrize("private", ["none", "head"])
def test_frozen_tensors_travel_nowhere(private: str) -> None:
    plan = build_plan(tensor_specs(mlp()), private, frozen=["head", "4.*"])
    frozen = plan.names(Scope.FROZEN) + plan.names(Scope.LOCAL)
    assert {*frozen} == {spec.name for spec in tensor_specs(mlp()) if spec.name[0] in "45"}
    assert ("5.weight" in plan.names(Scope.FROZEN)) == (private == "none")
    assert {spec.name for buffer in plan.buffers() for spec in buffer.specs}.isdisjoint(frozen)
    with pytest.raises(ConfigError, match=r"model\.freeze: 'heads' matches no block"):
        build_plan(tensor_specs(mlp()), frozen=["heads"])
