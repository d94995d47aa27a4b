"""The optimizers, which are ours to start faster: torch's are the reference."""

import pytest
import torch
from torch import nn

from cxr_hvd.config.sections import Training
from cxr_hvd.training.optim import Optimizer


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
