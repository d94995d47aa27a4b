"""Laws of bounce buffers: tensors that travel through the host's memory come to the same bits as all others."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cxr_hvd.comm import horovod
from cxr_hvd.comm.bounce import BounceBuffers
from cxr_hvd.comm.horovod import HorovodComm
from cxr_hvd.comm.transport import RankDevice, Transport
from tests.helpers.boundaries import CopyingBoundary
from tests.laws.law import law
from tests.laws.parts import ENDS, engine_of, is_equal_everywhere, one_rank_a_site, random_batch, values

CPU = torch.device("cpu")
EXCHANGES: list[dict[str, Any]] = [
    {"exchange": "weights"},
    {"exchange": "weights", "wire": "bfloat16"},
    {"exchange": "weights", "wire": "int8"},
    {"exchange": "weights", "overlap": True, "every": 2},
    {"exchange": "gradients"},
    {"exchange": "gradients", "wire": "float16"},
]


@contextmanager
def bounced(comm: HorovodComm) -> Iterator[CopyingBoundary]:
    """Let all tensors but those of float64 travel through copies: a step's status is on the host anyway."""
    boundary = CopyingBoundary(is_beyond=lambda tensor: tensor.dtype != torch.float64)
    before, comm._bounce = comm._bounce, BounceBuffers(boundary)
    try:
        yield boundary
    finally:
        comm._bounce = before


def ways(comm: HorovodComm) -> list[Tensor]:
    """What a rank has after one exchange of each kind, of awkward shapes."""
    generator = torch.Generator().manual_seed(comm.rank)
    buffer = torch.randn(1001, generator=generator)
    rows = torch.randn(comm.num_ranks, 7, generator=generator)
    short = torch.randn(5, generator=generator).to(torch.bfloat16)
    wait = comm.begin_allreduce(buffer, "weights", {"block": buffer.numel()})
    wait_for_rows = comm.begin_alltoall(rows, "weights.rows")
    wait_for_short = comm.begin_allgather(short, "weights.short")
    wait()
    return [buffer, wait_for_rows(), wait_for_short(), comm.begin_allgather(torch.tensor(comm.rank), "steps")()]


@law(day="mpirun-2 gloo-2", night="mpirun-3")
def bounced_collectives_are_direct_ones_bit_for_bit(comm: HorovodComm, folder: Path) -> None:
    direct = ways(comm)
    with bounced(comm) as boundary:
        for turn in range(3):
            for plain, copied in zip(direct, ways(comm), strict=True):
                assert torch.equal(plain, copied) and plain.dtype == copied.dtype
            num_buffers = boundary.events.count("allocate")
            assert num_buffers == 4, f"{num_buffers} buffers after {turn + 1} exchanges"


@law(day="mpirun-2", night="gloo-2")
def a_bounced_tensor_is_not_touched_before_its_wait(comm: HorovodComm, folder: Path) -> None:
    with bounced(comm) as boundary:
        tensor = torch.full((100,), comm.rank + 1.0)
        wait = comm.begin_allreduce(tensor, "weights", {"block": tensor.numel()})
        is_equal_everywhere(comm, "all have begun")  # another exchange ends: the first one's data has gone out
        assert tensor.unique().tolist() == [comm.rank + 1.0]
        assert "to_device" not in boundary.events[:2]
        wait()
        assert tensor.unique().tolist() == [sum(range(comm.num_ranks + 1))]


@law(day="mpirun-2 gloo-2", night="mpirun-3 mpirun-2-densenet121")
def training_with_bounced_tensors_is_training_without(comm: HorovodComm, folder: Path) -> None:
    for settings in EXCHANGES:
        weights = []
        for way in (bounced, nullcontext):
            engine, _ = engine_of(comm, one_rank_a_site(comm), {"private": ENDS, **settings})
            engine.state.model.train()
            with way(comm) as boundary:
                for step in range(3):
                    engine.train_step(random_batch(comm.rank + 10 * step), step)
            assert way is nullcontext or "to_device" in boundary.events
            weights.append(values(engine.state.model))
        copied, direct = weights
        differing = [name for name in direct if not torch.equal(direct[name], copied[name])]
        assert not differing, f"{settings}: {differing}"


@law(day="mpirun-2 gloo-2", night="mpirun-3")
def ranks_agree_on_the_way_that_no_device_forbids(comm: HorovodComm, folder: Path) -> None:
    assert comm.use_device(CPU) == Transport(has_gpus=False)
    describe, before = horovod.describe_device, comm._bounce
    last = f"rank {comm.num_ranks - 1}"
    cases = {
        None: RankDevice(comm.rank + 1, True),
        "rank 0 and rank 1 share a GPU": RankDevice(7, True),
        f"{last} computes on a processor": RankDevice((comm.rank + 1) % comm.num_ranks, True),
        f"the Horovod of {last} is built without NCCL": RankDevice(comm.rank + 1, comm.rank < comm.num_ranks - 1),
    }
    try:
        for reason, device in cases.items():
            horovod.describe_device = lambda *_, device=device: device  # type: ignore[assignment, misc]
            assert comm.use_device(CPU) == Transport(has_gpus=True, bounce_reason=reason)
            assert (comm._bounce._boundary is not None) == (reason is not None)
    finally:
        horovod.describe_device, comm._bounce = describe, before
