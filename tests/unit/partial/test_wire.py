"""Short wires keep what is finite finite, and send what is not as it is."""

import math

import pytest
import torch

from cxr_hvd.comm.job import Job
from cxr_hvd.comm.local import LocalComm
from cxr_hvd.comm.sites import Topology
from cxr_hvd.partial.buffers import SharedMean
from cxr_hvd.partial.exchanges import GradientsExchange
from cxr_hvd.partial.plan import build_plan
from cxr_hvd.partial.tensor_spec import Kind, TensorSpec
from cxr_hvd.partial.wire import SHORT_DTYPES, ShortWire


@pytest.mark.parametrize("dtype", SHORT_DTYPES.values(), ids=SHORT_DTYPES)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_sent_as_it_is_and_never_kept(dtype: torch.dtype, value: float) -> None:
    """Whatever a step brings, all ranks see it, and the rounding errors that are kept stay finite."""
    wire, buffer = ShortWire(LocalComm(), dtype), torch.tensor([value, 0.1, 1.0])
    wire.begin_allreduce("block", buffer, "gradients")()
    assert torch.equal(buffer.isfinite(), torch.tensor([False, True, True]))
    assert torch.equal(buffer[0], torch.tensor(value)) or math.isnan(value)
    assert all(bool(error.isfinite().all()) for error in wire.state().values())
    total = torch.zeros(3)
    for _ in range(2):  # what was kept is sent after the value that was not finite, too
        step = torch.tensor([0.1, 0.1, 1.0])
        wire.begin_allreduce("block", step, "gradients")()
        total += step
    torch.testing.assert_close(total, torch.tensor([0.2, 0.2, 2.0]), rtol=2 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", SHORT_DTYPES.values(), ids=SHORT_DTYPES)
def test_a_finite_value_never_becomes_infinite_on_a_short_wire(dtype: torch.dtype) -> None:
    """Also where it lies between the short type's largest value and float32's."""
    wire, buffer = ShortWire(LocalComm(), dtype), torch.tensor([torch.finfo(torch.float32).max, -1e5])
    wire.begin_allreduce("block", buffer, "gradients")()
    assert bool(buffer.isfinite().all())
    assert all(bool(error.isfinite().all()) for error in wire.state().values())


@pytest.mark.parametrize("wire", SHORT_DTYPES)
def test_an_infinite_gradient_is_seen_after_the_exchange_and_forgotten_after_it(wire: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    specs = [
        TensorSpec(name, "head", Kind.PARAMETER, tuple(each.shape), "float32")
        for name, each in model.named_parameters()
    ]
    plan = build_plan(specs, (), exchange="gradients", wire=wire)  # type: ignore[arg-type]
    # A job of two sites as its first rank sees it, with a second rank that sends zeros.
    job = Job(LocalComm(), Topology(0, ("a", "b"), (0, 1)))
    exchange = GradientsExchange(model, torch.optim.SGD(model.parameters()), plan, job, [0.5, 0.5])

    def step(images: torch.Tensor) -> list[torch.Tensor]:
        model.zero_grad(set_to_none=True)
        loss = model(images).sum()
        exchange.begin(1)
        loss.backward()  # type: ignore[no-untyped-call]
        exchange.average()
        return [each.grad for each in model.parameters() if each.grad is not None]

    assert not all(bool(gradient.isfinite().all()) for gradient in step(torch.full((1, 3), math.inf)))
    assert exchange.nonfinite_blocks() == ["head"]
    assert all(bool(each.isfinite().all()) for each in exchange.state().values())
    assert torch.equal(step(torch.ones(1, 3))[0], torch.full((2, 3), 0.5))


@pytest.mark.parametrize("dtype", SHORT_DTYPES.values(), ids=SHORT_DTYPES)
def test_an_infinite_weight_is_seen_after_a_mean_of_weights(dtype: torch.dtype) -> None:
    buffer = torch.ones(2)
    mean = SharedMean({"block": buffer}, "weights", ShortWire(LocalComm(), dtype))
    buffer[0] = math.inf
    for wait in mean.begin(0.5):
        wait()
    assert buffer.tolist() == [math.inf, 1.0]
    assert all(bool(each.isfinite().all()) for name, each in mean.state().items() if "reference" not in name)
