"""One rank of the jobs of `bench.slow_line`: takes whole steps of the engine, and what they are compared to.

`python -m bench.line_steps KIND --ways A,B --rounds N --out FILE`, under mpirun; rank 0 writes seconds a step by
way and round. With HOROVOD_CONTROLLER=gloo, Horovod works over Gloo, and MPI starts the ranks alone. Ways:

- `swap C`: both ranks send each other C's bytes at once, through one TCP connection.
- `bare`, `bare barrier`, `bare flat C`: a hand-written loop that exchanges nothing; that waits for the other rank
  after each step; that sums C's numbers after each step by one flat Allreduce.
- `alone`: the engine in a job of one rank.
- `C float32 1`, `D float32 8 overlap`, `C float32 gradients`: the engine, by experiment, wire and steps from one
  average to the next; `C float32 never` exchanges the status alone.
- `ddp C`, `optimizer`: as in `bench.steps`.
"""

import argparse
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from mpi4py import MPI  # before Horovod, which then takes over an MPI that several threads may call

from bench.exchanges import measure_in_turn
from bench.steps import PRIVATE, WORLD, EngineStep, Step, build_step
from cxr_hvd.comm.communicator import Communicator
from cxr_hvd.comm.local import LocalComm
from cxr_hvd.comm.sites import Topology, bind
from cxr_hvd.comm.start import start_comm
from cxr_hvd.config.sections import Model
from cxr_hvd.models.build import build_model
from cxr_hvd.partial.blocks import tensor_specs
from cxr_hvd.partial.plan import SharingPlan, build_plan
from cxr_hvd.study.labels import LABELS

CYCLE = 8
"""Steps from one average to the next, where not each step averages."""

STEPS_AT_ONCE = {"line": 1, "machine": CYCLE}
"""Steps a turn of a way that exchanges in each step, by the kind of job; of all others a cycle."""

NEVER = 1_000_000_000


class Swap:
    """Sends and receives so many bytes at once, through one TCP connection to the other rank."""

    def __init__(self, num_bytes: int) -> None:
        port = np.zeros(1, dtype=np.int64)
        address = os.environ["MASTER_ADDR"]
        if WORLD.rank == 0:
            with socket.create_server((address, 0)) as server:
                port[0] = server.getsockname()[1]
                WORLD.Bcast(port)
                self._socket, _ = server.accept()
        else:
            WORLD.Bcast(port)
            self._socket = socket.create_connection((address, int(port[0])))
        self._sent, self._received = bytes(num_bytes), bytearray(num_bytes)

    def __call__(self) -> None:
        sender = threading.Thread(target=self._socket.sendall, args=(self._sent,))
        sender.start()
        room = memoryview(self._received)
        while room:
            count = self._socket.recv_into(room)
            if not count:
                raise ConnectionError("expected the other rank's bytes, found the end of the connection")
            room = room[count:]
        sender.join()


class BarrierAfter:
    """A step, and a wait for the other rank after it."""

    def __init__(self, step: Step) -> None:
        self._step = step

    def __call__(self) -> None:
        self._step()
        WORLD.Barrier()


class AllreduceAfter:
    """A step, and one flat Allreduce of so many float32 numbers after it."""

    def __init__(self, step: Step, num_elements: int) -> None:
        self._step = step
        self._values = np.zeros(num_elements, dtype=np.float32)

    def __call__(self) -> None:
        self._step()
        WORLD.Allreduce(MPI.IN_PLACE, self._values)


def timed(
    once: Callable[[], object],
    num_steps: int,
    num_uncounted: int = 0,
    land: Callable[[], object] = lambda: None,
) -> Callable[[], dict[str, float]]:
    """Time several steps after some that do not count; return the seconds of one.

    Args:
        land: called at the end of a turn, uncounted, so that nothing is under way in the others' turns.
    """

    def seconds() -> dict[str, float]:
        for _ in range(num_uncounted):
            once()
        started = time.perf_counter()
        for _ in range(num_steps):
            once()
        spent = time.perf_counter() - started
        land()
        return {"step": spent / num_steps}

    return seconds


def plan_of(name: str, model: torch.nn.Module) -> SharingPlan:
    """Return the plan of `EXPERIMENT WIRE EVERY [overlap]`; EVERY may be `never` or `gradients`."""
    letter, wire, pace, *rest = name.split()
    exchange = "gradients" if pace == "gradients" else "weights"
    every = {"never": NEVER, "gradients": 1}.get(pace) or int(pace)
    return build_plan(
        tensor_specs(model),
        PRIVATE[letter],
        exchange=exchange,  # type: ignore[arg-type]
        wire=wire,  # type: ignore[arg-type]
        every=every,
        overlap=bool(rest),
    )


def build_way(name: str, comm: Communicator, topology: Topology, kind: str) -> Callable[[], dict[str, float]]:
    """Build a way by its name; the module docstring lists the names."""
    model = build_model(Model(), len(LABELS), seed=1)
    shared = build_plan(tensor_specs(model)).bytes_per_exchange()
    num_steps = STEPS_AT_ONCE[kind]
    if name == "swap C":
        return timed(Swap(shared), 1)
    if name == "bare":
        return timed(Step(model), CYCLE)
    if name == "bare barrier":
        return timed(BarrierAfter(Step(model)), CYCLE)
    if name == "bare flat C":
        return timed(AllreduceAfter(Step(model), shared // 4), CYCLE)
    if name == "alone":
        alone = LocalComm()
        return timed(EngineStep(model, build_plan(tensor_specs(model)), alone, bind(alone, {"site": 1})), CYCLE)
    if name == "optimizer" or name.startswith("ddp"):
        return timed(build_step(name, comm, topology), num_steps)
    plan = plan_of(name, model)
    step = EngineStep(model, plan, comm, topology)
    if plan.every == 1 and kind == "line":
        return timed(step, num_steps, land=step.land)
    # A turn begins with nothing under way: averages in the background need a cycle to be as they always are.
    return timed(step, CYCLE, num_uncounted=CYCLE if plan.overlap else 1, land=step.land)


def start_gloo() -> object:
    """Let Horovod meet over Gloo, where the environment asks for it, though mpirun started the ranks.

    Returns:
        What has to live as long as the job.
    """
    if os.environ.get("HOROVOD_CONTROLLER") != "gloo":
        return None
    from horovod.runner.common.util.hosts import SlotInfo
    from horovod.runner.http.http_server import RendezvousServer

    size, rank = WORLD.size, WORLD.rank
    port, server = np.zeros(1, dtype=np.int64), RendezvousServer()
    if rank == 0:
        port[0] = server.start()
        server.init([SlotInfo(f"host{number}", number, 0, number, size, 1, size) for number in range(size)])
    WORLD.Bcast(port)
    numbers = {
        "RANK": rank,
        "SIZE": size,
        "LOCAL_RANK": 0,
        "LOCAL_SIZE": 1,
        "CROSS_RANK": rank,
        "CROSS_SIZE": size,
    }
    os.environ.update({f"HOROVOD_{name}": str(number) for name, number in numbers.items()})
    os.environ["HOROVOD_HOSTNAME"] = f"host{rank}"
    os.environ["HOROVOD_GLOO_IFACE"] = os.environ["BENCH_DEVICE"]
    os.environ["HOROVOD_GLOO_RENDEZVOUS_ADDR"] = os.environ["MASTER_ADDR"]
    os.environ["HOROVOD_GLOO_RENDEZVOUS_PORT"] = str(port[0])
    return server


def main() -> None:
    """Take part in one job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=tuple(STEPS_AT_ONCE))
    parser.add_argument("--ways", required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    server = start_gloo()
    comm = start_comm()
    topology = bind(comm, {f"site{rank}": 1 for rank in range(comm.num_ranks)})
    names = options.ways.split(",")
    if any(name.startswith("ddp") for name in names):
        torch.distributed.init_process_group("gloo", rank=comm.rank, world_size=comm.num_ranks)
    ways = {name: build_way(name, comm, topology, options.kind) for name in names}
    results = measure_in_turn(ways, options.rounds)
    if comm.rank == 0:
        options.out.write_text(json.dumps(results))
    WORLD.Barrier()
    comm.close()
    WORLD.Barrier()
    del server


if __name__ == "__main__":
    main()
