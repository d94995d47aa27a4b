"""Laws of short wires: 16 or 8 bits are sent, and what rounding takes is sent later."""

from pathlib import Path

import torch

from cxr_hvd.comm.horovod import HorovodComm
from cxr_hvd.partial.buffers import FlatBuffer, run_lengths
from cxr_hvd.partial.means import SharedMean
from cxr_hvd.partial.plan import Scope
from cxr_hvd.partial.rounding import ROUNDINGS
from cxr_hvd.partial.wire import ShortWire
from tests.laws.law import law
from tests.laws.parts import (
    ENDS,
    digest,
    engine_of,
    fresh_model,
    is_equal_everywhere,
    one_rank_a_site,
    random_batch,
    take_step,
    values,
)

STEP_OF = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "int8": 1 / 127}
"""The distance of two neighbours in each form, to the greatest number of a row."""


def flat_of(values: torch.Tensor) -> FlatBuffer:
    """A flat buffer of one block, in rows of 100."""
    size = values.numel()
    return FlatBuffer(
        values, {"block": size}, run_lengths(min(100, size - start) for start in range(0, size, 100))
    )


@law(day="mpirun-2", night="gloo-2 mpirun-2-densenet121")
def short_wires_keep_shared_tensors_equal_and_near_the_exact_mean(comm: HorovodComm, folder: Path) -> None:
    """One step: 16 bits round by 1/256 at most, 8 bits by 1/254 of a row's greatest. Many steps: the next laws."""
    for exchange in ("weights", "gradients"):
        results = {}
        for wire in ("float32", *ROUNDINGS):
            settings = {"private": ENDS, "exchange": exchange, "wire": wire}
            engine, plan = engine_of(comm, one_rank_a_site(comm), settings, "sgd")
            engine.state.model.train()
            take_step(engine, random_batch(comm.rank), 0)
            results[wire] = values(engine.state.model)
            assert is_equal_everywhere(comm, digest(results[wire], plan.names(Scope.SHARED))), wire
        start = fresh_model().state_dict()
        names = [n for n in plan.names(Scope.SHARED) if "running" not in n]
        way = torch.cat([(results["float32"][name] - start[name]).flatten() for name in names])
        for wire in ROUNDINGS:
            off = torch.cat([(results[wire][name] - results["float32"][name]).flatten() for name in names])
            assert off.norm() < (0.03 if wire == "int8" else 0.01) * way.norm(), (
                f"{exchange} {wire}: {off.norm() / way.norm()}"
            )


@law(day="mpirun-2 mpirun-3", night="gloo-2 mpirun-2-densenet121")
def what_rounding_takes_is_sent_later(comm: HorovodComm, folder: Path) -> None:
    """The sum over many exchanges is exact up to one rounding; without error feedback it would drift away."""
    generator = torch.Generator().manual_seed(comm.rank)
    own = torch.rand(1001, generator=generator) * 1e-3 + 1.0  # in bfloat16 every one of them is 1
    exact = torch.zeros_like(own, dtype=torch.float64)
    for rank in range(comm.num_ranks):
        other = torch.Generator().manual_seed(rank)
        exact += (torch.rand(1001, generator=other) * 1e-3 + 1.0).double()
    for form, rounding in ROUNDINGS.items():
        wire, total = ShortWire(comm, rounding), torch.zeros_like(exact)
        for _ in range(64):
            buffer = own.clone()
            wire.begin_allreduce("block", flat_of(buffer), "gradients")()
            total += buffer.double()
        one_rounding = 4 * comm.num_ranks * STEP_OF[form]
        assert float((total - 64 * exact).abs().max()) < one_rounding, form


@law(day="mpirun-2 mpirun-3", night="gloo-2 mpirun-2-densenet121")
def a_short_wire_rounds_the_last_step_and_not_the_whole_way(comm: HorovodComm, folder: Path) -> None:
    """Each rank walks 64 steps of its own length; the mean stays within a few roundings of one step."""
    for form, rounding in ROUNDINGS.items():
        flat, length = flat_of(torch.ones(1001)), 1e-2 * (comm.rank + 1)
        mean = SharedMean("block", flat, "weights", ShortWire(comm, rounding), 1 / comm.num_ranks)
        buffer = flat.values
        for _ in range(64):
            buffer.add_(length)
            mean.begin(buffer)()
        exact = 1 + 64 * 1e-2 * (comm.num_ranks + 1) / 2
        off = float((buffer.double() - exact).abs().max())
        assert off < 2 * STEP_OF[form] * 1e-2 * comm.num_ranks + 1e-5, f"{form}: {off}"


@law(day="mpirun-2 mpirun-3", night="gloo-2 mpirun-2-densenet121")
def what_16_bits_cannot_hold_goes_in_portions(comm: HorovodComm, folder: Path) -> None:
    wire, total = ShortWire(comm, ROUNDINGS["float16"]), torch.zeros(3)
    for step in range(8):
        buffer = torch.full((3,), 1e5 if step == 0 else 0.0)
        wire.begin_allreduce("block", flat_of(buffer), "gradients")()
        assert bool(buffer.isfinite().all())
        total += buffer
    torch.testing.assert_close(total, torch.full((3,), 1e5 * comm.num_ranks), rtol=1e-3, atol=0)
