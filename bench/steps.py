"""Training steps with every way of exchange, of cxr_hvd and of its peers, for the benches.

`build_step` makes a step from its name: `none`, `naive`, `engine C`, `ddp C`, `optimizer`, or an exchange of
cxr_hvd such as `weights C float32`; with `late ` before it, the exchange begins after the backward pass.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from mpi4py import MPI  # before Horovod, which then takes over an MPI that several threads may call
from torch import Tensor, nn

from cxr_hvd.comm.communicator import Communicator, Parts, Wait
from cxr_hvd.comm.job import Job
from cxr_hvd.comm.sites import Topology
from cxr_hvd.comm.transport import Transport
from cxr_hvd.comm.watchdog import Watchdog
from cxr_hvd.config.schema import Training
from cxr_hvd.config.sections import Model
from cxr_hvd.data.loader import Batch
from cxr_hvd.ledger.allowed import Group
from cxr_hvd.ledger.writer import Ledger
from cxr_hvd.models.build import build_model
from cxr_hvd.models.forward import forward
from cxr_hvd.partial.averager import PartialAverager
from cxr_hvd.partial.blocks import tensor_specs
from cxr_hvd.partial.plan import Scope, SharingPlan, build_plan
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import MAX_IMAGES
from cxr_hvd.training.engine import Engine
from cxr_hvd.training.loss import MultiLabelLoss
from cxr_hvd.training.state import start_state

PRIVATE = {"C": "none", "D": "ends"}
BATCH, IMAGES, SIDE = 8, 2, 96
WORLD = MPI.COMM_WORLD
BCE = MultiLabelLoss()


class HeldComm:
    """A communicator that delays every collective until `release`, or until a rank waits for its result."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self._held: list[Callable[[], None]] = []
        self.rank, self.num_ranks = comm.rank, comm.num_ranks
        self.local_rank, self.ranks_per_node = comm.local_rank, comm.ranks_per_node
        self.ledger: Ledger = comm.ledger
        self.watchdog: Watchdog = comm.watchdog

    def form_site_groups(self, site_of_rank: Any) -> None:
        self._comm.form_site_groups(site_of_rank)

    def use_device(self, device: torch.device) -> Transport:
        return self._comm.use_device(device)

    def begin_allreduce(self, tensor: Tensor, purpose: str, parts: Parts, group: Group = "all") -> Wait[None]:
        return self._hold(lambda: self._comm.begin_allreduce(tensor, purpose, parts, group))

    def begin_allgather(self, tensor: Tensor, purpose: str, parts: Parts | None = None) -> Wait[Tensor]:
        return self._hold(lambda: self._comm.begin_allgather(tensor, purpose, parts))

    def begin_alltoall(self, rows: Tensor, purpose: str, parts: Parts | None = None) -> Wait[Tensor]:
        return self._hold(lambda: self._comm.begin_alltoall(rows, purpose, parts))

    def start_timeline(self, path: str) -> None:
        self._comm.start_timeline(path)

    def stop_timeline(self) -> None:
        self._comm.stop_timeline()

    def close(self) -> None:
        self._comm.close()

    def release(self) -> None:
        """Begin the delayed collectives, in their order."""
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
    """The same with an exchange of cxr_hvd, called as the engine calls it."""

    def __init__(self, model: nn.Module, averager: PartialAverager, held: HeldComm | None) -> None:
        super().__init__(model)
        self.averager = averager
        self._held = held

    def __call__(self) -> dict[str, float]:
        started = time.perf_counter()
        loss = self.loss()
        exchanges_gradients = self.averager.plan.exchange == "gradients"
        self.averager.begin(int(self.known.sum()))
        loss.backward()  # type: ignore[no-untyped-call]
        behind = time.perf_counter()
        if self._held:
            self._held.release()
        if exchanges_gradients:
            self.averager.average()
        waited = time.perf_counter() - behind
        self.optimizer.step()
        updated = time.perf_counter()
        if not exchanges_gradients:
            self.averager.average()
        ended = time.perf_counter()
        self.step += 1
        return {"step": ended - started, "exchange": waited + ended - updated}


class EngineStep(Step):
    """A whole step of the engine, with all that it does besides: norms, status, learning rate."""

    def __init__(self, model: nn.Module, plan: SharingPlan, comm: Communicator, topology: Topology) -> None:
        self.job = job = Job(comm, topology)
        weights = [1 / topology.num_sites] * topology.num_sites
        settings = Training(learning_rate=1e-5, schedule="constant", precision="bf16")
        self.plan = plan
        state = start_state(model, settings, job, plan, weights)
        self.engine = Engine(state, job, plan, settings, num_steps=1_000_000_000)
        super().__init__(model)
        self.batch = Batch(self.images, self.targets, self.known.bool())

    def build_optimizer(self) -> Any:
        return self.engine.state.optimizer

    def __call__(self) -> dict[str, float]:
        started = time.perf_counter()
        self.engine.train_step(self.batch, self.step)
        self.step += 1
        return {"step": time.perf_counter() - started}

    def land(self) -> None:
        """Wait for all that is under way: averages in the background, and what is read late of the last steps."""
        self.engine.catch_up()
        self.engine.state.averager.state_dict()


class NaiveStep(Step):
    """A plain loop: float32, no memory format, all 20 channels, an optimizer that is not fused."""

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
) -> tuple[PartialAverager, SharingPlan]:
    """Build an averager of cxr_hvd from `EXCHANGE EXPERIMENT WIRE`, such as `weights C float32`."""
    exchange, experiment, wire = name.split()
    plan = build_plan(
        tensor_specs(model),
        PRIVATE[experiment],
        exchange=exchange,
        wire=wire,  # type: ignore[arg-type]
    )
    idle = torch.optim.SGD(model.parameters())  # its running means are not averaged
    return PartialAverager.of_plan(model, idle, Job(comm, topology), plan, [0.5, 0.5]), plan


def build_step(name: str, comm: Communicator, topology: Topology) -> Step:
    """Build a step by its name; the module docstring lists the names."""
    model = build_model(Model(), len(LABELS), seed=1)
    if name == "none":
        return Step(model)
    if name == "optimizer":
        return HorovodStep(model)
    if name == "naive":
        return NaiveStep(model)
    if name.startswith("engine"):
        plan = build_plan(tensor_specs(model), PRIVATE[name.split()[1]])
        return EngineStep(model, plan, comm, topology)
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
