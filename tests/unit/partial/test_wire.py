"""Short wires keep what is finite finite, and send what is not as it is."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from cxr_hvd.comm.job import Job
from cxr_hvd.comm.local import LocalComm
from cxr_hvd.comm.sites import Topology
from cxr_hvd.ledger.plan_record import MIN_ROW, row_lengths
from cxr_hvd.partial.buffers import FlatBuffer, run_lengths
from cxr_hvd.partial.exchanges import GradientsExchange
from cxr_hvd.partial.means import SharedMean
from cxr_hvd.partial.plan import build_plan
from cxr_hvd.partial.rounding import ROUNDINGS, CastRounding, Rounding
from cxr_hvd.partial.tensor_spec import Kind, TensorSpec
from cxr_hvd.partial.wire import ShortWire, cut_evenly

ROW = 100
CASTS = {form: rounding for form, rounding in ROUNDINGS.items() if isinstance(rounding, CastRounding)}


@pytest.mark.parametrize("rounding", CASTS.values(), ids=CASTS)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_sent_as_it_is_and_never_kept(rounding: Rounding, value: float) -> None:
    """Whatever a step brings, all ranks see it, and the rounding errors that are kept stay finite."""
    wire, buffer = ShortWire(LocalComm(), rounding), torch.tensor([value, 0.1, 1.0])
    send(wire, buffer)
    assert torch.equal(buffer.isfinite(), torch.tensor([False, True, True]))
    assert torch.equal(buffer[0], torch.tensor(value)) or math.isnan(value)
    assert all(bool(error.isfinite().all()) for error in wire.state().values())
    total = torch.zeros(3)
    for _ in range(2):  # what was kept is sent after the value that was not finite, too
        step = torch.tensor([0.1, 0.1, 1.0])
        send(wire, step)
        total += step
    one_rounding = 2 * torch.finfo(rounding.dtype).eps
    torch.testing.assert_close(total, torch.tensor([0.2, 0.2, 2.0]), rtol=one_rounding, atol=0)


def send(wire: ShortWire, values: torch.Tensor) -> None:
    wire.begin_allreduce("block", flat_of(values), "gradients")()


def flat_of(values: torch.Tensor) -> FlatBuffer:
    """A flat buffer of one block, in rows of `ROW`."""
    size = values.numel()
    return FlatBuffer(
        values, {"block": size}, run_lengths(min(ROW, size - start) for start in range(0, size, ROW))
    )


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_row_of_8_bits_that_is_not_finite_is_seen_and_the_other_rows_are_whole(value: float) -> None:
    wire, buffer = ShortWire(LocalComm(), ROUNDINGS["int8"]), torch.full((3 * ROW,), 0.5)
    buffer[ROW] = value
    send(wire, buffer)
    finite = buffer.view(3, -1).isfinite().all(1)
    assert finite.tolist() == [True, False, True]
    assert torch.equal(buffer[:ROW], torch.full((ROW,), 0.5))
    assert all(bool(error.isfinite().all()) for error in wire.state().values())


@given(
    arrays(
        np.float32,
        st.integers(1, 3 * ROW),
        elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False),
    ),
)
def test_8_bits_are_off_by_half_a_step_of_their_row_at_most(values: NDArray[np.float32]) -> None:
    rounding, tensor = ROUNDINGS["int8"], torch.from_numpy(values.copy())
    rows = flat_of(tensor).rows
    payload = rounding.encode(tensor, rows)
    assert payload.dtype == torch.int8
    assert payload.numel() == tensor.numel() + rounding.num_added(rows)
    decoded = rounding.decode(payload, rows)
    for row, back in zip(tensor.split(ROW), decoded.split(ROW), strict=True):
        assert float((row - back).abs().max()) <= float(row.abs().max()) / 127 * 0.501 + 1e-37


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 9), min_size=1), st.integers(1, 5))
def test_sections_of_a_flat_buffer_hold_all_of_it_once(parts: dict[str, int], num_ranks: int) -> None:
    size = sum(parts.values())
    flat = FlatBuffer(torch.arange(1.0, size + 1), parts, run_lengths(parts.values()))
    sections = cut_evenly(flat, num_ranks, "padding")
    values = torch.cat([section.values for section in sections])
    assert torch.equal(values[:size], flat.values)
    assert not values[size:].any()
    total: dict[str, int] = {}
    for section in sections:
        assert (
            sum(section.parts.values())
            == sum(count * length for count, length in section.rows)
            == section.values.numel()
        )
        for name, count in section.parts.items():
            total[name] = total.get(name, 0) + count
    assert total.pop("padding", 0) == values.numel() - size
    assert total == parts


@pytest.mark.parametrize(
    ("shape", "lengths"),
    [
        ((5, 20, 7, 7), [980] * 5),
        ((64,), [64]),
        ((0,), []),
        ((), [1]),
        ((10, 1, 3, 3), [72, 18]),
        ((3, 2), [6]),
    ],
)
def test_a_row_leads_to_one_output_and_is_not_short(shape: tuple[int, ...], lengths: list[int]) -> None:
    assert row_lengths(shape) == lengths
    assert all(length >= MIN_ROW for length in lengths[:-1])


@pytest.mark.parametrize("rounding", ROUNDINGS.values(), ids=ROUNDINGS)
def test_a_finite_value_never_becomes_infinite_on_a_short_wire(rounding: Rounding) -> None:
    """Also where it lies between the short type's largest value and float32's."""
    wire, buffer = ShortWire(LocalComm(), rounding), torch.tensor([torch.finfo(torch.float32).max, -1e5])
    send(wire, buffer)
    assert bool(buffer.isfinite().all())
    assert all(bool(error.isfinite().all()) for error in wire.state().values())


@pytest.mark.parametrize("wire", ROUNDINGS)
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
        exchange.after_step(1)
        return [each.grad for each in model.parameters() if each.grad is not None]

    assert not all(bool(gradient.isfinite().all()) for gradient in step(torch.full((1, 3), math.inf)))
    assert exchange.nonfinite_blocks() == ["head"]
    assert all(bool(each.isfinite().all()) for each in exchange.state().values())
    assert torch.equal(step(torch.ones(1, 3))[0], torch.full((2, 3), 0.5))


@pytest.mark.parametrize("rounding", CASTS.values(), ids=CASTS)
def test_an_infinite_weight_is_seen_after_a_mean_of_weights(rounding: Rounding) -> None:
    buffer, wire = torch.ones(2), ShortWire(LocalComm(), rounding)
    mean = SharedMean("block", flat_of(buffer), "weights", wire, 0.5)
    buffer[0] = math.inf
    mean.begin(buffer)()
    assert buffer.tolist() == [math.inf, 1.0]
    assert all(bool(each.isfinite().all()) for each in wire.state().values())
