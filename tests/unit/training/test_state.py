"""A training state that is put back goes on bit for bit, and its snapshot is a copy."""

import pytest
import torch
from torch import nn

from cxr_hvd.comm.job import Job
from cxr_hvd.comm.local import LocalComm
from cxr_hvd.comm.sites import Topology
from cxr_hvd.config.sections import Training
from cxr_hvd.errors import CheckpointError
from cxr_hvd.partial.blocks import tensor_specs
from cxr_hvd.partial.plan import build_plan
from cxr_hvd.training.state import TrainingState, start_state

SETTINGS = Training(precision="fp16", ema_decay=0.9, learning_rate=0.1)


def fresh_state(num_outputs: int = 2) -> TrainingState:
    torch.manual_seed(num_outputs)
    model, job = nn.Linear(3, num_outputs), Job(LocalComm(), Topology(0, ("alone",), (0,)))
    return start_state(model, SETTINGS, job, build_plan(tensor_specs(model)), [1.0])


def take_step(state: TrainingState, number: int) -> None:
    state.optimizer.zero_grad()
    state.model(torch.full((4, 3), float(number))).square().sum().backward()
    state.optimizer.step()
    assert state.weight_mean and state.loss_scale
    state.weight_mean.update()
    state.loss_scale.update(is_finite=number != 1)


def test_a_restored_state_goes_on_as_one_that_never_stopped() -> None:
    whole, resumed = fresh_state(), fresh_state()
    for number in range(2):
        take_step(whole, number)
    whole.num_skipped_in_a_row = 1
    snapshot = whole.snapshot()
    take_step(whole, 2)
    resumed.restore(snapshot, step=2)
    assert resumed.num_skipped_in_a_row == 1 and resumed.loss_scale != fresh_state().loss_scale
    take_step(resumed, 2)
    ends = [state.snapshot() for state in (whole, resumed)]
    for name in ("weights", "optimizer", "mean"):
        one, other = (getattr(end, name) for end in ends)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert ends[0].loss_scale == ends[1].loss_scale
    assert not torch.equal(snapshot.weights["weight"], ends[0].weights["weight"])


def test_a_state_of_another_model_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"tensor weight: expected .*\[3, 3\], found .*\[2, 3\]"):
        fresh_state(3).restore(fresh_state(2).snapshot(), step=2)
