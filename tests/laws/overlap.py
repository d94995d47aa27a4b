"""Laws of delayed averaging: what arrives, when, and that no line's speed changes it."""

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cxr_hvd.comm.horovod import HorovodComm
from cxr_hvd.comm.sites import Topology
from cxr_hvd.partial.averager import PartialAverager
from cxr_hvd.partial.blocks import tensor_specs
from cxr_hvd.partial.plan import Scope, SharingPlan, build_plan
from tests.laws.law import law
from tests.laws.parts import (
    ENDS,
    averager_of,
    digest,
    engine_of,
    is_equal_everywhere,
    layouts,
    one_rank_a_site,
    random_batch,
    scattered_model,
    values,
    weights_of,
)

NUM_STEPS = 19
Weights = dict[str, Tensor]


def walk(tensors: Weights, rank: int, step: int) -> None:
    """Change every number of a model as a step of this rank would."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    for tensor in tensors.values():
        if tensor.is_floating_point():
            tensor.add_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype))


def start(rank: int) -> Weights:
    """Weights that all ranks begin with but for private ones."""
    shared, scattered = scattered_model(0).state_dict(), scattered_model(rank).state_dict()
    private = set(build_plan(tensor_specs(scattered_model(0)), ENDS).names(Scope.PRIVATE))
    return {name: (scattered if name in private else shared)[name] for name in shared}


def by_hand(plan: SharingPlan, topology: Topology) -> list[Weights]:
    """Reckon in one process, in float64, what every rank has after `NUM_STEPS` steps, none settled."""
    num_ranks, site_weights = topology.num_ranks, weights_of(topology)
    ranks = [
        {name: tensor.double() for name, tensor in start(rank).items() if tensor.is_floating_point()}
        for rank in range(num_ranks)
    ]
    under_way: list[tuple[int, str, list[Tensor], list[Tensor]]] = []
    for step in range(NUM_STEPS):
        for rank, weights in enumerate(ranks):
            walk(weights, rank, step)
        for _, name, then, means in [each for each in under_way if each[0] == step]:
            for rank, weights in enumerate(ranks):
                weights[name] += means[rank] - then[rank]
        for buffer in plan.buffers():
            if step % plan.every != buffer.fragment * plan.delay:
                continue
            for spec in buffer.specs:
                then = [weights[spec.name].clone() for weights in ranks]
                means = []
                for rank in range(num_ranks):
                    mates = topology.ranks_at(topology.site_of_rank[rank])
                    if buffer.scope is Scope.PRIVATE:
                        shares = {mate: 1 / len(mates) for mate in mates}
                    else:
                        sites = topology.site_of_rank
                        shares = {r: site_weights[s] / len(topology.ranks_at(s)) for r, s in enumerate(sites)}
                    means.append(sum((share * then[other] for other, share in shares.items()), torch.zeros(())))
                under_way.append((step + plan.delay, spec.name, then, means))
    return ranks


def walked(
    comm: HorovodComm, topology: Topology, pauses: Any = lambda step: None, **sharing: Any
) -> tuple[PartialAverager, Weights]:
    """Let this rank walk, with an averager that overlaps, and pauses between steps."""
    model = scattered_model(0)
    model.load_state_dict(start(comm.rank))
    averager = averager_of(model, build_plan(tensor_specs(model), ENDS, overlap=True, **sharing), comm, topology)
    for step in range(NUM_STEPS):
        walk(model.state_dict(), comm.rank, step)
        pauses(step)
        averager.average()
    return averager, model.state_dict()


@law(day="mpirun-2 mpirun-3", night="gloo-2 mpirun-4 mpirun-2-densenet121")
def a_mean_moves_the_weights_by_what_it_differs_from_what_was_sent(comm: HorovodComm, folder: Path) -> None:
    """`w += mean(w_then) - w_then`, after `plan.delay` steps, fragment by fragment, for sites of any ranks."""
    for topology in layouts(comm):
        for every in (1, 8):
            averager, weights = walked(comm, topology, every=every)
            expected = by_hand(averager.plan, topology)[comm.rank]
            for name, tensor in weights.items():
                if tensor.is_floating_point():
                    torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-5)
            averager.close()
            assert is_equal_everywhere(comm, digest(weights, averager.plan.names(Scope.SHARED)))
            assert averager.is_common


@law(day="mpirun-2", night="gloo-2 mpirun-3")
def weights_do_not_depend_on_how_fast_ranks_and_line_are(comm: HorovodComm, folder: Path) -> None:
    """A rank that is slow at times, each time another: the same bytes, before and after the last average."""

    def pauses(step: int) -> None:
        if step % comm.num_ranks == comm.rank:
            time.sleep(0.02 * (step % 3))

    for sharing in ({}, {"wire": "int8"}, {"wire": "bfloat16"}):
        results = []
        for pause in (lambda step: None, pauses):
            averager, weights = walked(comm, one_rank_a_site(comm), pause, every=8, **sharing)
            results.append({name: tensor.clone() for name, tensor in weights.items()})
            averager.close()
            results[-1] |= {f"{name} at the end": tensor.clone() for name, tensor in weights.items()}
        assert all(torch.equal(results[0][name], results[1][name]) for name in results[0]), sharing


@law(day="mpirun-2", night="gloo-2 mpirun-2-densenet121")
def the_order_of_ranks_changes_no_delayed_average(comm: HorovodComm, folder: Path) -> None:
    results = []
    for rank in (comm.rank, comm.num_ranks - 1 - comm.rank):
        model = scattered_model(0)
        plan = build_plan(tensor_specs(model), (), every=8, overlap=True)
        averager = averager_of(model, plan, comm, one_rank_a_site(comm))
        for step in range(NUM_STEPS):
            walk(model.state_dict(), rank, step)
            averager.average()
        averager.close()
        results.append(values(model))
    for name in plan.names(Scope.SHARED):
        assert torch.equal(results[0][name], results[1][name]), name


@law(day="mpirun-2", night="gloo-2")
def private_tensors_stay_private_while_averages_overlap(comm: HorovodComm, folder: Path) -> None:
    engine, plan = engine_of(
        comm, one_rank_a_site(comm), {"private": ENDS, "every": 8, "overlap": True}, num_steps=9
    )
    batches = iter([random_batch(10 * comm.rank + step) for step in range(9)])
    engine.run(batches, 0, lambda done, reports: None)
    tensors = engine.state.model.state_dict()
    assert is_equal_everywhere(comm, digest(tensors, plan.names(Scope.SHARED)))
    assert not is_equal_everywhere(comm, digest(tensors, plan.names(Scope.PRIVATE)))
