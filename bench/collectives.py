"""One rank of the jobs of `bench.scale`: times collectives of several sizes in turn, as the program calls them.

Owns what is called. Leaves to `bench.scale` where, how often, and what follows from it.
"""

import json
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from bench.report import turns
from cxr_hvd.comm.communicator import Communicator
from cxr_hvd.comm.sites import bind
from cxr_hvd.comm.start import start_comm
from cxr_hvd.config.schema import PRESETS
from cxr_hvd.ledger.allowed import Group
from cxr_hvd.models.build import build_model, tensor_specs
from cxr_hvd.partial.cost import PULSE_BYTES, Batch, Layout, batch_of
from cxr_hvd.partial.plan import SharingPlan, build_plan
from cxr_hvd.study.labels import LABELS

PRIVATE = {"C": PRESETS["none"], "D": PRESETS["ends"]}
SIZES = {"1 KiB": 1 << 10, "64 KiB": 1 << 16, "1 MiB": 1 << 20, "8 MiB": 8 << 20, "28 MiB": 28 << 20}
SECONDS_A_TURN, MOST_CALLS = 0.05, 50
UNCOUNTED = 3


@cache
def plan_of(letter: str, every: int = 1) -> SharingPlan:
    """Return the plan of experiment C or D."""
    specs = tensor_specs(build_model("densenet121", len(LABELS), seed=1))
    return build_plan(specs, PRIVATE[letter], every=every)


def batches(layout: Layout) -> dict[str, Batch]:
    """Return all that is measured, by name."""
    named = {"pulse": Batch(row_bytes=PULSE_BYTES)} | {name: Batch((size,)) for name, size in SIZES.items()}
    for letter in PRIVATE:
        exchange = batch_of(plan_of(letter))
        named[f"exchange {letter}"] = exchange if layout.ranks_per_site > 1 else Batch(exchange.shared)
    return named


def take_part(layout: Layout, num_rounds: int, out: Path) -> None:
    """Be one rank of a job of collectives. Rank 0 writes for each of them a list of seconds a call."""
    from mpi4py import MPI  # before Horovod, which then takes over an MPI that several threads may call

    world = MPI.COMM_WORLD
    torch.set_num_threads(1)
    comm = start_comm()
    bind(comm, {f"site{number}": layout.ranks_per_site for number in range(layout.num_sites)})
    calls = {name: build_call(name, batch, comm) for name, batch in batches(layout).items()}

    def slowest(call: Callable[[], None], num_calls: int) -> float:
        world.Barrier()
        started = time.perf_counter()
        for _ in range(num_calls):
            call()
        seconds: float = world.allreduce((time.perf_counter() - started) / num_calls, MPI.MAX)
        return seconds

    num_calls = {}
    for name, call in calls.items():
        call()
        least_s = min(slowest(call, 1) for _ in range(UNCOUNTED))
        num_calls[name] = max(1, min(MOST_CALLS, int(SECONDS_A_TURN / least_s)))
    told: dict[str, list[float]] = {name: [] for name in calls}
    for name, is_counted in turns(list(calls), num_rounds):
        seconds = slowest(calls[name], num_calls[name])
        if is_counted:
            told[name].append(seconds)
    if comm.rank == 0:
        out.write_text(json.dumps(told))
    world.Barrier()
    comm.close()


def build_call(name: str, batch: Batch, comm: Communicator) -> Callable[[], None]:
    """Return a function that begins all of a batch and waits for it. Collective: all ranks."""
    if batch.row_bytes:
        row = torch.zeros(batch.row_bytes // 8, dtype=torch.float64)

        def gather_once() -> None:
            comm.begin_allgather(row, "pulse")()

        return gather_once
    kinds: list[tuple[str, Group, tuple[int, ...]]] = [
        ("weights", "all", batch.shared),
        ("private", "site", batch.private),
    ]
    sums = [(purpose, group, torch.zeros(size // 4)) for purpose, group, sizes in kinds for size in sizes]

    def call() -> None:
        waits = [
            comm.begin_allreduce({f"{name} {number}": buffer}, purpose, group)
            for number, (purpose, group, buffer) in enumerate(sums)
        ]
        for wait in waits:
            wait()

    return call
