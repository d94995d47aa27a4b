"""Laws of a step in both exchanges, of weights and of gradients."""

import math
from pathlib import Path

import horovod.torch as hvd
import torch
from torch import Tensor, nn

from cxr_hvd.comm.horovod import HorovodComm
from cxr_hvd.comm.local import LocalComm
from cxr_hvd.comm.sites import Topology, bind
from cxr_hvd.data.loader import Batch
from cxr_hvd.models.build import as_channels_last
from cxr_hvd.partial.blocks import tensor_specs
from cxr_hvd.partial.plan import Scope, build_plan
from cxr_hvd.partial.tensor_spec import Kind
from cxr_hvd.training.loss import MultiLabelLoss
from cxr_hvd.training.optim import gradients
from tests.laws.law import law
from tests.laws.parts import (
    ENDS,
    averager_of,
    digest,
    engine_of,
    fresh_model,
    is_equal_everywhere,
    layouts,
    one_rank_a_site,
    random_batch,
    take_step,
    values,
)

bce = MultiLabelLoss()


def partly_known_batch(rank: int) -> Batch:
    """A batch of which each rank knows another number of labels."""
    batch = random_batch(rank)
    batch.known[:, : 3 * rank] = False
    return batch


def gradients_of(model: nn.Module, batches: list[Batch]) -> dict[str, Tensor]:
    """Gradients of one batch made of several, in this process alone."""
    model.zero_grad()
    logits = model(torch.cat([each.images for each in batches]).to(next(model.parameters()).dtype))
    targets = torch.cat([each.targets for each in batches])
    loss = bce(logits, targets.to(logits.dtype), torch.cat([each.known for each in batches]))
    loss.backward()
    return {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }


@law(day="mpirun-2 gloo-2 mpirun-3", night="gloo-2 mpirun-4 gloo-4 mpirun-2-densenet121")
def gradients_are_those_of_each_sites_whole_batch(comm: HorovodComm, folder: Path) -> None:
    """N ranks of one site are one rank with the N-fold batch; sites weigh alike; private ones keep their scale.

    BatchNorm is in evaluation mode: its batch statistics are each rank's own.
    """
    batches = [partly_known_batch(rank) for rank in range(comm.num_ranks)]
    for topology in layouts(comm):
        model = fresh_model().eval()
        plan = build_plan(tensor_specs(model), ENDS, exchange="gradients")
        averager = averager_of(model, plan, comm, topology)
        batch = batches[comm.rank]
        loss = bce(model(batch.images), batch.targets, batch.known)
        averager.begin(int(batch.known.sum()))
        loss.backward()  # type: ignore[no-untyped-call]
        averager.average()
        found = {name: parameter.grad for name, parameter in model.named_parameters()}
        alone = fresh_model().eval().double()
        of_site = [
            gradients_of(alone, [batches[rank] for rank in topology.ranks_at(site)])
            for site in range(topology.num_sites)
        ]
        for planned in plan.tensors:
            name = planned.spec.name
            if planned.spec.kind is not Kind.PARAMETER:
                continue
            expected = of_site[topology.site_index][name]
            if planned.scope is Scope.SHARED:
                expected = torch.stack([each[name] for each in of_site]).mean(0)
            gradient = found[name]
            assert gradient is not None
            error = (gradient.double() - expected).abs().max() / expected.abs().max()
            assert error < 1e-3, f"{name}: {error}"


@law(day="mpirun-2 mpirun-3", night="gloo-2 mpirun-2-densenet121")
def the_order_of_sites_changes_no_gradient(comm: HorovodComm, folder: Path) -> None:
    results = []
    names = [f"site{rank}" for rank in range(comm.num_ranks)]
    for order in (names, names[::-1]):
        topology = bind(comm, dict.fromkeys(order, 1), {"CXR_SITE": f"site{comm.rank}"})
        engine, plan = engine_of(comm, topology, {"private": ENDS, "exchange": "gradients"}, "sgd")
        engine.run(iter([random_batch(10 * comm.rank + step) for step in range(3)]), 0, lambda done, reports: None)
        results.append(values(engine.state.model))
    for name in plan.names(Scope.SHARED):
        if comm.num_ranks == 2:
            assert torch.equal(results[0][name], results[1][name]), name
        torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-3, atol=1e-4)


@law(day="mpirun-2", night="gloo-2 mpirun-2-densenet121")
def sharing_nothing_is_training_alone_bit_for_bit(comm: HorovodComm, folder: Path) -> None:
    for exchange in ("weights", "gradients"):
        settings = {"private": ("*",), "exchange": exchange}
        engine, _ = engine_of(comm, one_rank_a_site(comm), settings)
        alone, _ = engine_of(LocalComm(), Topology(0, ("alone",), (0,)), {"private": ()})
        for each in (engine, alone):
            each.run(
                iter([random_batch(10 * comm.rank + step) for step in range(3)]), 0, lambda done, reports: None
            )
        found, expected = values(engine.state.model), values(alone.state.model)
        assert all(torch.equal(found[name], expected[name]) for name in expected), exchange


@law(day="mpirun-2", night="gloo-2 mpirun-2-densenet121")
def sharing_everything_is_horovods_own_optimizer(comm: HorovodComm, folder: Path) -> None:
    """Up to the rounding of one multiplication more: gradients are weighed before the sum, and by 1/N."""
    engine, _ = engine_of(comm, one_rank_a_site(comm), {"private": (), "exchange": "gradients"}, "sgd")
    engine.run(iter([random_batch(10 * comm.rank + step) for step in range(3)]), 0, lambda done, reports: None)
    peer = fresh_model().train()
    sgd = torch.optim.SGD(peer.parameters(), lr=1e-3, momentum=0.9)
    horovods = hvd.DistributedOptimizer(sgd, named_parameters=peer.named_parameters())
    for step in range(3):
        batch = random_batch(10 * comm.rank + step)
        horovods.zero_grad()
        bce(peer(as_channels_last(batch.images)), batch.targets, batch.known).backward()  # type: ignore[no-untyped-call]
        horovods.step()
    for (name, found), expected in zip(engine.state.model.named_parameters(), peer.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


@law(day="mpirun-2", night="gloo-2 mpirun-2-densenet121")
def shared_optimizer_state_is_equal_everywhere_and_local_is_not(comm: HorovodComm, folder: Path) -> None:
    for moments, is_shared in ((("exp_avg", "exp_avg_sq"), True), ((), False)):
        settings = {"private": ENDS, "moments": moments}
        engine, plan = engine_of(comm, one_rank_a_site(comm), settings)
        engine.run(iter([random_batch(10 * comm.rank + step) for step in range(3)]), 0, lambda done, reports: None)
        parameters, remembered = engine.state.model.named_parameters(), engine.state.optimizer.state
        squares = {name: remembered[parameter]["exp_avg_sq"] for name, parameter in parameters}
        names = tuple(name for name in plan.names(Scope.SHARED) if name in squares)
        assert is_equal_everywhere(comm, digest(squares, names)) is is_shared
        assert not is_equal_everywhere(comm, digest(squares, tuple(set(squares) - set(names))))


@law(day="mpirun-2", night="gloo-2")
def clipping_keeps_exchanged_weights_equal_and_bounds_the_step(comm: HorovodComm, folder: Path) -> None:
    clip_norm, learning_rate = 0.1, 1e-3
    for exchange in ("weights", "gradients"):
        settings = {"private": ENDS, "exchange": exchange}
        engine, plan = engine_of(comm, one_rank_a_site(comm), settings, "sgd", clip_norm=clip_norm)
        before = values(engine.state.model)
        take_step(engine, random_batch(comm.rank), 0)
        after = values(engine.state.model)
        assert is_equal_everywhere(comm, digest(after, plan.names(Scope.SHARED)))
        for scope in (Scope.SHARED, Scope.PRIVATE):
            names = [n for n in plan.names(scope) if "running" not in n]
            length = float(torch.cat([(after[n] - before[n]).flatten() for n in names]).norm())
            longest = clip_norm * learning_rate
            assert length <= 1.01 * longest, f"{exchange} {scope}: {length}"
            # A mean may be shorter than each step. A private step has the full length, or nothing was clipped.
            assert scope is Scope.SHARED or length >= 0.99 * longest, f"{exchange} {scope}: {length}"


@law(day="mpirun-2", night="gloo-2")
def a_batch_in_parts_gives_the_gradient_of_the_whole(comm: HorovodComm, folder: Path) -> None:
    """With BatchNorm frozen, since it sees the parts; unknown labels are spread unevenly over the parts."""
    grads = []
    for exchange in ("weights", "gradients"):
        for accumulate in (1, 2, 4):
            settings = {"private": ENDS, "exchange": exchange}
            engine, _ = engine_of(
                comm, one_rank_a_site(comm), settings, "sgd", accumulate=accumulate, batch_size=4
            )
            for module in engine.state.model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.eval()
            batch = random_batch(comm.rank)
            known = batch.known.clone()
            known[0, 3:] = False
            report = take_step(engine, Batch(batch.images, batch.targets, known), 0)
            own = torch.cat([gradient.flatten() for gradient in gradients(engine.state.model.parameters())])
            grads.append((exchange, own, report.loss))
    for exchange in ("weights", "gradients"):
        (_, whole, loss), *others = [each for each in grads if each[0] == exchange]
        for _, parts, part_loss in others:
            assert math.isclose(loss, part_loss, rel_tol=1e-5)
            assert float((parts - whole).norm() / whole.norm()) < 1e-4
