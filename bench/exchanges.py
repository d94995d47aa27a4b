"""One rank of the jobs of `bench.averaging` and `bench.training`: takes steps, or only averages, in several ways.

`python -m bench.exchanges KIND --ways A,B --rounds N --out FILE`, under mpirun. Rank 0 writes a JSON object: for
each way and each clock a list of seconds, round by round. The names of ways are those of `build_step` and
`build_alone`.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from mpi4py import MPI  # before Horovod, which then takes over an MPI that several threads may call
from torch import Tensor

from bench.report import turns
from bench.steps import WORLD, OurStep, build_averager, build_step
from cxr_hvd.comm.communicator import Communicator
from cxr_hvd.comm.sites import Topology, bind
from cxr_hvd.comm.start import start_comm
from cxr_hvd.config.sections import Model
from cxr_hvd.models.build import build_model
from cxr_hvd.study.labels import LABELS
from lab.two_sites import traffic_here

INNER = 3
UNCOUNTED = 3
# A step takes as long as on the slowest rank. The last rank to arrive at an exchange waits only for its end; the
# waits of other ranks also hold the time by which that rank was late.
CLOCKS = {"step": MPI.MAX, "exchange": MPI.MIN}


def build_alone(name: str, comm: Communicator, topology: Topology) -> Callable[[], Any]:
    """Build a way to average C's tensors, or D's, with no training around it."""
    model = build_model(Model(), len(LABELS), seed=1)
    tensors = [*model.parameters(), *model.buffers()]
    floats = [tensor for tensor in tensors if tensor.is_floating_point()]
    flat = torch.zeros(sum(tensor.numel() for tensor in floats))
    if name == "flat":
        values = flat.numpy()
        return lambda: WORLD.Allreduce(MPI.IN_PLACE, values)
    if name == "gloo":
        return lambda: torch.distributed.all_reduce(flat)
    if name in ("horovod grouped", "horovod each"):
        return horovod_alone(name, [tensor.detach() for tensor in floats])
    averager, _ = build_averager(name, comm, topology, model)
    return averager.average


def horovod_alone(name: str, tensors: list[Tensor]) -> Callable[[], Any]:
    """Average a bare list of tensors: as one group, or each by itself, all begun before any is waited for."""
    import horovod.torch as hvd

    if name == "horovod grouped":
        return lambda: hvd.grouped_allreduce_(tensors, name="list", op=hvd.Sum)

    def one_by_one() -> None:
        handles = [
            hvd.allreduce_async_(tensor, name=f"one.{number}", op=hvd.Sum) for number, tensor in enumerate(tensors)
        ]
        for handle in handles:
            hvd.synchronize(handle)

    return one_by_one


def several(once: Callable[[], Any]) -> Callable[[], dict[str, float]]:
    """Time several calls, and return the seconds of one."""

    def timed() -> dict[str, float]:
        started = time.perf_counter()
        for _ in range(INNER):
            once()
        return {"step": (time.perf_counter() - started) / INNER}

    return timed


def measure_in_turn(ways: Mapping[str, Callable[[], dict[str, float]]], num_rounds: int) -> dict[str, Any]:
    """Time each way once a round, in an order that turns; the first round is not counted."""
    results: dict[str, dict[str, list[float]]] = {name: {} for name in ways}
    with torch.enable_grad():
        for name, is_counted in turns(list(ways), num_rounds):
            WORLD.Barrier()
            for clock, seconds in ways[name]().items():
                over_ranks = WORLD.allreduce(seconds, CLOCKS[clock])
                if is_counted:
                    results[name].setdefault(clock, []).append(over_ranks)
    return results


def measure_bytes(names: list[str], comm: Communicator, topology: Topology, num_rounds: int) -> dict[str, Any]:
    """Count what leaves this rank by its site's interface: bytes of a step, of theory and of the ledger."""
    device = os.environ["BENCH_DEVICE"]
    results: dict[str, dict[str, list[float]]] = {}
    for name in names:
        model = build_model(Model(), len(LABELS), seed=1)
        averager, plan = build_averager(name, comm, topology, model)
        step = OurStep(model, averager, None)
        for _ in range(UNCOUNTED):
            step()
        theory = 2 * (comm.num_ranks - 1) / comm.num_ranks * plan.bytes_per_exchange()
        results[name] = {"wire": [], "theory": [theory], "ledger": []}
        for _ in range(num_rounds):
            WORLD.Barrier()
            counted, noted = traffic_here(device).sent_bytes, comm.ledger.sent_bytes()
            step()
            WORLD.Barrier()
            results[name]["wire"].append(traffic_here(device).sent_bytes - counted)
            results[name]["ledger"].append(comm.ledger.sent_bytes() - noted)
    return results


def main() -> None:
    """Take part in one job."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("alone", "steps", "bytes"))
    parser.add_argument("--ways", required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    comm = start_comm()
    topology = bind(comm, {f"site{rank}": 1 for rank in range(comm.num_ranks)})
    names = options.ways.split(",")
    if any(name.startswith(("ddp", "gloo")) for name in names):
        torch.distributed.init_process_group("gloo", rank=comm.rank, world_size=comm.num_ranks)
    results: dict[str, Any]
    if options.kind == "bytes":
        results = measure_bytes(names, comm, topology, options.rounds)
    elif options.kind == "alone":
        alone = {name: several(build_alone(name, comm, topology)) for name in names}
        results = measure_in_turn(alone, options.rounds)
    else:
        results = measure_in_turn({name: build_step(name, comm, topology) for name in names}, options.rounds)
    if comm.rank == 0:
        options.out.write_text(json.dumps(results))
    WORLD.Barrier()
    comm.close()


if __name__ == "__main__":
    main()
