"""Laws of short wires: 16 bits are sent, and what rounding takes is sent later."""

from pathlib import Path

import torch

from cxr_hvd.comm.horovod import HorovodComm
from cxr_hvd.partial.buffers import SharedMean
from cxr_hvd.partial.plan import Scope
from cxr_hvd.partial.wire import SHORT_DTYPES, ShortWire
from tests.laws.law import law
from tests.laws.parts import (
    ENDS,
    digest,
    engine_of,
    fresh_model,
    is_equal_everywhere,
    one_rank_a_site,
    random_batch,
    values,
)


@law(day="mpirun-2", night="gloo-2 mpirun-2-densenet121")
def short_wires_keep_shared_tensors_equal_and_near_the_exact_mean(comm: HorovodComm, folder: Path) -> None:
    """One step: 16 bits round by 1/256 at most. What many steps come to is the next law's."""
    for exchange in ("weights", "gradients"):
        results = {}
        for wire in ("float32", "bfloat16", "float16"):
            settings = {"private": ENDS, "exchange": exchange, "wire": wire}
            engine, plan = engine_of(comm, one_rank_a_site(comm), settings, "sgd")
            engine.state.model.train()
            engine.train_step(random_batch(comm.rank), 0)
            results[wire] = values(engine.state.model)
            assert is_equal_everywhere(comm, digest(results[wire], plan.names(Scope.SHARED))), wire
        start = fresh_model().state_dict()
        names = [n for n in plan.names(Scope.SHARED) if "running" not in n]
        way = torch.cat([(results["float32"][name] - start[name]).flatten() for name in names])
        for wire in SHORT_DTYPES:
            off = torch.cat([(results[wire][name] - results["float32"][name]).flatten() for name in names])
            assert off.norm() < 0.01 * way.norm(), f"{exchange} {wire}: {off.norm() / way.norm()}"


@law(day="mpirun-2 mpirun-3", night="gloo-2 mpirun-2-densenet121")
def what_rounding_takes_is_sent_later(comm: HorovodComm, folder: Path) -> None:
    """The sum over many exchanges is exact up to one rounding; without error feedback it would drift away."""
    generator = torch.Generator().manual_seed(comm.rank)
    own = torch.rand(1001, generator=generator) * 1e-3 + 1.0  # in bfloat16 every one of them is 1
    exact = torch.zeros_like(own, dtype=torch.float64)
    for rank in range(comm.num_ranks):
        other = torch.Generator().manual_seed(rank)
        exact += (torch.rand(1001, generator=other) * 1e-3 + 1.0).double()
    for dtype in SHORT_DTYPES.values():
        wire, total = ShortWire(comm, dtype), torch.zeros_like(exact)
        for _ in range(64):
            buffer = own.clone()
            wire.begin_allreduce("block", buffer, "gradients")()
            total += buffer.double()
        one_rounding = 4 * comm.num_ranks * float(torch.finfo(dtype).eps)
        assert float((total - 64 * exact).abs().max()) < one_rounding


@law(day="mpirun-2 mpirun-3", night="gloo-2 mpirun-2-densenet121")
def a_short_wire_rounds_the_last_step_and_not_the_whole_way(comm: HorovodComm, folder: Path) -> None:
    """Each rank walks 64 steps of its own length; the mean stays within a few roundings of one step."""
    for dtype in SHORT_DTYPES.values():
        buffer, length = torch.ones(1001), 1e-2 * (comm.rank + 1)
        mean = SharedMean({"block": buffer}, "weights", ShortWire(comm, dtype))
        for _ in range(64):
            buffer.add_(length)
            for wait in mean.begin(1 / comm.num_ranks):
                wait()
        exact = 1 + 64 * 1e-2 * (comm.num_ranks + 1) / 2
        off = float((buffer.double() - exact).abs().max())
        assert off < 2 * float(torch.finfo(dtype).eps) * 1e-2 * comm.num_ranks + 1e-5, f"{dtype}: {off}"


@law(day="mpirun-2 mpirun-3", night="gloo-2 mpirun-2-densenet121")
def what_16_bits_cannot_hold_goes_in_portions(comm: HorovodComm, folder: Path) -> None:
    wire, total = ShortWire(comm, torch.float16), torch.zeros(3)
    for step in range(8):
        buffer = torch.full((3,), 1e5 if step == 0 else 0.0)
        wire.begin_allreduce("block", buffer, "gradients")()
        assert bool(buffer.isfinite().all())
        total += buffer
    torch.testing.assert_close(total, torch.full((3,), 1e5 * comm.num_ranks), rtol=1e-3, atol=0)
