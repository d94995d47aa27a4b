"""Laws of the library: partial averaging in a training loop of one's own, on networks that nobody foresaw."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cxr_hvd.comm.horovod import HorovodComm
from cxr_hvd.comm.job import Job
from cxr_hvd.comm.sites import bind
from cxr_hvd.errors import ConfigError, ContractError, TrainingError, UsageError
from cxr_hvd.partial.averager import PartialAverager
from cxr_hvd.partial.plan import Scope
from tests.laws.law import law
from tests.laws.parts import digest, fails_with, is_equal_everywhere, one_rank_a_site, values

WAYS: list[dict[str, Any]] = [
    {},
    {"wire": "bfloat16"},
    {"wire": "float16", "every": 2},
    {"optimizer_state": "shared"},
    {"exchange": "gradients"},
    {"exchange": "gradients", "wire": "bfloat16"},
]


def network(seed: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)]
    return nn.Sequential(*layers)


class Loop:
    """A training loop as a user writes it: own network, torch's optimizer with parameter groups, own data."""

    def __init__(self, comm: HorovodComm, begins: bool = False, **settings: Any) -> None:
        self.job = Job(comm, one_rank_a_site(comm))
        self.model = network()
        groups = [{"params": [p for p in self.model.parameters() if p.dim() > 1], "weight_decay": 0.1}]
        groups += [{"params": [p for p in self.model.parameters() if p.dim() < 2], "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.01)
        self.averager = PartialAverager(self.model, self.optimizer, self.job, **{"private": ["head"]} | settings)
        self.data = torch.Generator().manual_seed(comm.rank)
        self.begins = begins

    def step(self) -> None:
        self.optimizer.zero_grad()
        loss = self.model(torch.rand(5, 6, generator=self.data)).square().sum()
        if self.begins:
            self.averager.begin()
        loss.backward()
        if self.averager.plan.exchange == "gradients":
            self.averager.average()
        self.optimizer.step()
        if self.averager.plan.exchange == "weights":
            self.averager.average()

    def run(self, num_steps: int) -> dict[str, Tensor]:
        for _ in range(num_steps):
            self.step()
        self.averager.close()
        return values(self.model)


@law(day="mpirun-2 gloo-2 mpirun-3")
def own_loops_keep_shared_blocks_equal_and_private_ones_apart(comm: HorovodComm, folder: Path) -> None:
    for way in WAYS:
        loop = Loop(comm, **way)
        after = loop.run(3)
        shared, private = (loop.averager.plan.names(scope) for scope in (Scope.SHARED, Scope.PRIVATE))
        assert is_equal_everywhere(comm, digest(after, shared)), way
        assert private == ("5.weight", "5.bias") and not is_equal_everywhere(comm, digest(after, private)), way
        assert "head   private" in str(loop.averager.plan)


@law(day="mpirun-2 gloo-2")
def gradients_that_leave_during_backward_come_to_the_same(comm: HorovodComm, folder: Path) -> None:
    results = [Loop(comm, begins, exchange="gradients").run(3) for begins in (False, True)]
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@law(day="mpirun-2")
def gradients_that_several_passes_add_up_are_averaged_as_one(comm: HorovodComm, folder: Path) -> None:
    def gradients(num_passes: int, begins: bool) -> list[Tensor]:
        loop = Loop(comm, exchange="gradients")
        images = torch.rand(4, 6, generator=loop.data)
        loop.model.eval()
        for number, part in enumerate(images.chunk(num_passes)):
            if begins and number == num_passes - 1:
                loop.averager.begin()
            loop.model(part).square().sum().backward()
        loop.averager.average()
        return [parameter.grad for parameter in loop.model.parameters() if parameter.grad is not None]

    at_once = gradients(1, begins=False)
    for begins in (False, True):
        for one, other in zip(at_once, gradients(2, begins), strict=True):
            torch.testing.assert_close(one, other)


@law(day="mpirun-3")
def ranks_of_a_site_count_as_they_say(comm: HorovodComm, folder: Path) -> None:
    """Ranks 1 and 2 are one site: their private gradients 2 and 3 count 2 and 3."""
    job, model = Job(comm, bind(comm, {"one": 1, "two": 2})), network()
    averager = PartialAverager(model, torch.optim.SGD(model.parameters()), job, "all", exchange="gradients")
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, comm.rank + 1.0)
    averager.average(count=comm.rank + 1)
    expected = 1.0 if comm.rank == 0 else (2 * 2 + 3 * 3) / 5
    for parameter in model.parameters():
        torch.testing.assert_close(parameter.grad, torch.full_like(parameter, expected))
    averager.close()  # rank 0 has nothing to wait for: it would leave while the others average


@law(day="mpirun-2 gloo-2 mpirun-3")
def a_loop_that_goes_on_is_one_that_never_stopped(comm: HorovodComm, folder: Path) -> None:
    for way in ({"wire": "bfloat16", "every": 2}, {"exchange": "gradients", "wire": "float16"}, {"every": 3}):
        whole, stopped = Loop(comm, **way), Loop(comm, **way)
        for _ in range(3):
            whole.step()
            stopped.step()
        resumed = Loop(comm, **way)
        resumed.model.load_state_dict(stopped.model.state_dict())
        resumed.optimizer.load_state_dict(stopped.optimizer.state_dict())
        resumed.averager.load_state_dict(stopped.averager.state_dict())
        resumed.data.set_state(stopped.data.get_state())
        expected, reached = whole.run(2), resumed.run(2)
        assert all(torch.equal(expected[name], reached[name]) for name in expected), way


@law(day="mpirun-2 gloo-2 mpirun-3")
def ranks_that_differ_are_refused_before_a_tensor_moves(comm: HorovodComm, folder: Path) -> None:
    def make(**settings: Any) -> None:
        Loop(comm, **settings)

    last = comm.num_ranks - 1
    is_last = comm.rank == last
    fails_with(ContractError, "every", lambda: make(every=2 if is_last else 1))
    fails_with(ContractError, "differ on", lambda: make(private=["stem"] if is_last else ["head"]))
    fails_with(ContractError, "differ on", lambda: make(wire="bfloat16" if is_last else "float32"))
    weights = {f"site{rank}": 1 + rank * is_last for rank in range(comm.num_ranks)}
    fails_with(ContractError, "weights of sites", lambda: make(weights=weights))

    def make_of(model: nn.Module) -> None:
        PartialAverager(model, torch.optim.SGD(model.parameters()), Job(comm, one_rank_a_site(comm)), "head")

    fails_with(ContractError, "first shared weights", lambda: make_of(network(seed=1 + is_last)))
    fails_with(ConfigError, "matches no block", lambda: make(private=["heads"]))
    other = network()
    other[5].weight.data.add_(comm.rank)  # private: may differ from the start
    make_of(other)


@law(day="mpirun-2 gloo-2 mpirun-3")
def different_numbers_of_steps_are_refused_on_every_rank(comm: HorovodComm, folder: Path) -> None:
    def take(num_steps: int, closes: bool, **way: Any) -> None:
        loop = Loop(comm, **way)
        for _ in range(num_steps):
            loop.step()
        if closes:
            loop.averager.close()

    for way in ({}, {"every": 2}, {"exchange": "gradients"}):
        text = "the ranks are not at the same step: "
        fails_with(TrainingError, text, lambda way=way: take(4 + 2 * comm.rank, closes=True, **way))
        fails_with(TrainingError, text, lambda way=way: take(5 + (comm.rank == 1), closes=True, **way))


@law(day="mpirun-2")
def an_averager_refuses_what_it_cannot_average(comm: HorovodComm, folder: Path) -> None:
    loop = Loop(comm)
    loop.run(1)
    fails_with(UsageError, "this averager is closed", loop.averager.average)
    job = Job(comm, one_rank_a_site(comm))

    def make(model: nn.Module, **settings: Any) -> PartialAverager:
        return PartialAverager(model, torch.optim.RMSprop(model.parameters()), job, **settings)

    text = "expected float32 to average, found torch.bfloat16"
    fails_with(ConfigError, text, lambda: make(network().bfloat16()))
    half_private = network()
    half_private[5].half()
    make(half_private, private=["head"])  # never averaged: any type will do
    fails_with(ConfigError, "optimizer_state: shared knows", lambda: make(network(), optimizer_state="shared"))
    fails_with(ConfigError, "did you mean 'gradients'", lambda: make(network(), exchange="gradient"))
    overlapping = network()
    overlapping[3].weight.data = torch.zeros(9, 8)[:8]
    overlapping[5].weight.data = overlapping[3].weight.data[1:3]
    fails_with(ConfigError, "share memory", lambda: make(overlapping))
    moved = network()
    averager = make(moved)
    moved.double().float()
    fails_with(TrainingError, "was moved in memory", averager.average)


@law(day="mpirun-2 mpirun-3")
def frozen_blocks_do_not_travel_and_do_not_change(comm: HorovodComm, folder: Path) -> None:
    for exchange in ("weights", "gradients"):
        model = network()
        model[0].requires_grad_(False)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        averager = PartialAverager(model, optimizer, Job(comm, one_rank_a_site(comm)), exchange=exchange)  # type: ignore[arg-type]
        before = values(model)
        model(torch.rand(5, 6)).sum().backward()
        steps = [averager.average, optimizer.step]
        for step in steps if exchange == "gradients" else reversed(steps):
            step()
        assert averager.plan.names(Scope.FROZEN) == ("0.weight", "0.bias")
        assert all(torch.equal(before[name], values(model)[name]) for name in ("0.weight", "0.bias"))
        assert is_equal_everywhere(comm, digest(values(model), averager.plan.names(Scope.SHARED)))
