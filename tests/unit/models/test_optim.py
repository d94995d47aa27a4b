"""The network and the optimizers, which are ours to start faster: torchvision's and torch's are the reference."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from cxr_hvd.config.schema import Training
from cxr_hvd.models.densenet import DenseNet
from cxr_hvd.training.optim import Optimizer

SMALL: dict[str, Any] = {"growth_rate": 4, "block_config": (2, 1, 2, 1), "num_init_features": 6, "bn_size": 2}


def drawn(build: Callable[..., nn.Module], **settings: Any) -> nn.Module:
    torch.manual_seed(7)
    return build(**settings)


@pytest.mark.parametrize("settings", [SMALL | {"num_classes": 3}, {"num_classes": 14}], ids=["small", "121"])
def test_the_first_weights_are_torchvisions(settings: dict[str, Any]) -> None:
    ours = drawn(DenseNet, **settings).state_dict()
    theirs = drawn(torchvision.models.DenseNet, **settings).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_output_and_gradients_are_torchvisions_bit_for_bit() -> None:
    ours, theirs = drawn(DenseNet, **SMALL), drawn(torchvision.models.DenseNet, **SMALL)
    images = torch.randn(2, 3, 40, 40)
    for model in (ours, theirs):
        model(images).square().sum().backward()
    theirs_by_name = dict(theirs.named_parameters())
    assert all(torch.equal(each.grad, theirs_by_name[name].grad) for name, each in ours.named_parameters())
    assert torch.equal(ours.eval()(images), theirs.eval()(images))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_steps_are_torchs_bit_for_bit_and_go_on_from_their_state(name: str) -> None:
    settings = Training(optimizer=name, learning_rate=0.05, weight_decay=0.1)
    starts = [torch.randn(5, 3), torch.randn(7), torch.randn(2)]
    ours, theirs = ([nn.Parameter(each.clone()) for each in starts] for _ in range(2))
    decayed = {"lr": 0.05, "weight_decay": 0.1, "fused": True}
    reference = (
        torch.optim.AdamW(theirs, **decayed)
        if name == "adamw"
        else torch.optim.SGD(theirs, momentum=0.9, **decayed)
    )
    optimizer = Optimizer(ours, settings)
    for number in range(4):
        if number == 2:  # another process goes on
            state = optimizer.state
            optimizer = Optimizer(ours, settings)
            optimizer.load_state(
                {each: {key: t.clone() for key, t in kept.items()} for each, kept in state.items()}
            )
        optimizer.learning_rate = reference.param_groups[0]["lr"] = 0.05 / (number + 1)
        for mine, their in zip(ours[:2], theirs[:2], strict=True):  # the third has no gradient
            mine.grad = their.grad = torch.randn(mine.shape)
        optimizer.step()
        reference.step()
    assert all(torch.equal(mine, their) for mine, their in zip(ours, theirs, strict=True))
    for mine, their in zip(ours[:2], theirs[:2], strict=True):
        assert optimizer.state[mine].keys() == reference.state[their].keys()
        assert all(
            torch.equal(tensor, reference.state[their][key]) for key, tensor in optimizer.state[mine].items()
        )
    assert ours[2] not in optimizer.state
    optimizer.zero_grad()
    assert all(each.grad is None for each in ours)
