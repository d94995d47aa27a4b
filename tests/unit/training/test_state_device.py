"""What a resume puts back lies on the model's device, in every exchange; the meta device stands in for a GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cxr_hvd.comm.job import Job
from cxr_hvd.comm.local import LocalComm
from cxr_hvd.comm.sites import Topology
from cxr_hvd.config.sections import Training
from cxr_hvd.partial.blocks import tensor_specs
from cxr_hvd.partial.plan import build_plan
from cxr_hvd.training.state import TrainingState, start_state

EXCHANGES: list[dict[str, Any]] = [
    {},
    {"wire": "bfloat16"},
    {"wire": "int8"},
    {"overlap": True, "every": 2},
    {"exchange": "gradients", "wire": "float16"},
]


def state_on(device: str, optimizer: str, settings: dict[str, Any]) -> TrainingState:
    model, job = nn.Linear(3, 2).to(device), Job(LocalComm(), Topology(0, ("a", "b"), (0, 1)))
    training = Training.model_validate({"ema_decay": 0.9, "optimizer": optimizer})
    return start_state(model, training, job, build_plan(tensor_specs(model), **settings), [0.5, 0.5])


def take_steps(state: TrainingState, is_by_gradients: bool) -> None:
    for _ in range(3):
        state.optimizer.zero_grad()
        if is_by_gradients:
            state.averager.begin(4)
        state.model(torch.ones(4, 3)).sum().backward()
        if is_by_gradients:
            state.averager.average()
        state.optimizer.step()
        if not is_by_gradients:
            state.averager.average()


def tensors_in(thing: Any, seen: set[int]) -> Iterator[Tensor]:
    """Give every tensor that an object of this project or of torch.nn holds, however deep."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, dict):
        for name, value in thing.items():
            yield from tensors_in(name, seen)
            yield from tensors_in(value, seen)
    elif isinstance(thing, list | tuple):
        for part in thing:
            yield from tensors_in(part, seen)
    elif hasattr(thing, "__dict__") and type(thing).__module__.startswith(("cxr_hvd", "torch.nn")):
        yield from tensors_in(vars(thing), seen)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("settings", EXCHANGES, ids=str)
def test_all_that_is_put_back_lies_where_the_model_lies(optimizer: str, settings: dict[str, Any]) -> None:
    state = state_on("cpu", optimizer, settings)
    take_steps(state, settings.get("exchange") == "gradients")
    resumed = state_on("meta", optimizer, settings)
    resumed.restore(state.snapshot(), 3)
    elsewhere = [tensor.shape for tensor in tensors_in(resumed, set()) if tensor.numel() and not tensor.is_meta]
    assert not elsewhere
    assert resumed.averager.state_dict().keys() == state.averager.state_dict().keys()
    assert len(resumed.optimizer.state) == len(state.optimizer.state) == 2
