"""One rank of the jobs of `bench.averaging` and `bench.training`: takes steps, or averages alone, by several ways.

`python -m bench.exchanges KIND --ways A,B --rounds N --out FILE`, under mpirun. Rank 0 writes a JSON object: for
each way and each clock a list of seconds, round by round. A way is named as in `build_step` and `build_alone`.
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
from torch import Tensor, nn

from bench.report import turns
from cxr_hvd.comm.communicator import Communicator, Wait
from cxr_hvd.comm.job import Job
from cxr_hvd.comm.sites import Topology, bind
from cxr_hvd.comm.start import start_comm
from cxr_hvd.comm.watchdog import Watchdog
from cxr_hvd.config.schema import PRESETS
from cxr_hvd.config.sections import Training
from cxr_hvd.data.loader import Batch
from cxr_hvd.ledger.allowed import Group
from cxr_hvd.ledger.writer import Ledger
from cxr_hvd.models.build import build_model, tensor_specs
from cxr_hvd.models.forward import forward
from cxr_hvd.partial.averager import EXCHANGES, Averager
from cxr_hvd.partial.plan import Scope, SharingPlan, build_plan
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import MAX_IMAGES
from cxr_hvd.training.engine import Engine
from cxr_hvd.training.loss import MultiLabelLoss
from cxr_hvd.training.state import start_state
from lab.two_sites import traffic_here

PRIVATE = {"C": PRESETS["none"], "D": PRESETS["ends"]}
BATCH, IMAGES, SIDE = 8, 2, 96
INNER = 3
UNCOUNTED = 3
WORLD = MPI.COMM_WORLD
BCE = MultiLabelLoss()
# A step lasts as long as on the slowest rank. Who comes last to an exchange waits for nothing else than its end;
# the other's wait holds what that one was late by too.
CLOCKS = {"step": MPI.MAX, "exchange": MPI.MIN}


class HeldComm:
    """A communicator that begins no sum, swap or gather until it is told to, or someone waits for it."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self._held: list[Callable[[], None]] = []
        self.rank, self.num_ranks = comm.rank, comm.num_ranks
        self.local_rank, self.ranks_per_node = comm.local_rank, comm.ranks_per_node
        self.ledger: Ledger = comm.ledger
        self.watchdog: Watchdog = comm.watchdog

    def form_site_groups(self, site_of_rank: Any) -> None:
        self._comm.form_site_groups(site_of_rank)

    def begin_allreduce(self, tensors: Mapping[str, Tensor], purpose: str, group: Group = "all") -> Wait[None]:
        return self._hold(lambda: self._comm.begin_allreduce(tensors, purpose, group))

    def begin_allgather(self, tensor: Tensor, purpose: str) -> Wait[Tensor]:
        return self._hold(lambda: self._comm.begin_allgather(tensor, purpose))

    def begin_alltoall(self, rows: Tensor, purpose: str) -> Wait[Tensor]:
        return self._hold(lambda: self._comm.begin_alltoall(rows, purpose))

    def start_timeline(self, path: str) -> None:
        self._comm.start_timeline(path)

    def stop_timeline(self) -> None:
        self._comm.stop_timeline()

    def close(self) -> None:
        self._comm.close()

    def release(self) -> None:
        """Begin all that is held, in the order in which it came."""
        for begin in self._held:
            begin()
        self._held.clear()

    def _hold(self, start: Callable[[], Wait[Any]]) -> Wait[Any]:
        begun: list[Wait[Any]] = []

        def begin() -> None:
            if not begun:
                begun.append(start())

        def wait() -> Any:
            begin()
            return begun[0]()

        self._held.append(begin)
        return wait


class Step:
    """A whole training step without any exchange: forward, backward, update."""

    def __init__(self, model: nn.Module) -> None:
        generator = torch.Generator().manual_seed(WORLD.rank)
        self.images = torch.rand(BATCH, IMAGES, SIDE, SIDE, generator=generator)
        self.targets = (torch.rand(BATCH, len(LABELS), generator=generator) < 0.2).float()
        self.known = torch.ones(BATCH, len(LABELS))
        self.model = model.train()
        self.optimizer = self.build_optimizer()
        self.step = 0

    def build_optimizer(self) -> Any:
        return torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)

    def loss(self) -> Tensor:
        self.optimizer.zero_grad()  # to None; Horovod takes no argument
        return BCE(forward(self.model, self.images, "bf16"), self.targets, self.known)

    def __call__(self) -> dict[str, float]:
        """Take a step; return seconds of the step, and of what was waited for outside of backward."""
        started = time.perf_counter()
        loss = self.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return {"step": time.perf_counter() - started}


class OurStep(Step):
    """The same with an exchange of ours, as the engine has it."""

    def __init__(self, model: nn.Module, averager: Averager, held: HeldComm | None) -> None:
        super().__init__(model)
        self.averager = averager
        self._held = held

    def __call__(self) -> dict[str, float]:
        started = time.perf_counter()
        loss = self.loss()
        self.averager.begin(self.step, int(self.known.sum()))
        loss.backward()  # type: ignore[no-untyped-call]
        behind = time.perf_counter()
        if self._held:
            self._held.release()
        self.averager.before_update()
        waited = time.perf_counter() - behind
        self.optimizer.step()
        updated = time.perf_counter()
        self.averager.after_update(self.step, False, self.optimizer)
        ended = time.perf_counter()
        self.step += 1
        return {"step": ended - started, "exchange": waited + ended - updated}


class EngineStep(Step):
    """A whole step of the engine, with all that it does besides: norms, pulse, learning rate."""

    def __init__(self, model: nn.Module, letter: str, comm: Communicator, topology: Topology) -> None:
        plan = build_plan(tensor_specs(model), PRIVATE[letter])
        self.job = job = Job(comm, topology)
        averager = EXCHANGES["weights"](model, plan, job, [1 / topology.num_sites] * topology.num_sites)
        settings = Training(learning_rate=1e-5, schedule="constant", precision="bf16")
        self.plan = plan
        self.engine = Engine(start_state(model, averager, settings), job, plan, settings, num_steps=1_000_000_000)
        super().__init__(model)
        self.batch = Batch(self.images, self.targets, self.known.bool())

    def build_optimizer(self) -> Any:
        return self.engine.state.optimizer

    def __call__(self) -> dict[str, float]:
        started = time.perf_counter()
        self.engine.train_step(self.batch, self.step)
        self.step += 1
        return {"step": time.perf_counter() - started}


class NaiveStep(Step):
    """What is written first: float32, no memory format, all 20 channels, an optimizer that is not fused."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        empty = torch.zeros(BATCH, MAX_IMAGES - IMAGES, SIDE, SIDE)
        self.images = torch.cat([self.images, empty], dim=1)

    def build_optimizer(self) -> Any:
        return torch.optim.AdamW(self.model.parameters(), lr=1e-5, foreach=False)

    def loss(self) -> Tensor:
        self.optimizer.zero_grad()
        return BCE(self.model(self.images), self.targets, self.known)


class HorovodStep(Step):
    """The same with Horovod's own optimizer."""

    def build_optimizer(self) -> Any:
        import horovod.torch as hvd

        return hvd.DistributedOptimizer(super().build_optimizer(), named_parameters=self.model.named_parameters())


def build_averager(
    name: str, comm: Communicator, topology: Topology, model: nn.Module
) -> tuple[Averager, SharingPlan]:
    """Build ours from `EXCHANGE EXPERIMENT WIRE`, as in `weights C float32`."""
    exchange, experiment, wire = name.split()
    plan = build_plan(
        tensor_specs(model),
        PRIVATE[experiment],
        exchange=exchange,
        wire=wire,  # type: ignore[arg-type]
    )
    return EXCHANGES[exchange](model, plan, Job(comm, topology), [0.5, 0.5]), plan


def build_step(name: str, comm: Communicator, topology: Topology) -> Step:
    """Build a way to take steps: none, naive, engine C, one exchange of ours (`late`: after backward), ddp C,
    optimizer."""
    model = build_model("densenet121", len(LABELS), seed=1)
    if name == "none":
        return Step(model)
    if name == "optimizer":
        return HorovodStep(model)
    if name == "naive":
        return NaiveStep(model)
    if name.startswith("engine"):
        return EngineStep(model, name.split()[1], comm, topology)
    if name.startswith("ddp"):
        return Step(wrap_in_ddp(model, name.split()[1]))
    held = HeldComm(comm) if name.startswith("late ") else None
    averager, _ = build_averager(name.removeprefix("late "), held or comm, topology, model)
    return OurStep(model, averager, held)


def wrap_in_ddp(model: nn.Module, experiment: str) -> nn.Module:
    """Wrap in torch's DistributedDataParallel, which leaves the experiment's private tensors alone."""
    parallel = torch.nn.parallel.DistributedDataParallel
    private = build_plan(tensor_specs(model), PRIVATE[experiment]).names(Scope.PRIVATE)
    if private:
        parallel._set_params_and_buffers_to_ignore_for_model(model, private)
    wrapped: nn.Module = parallel(model)
    return wrapped


def build_alone(name: str, comm: Communicator, topology: Topology) -> Callable[[], Any]:
    """Build a way to average C's tensors, or D's, with no training around it."""
    model = build_model("densenet121", len(LABELS), seed=1)
    floats = [each for each in [*model.parameters(), *model.buffers()] if each.is_floating_point()]
    flat = torch.zeros(sum(each.numel() for each in floats))
    if name == "flat":
        values = flat.numpy()
        return lambda: WORLD.Allreduce(MPI.IN_PLACE, values)
    if name == "gloo":
        return lambda: torch.distributed.all_reduce(flat)
    if name in ("horovod grouped", "horovod each"):
        return horovod_alone(name, [each.detach() for each in floats])
    averager, _ = build_averager(name, comm, topology, model)
    idle = torch.optim.SGD(model.parameters())
    return lambda: averager.after_update(0, True, idle)


def horovod_alone(name: str, tensors: list[Tensor]) -> Callable[[], Any]:
    """Average a bare list of tensors: as one group, or each by itself, all begun before any is waited for."""
    import horovod.torch as hvd

    if name == "horovod grouped":
        return lambda: hvd.grouped_allreduce_(tensors, name="list", op=hvd.Sum)

    def each() -> None:
        handles = [
            hvd.allreduce_async_(tensor, name=f"one.{number}", op=hvd.Sum) for number, tensor in enumerate(tensors)
        ]
        for handle in handles:
            hvd.synchronize(handle)

    return each


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
    told: dict[str, dict[str, list[float]]] = {name: {} for name in ways}
    with torch.enable_grad():
        for name, is_counted in turns(list(ways), num_rounds):
            WORLD.Barrier()
            for clock, seconds in ways[name]().items():
                told_by_all = WORLD.allreduce(seconds, CLOCKS[clock])
                if is_counted:
                    told[name].setdefault(clock, []).append(told_by_all)
    return told


def measure_bytes(names: list[str], comm: Communicator, topology: Topology, num_rounds: int) -> dict[str, Any]:
    """Count what leaves this rank by its site's interface: bytes of a step, of theory and of the ledger."""
    device = os.environ["BENCH_DEVICE"]
    told: dict[str, dict[str, list[float]]] = {}
    for name in names:
        model = build_model("densenet121", len(LABELS), seed=1)
        averager, plan = build_averager(name, comm, topology, model)
        step = OurStep(model, averager, None)
        for _ in range(UNCOUNTED):
            step()
        theory = 2 * (comm.num_ranks - 1) / comm.num_ranks * plan.bytes_per_exchange()
        told[name] = {"wire": [], "theory": [theory], "ledger": []}
        for _ in range(num_rounds):
            WORLD.Barrier()
            counted, noted = traffic_here(device).sent_bytes, comm.ledger.sent_bytes()
            step()
            WORLD.Barrier()
            told[name]["wire"].append(traffic_here(device).sent_bytes - counted)
            told[name]["ledger"].append(comm.ledger.sent_bytes() - noted)
    return told


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
    told: dict[str, Any]
    if options.kind == "bytes":
        told = measure_bytes(names, comm, topology, options.rounds)
    elif options.kind == "alone":
        alone = {name: several(build_alone(name, comm, topology)) for name in names}
        told = measure_in_turn(alone, options.rounds)
    else:
        told = measure_in_turn({name: build_step(name, comm, topology) for name in names}, options.rounds)
    if comm.rank == 0:
        options.out.write_text(json.dumps(told))
    WORLD.Barrier()
    comm.close()


if __name__ == "__main__":
    main()
