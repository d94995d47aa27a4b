"""Laws of averaged weights: what is shared becomes the mean, what is private stays."""

from pathlib import Path

import torch
from torch import Tensor

from cxr_hvd.comm.horovod import HorovodComm
from cxr_hvd.comm.local import LocalComm
from cxr_hvd.comm.sites import Topology, bind
from cxr_hvd.partial.blocks import tensor_specs
from cxr_hvd.partial.plan import Exchange, Scope, build_plan
from tests.laws.law import law
from tests.laws.parts import (
    ENDS,
    assert_mean,
    averager_of,
    digest,
    engine_of,
    is_equal_everywhere,
    layouts,
    one_rank_a_site,
    random_batch,
    recorded_collectives,
    scattered_model,
    scattered_tensors,
    take_step,
    values,
)


@law(day="mpirun-2 gloo-2 mpirun-3", night="gloo-2 mpirun-2-densenet121")
def shared_tensors_become_the_mean_and_are_bit_equal_on_all_ranks(comm: HorovodComm, folder: Path) -> None:
    model = scattered_model(comm.rank)
    plan = build_plan(tensor_specs(model), ENDS)
    averager_of(model, plan, comm, one_rank_a_site(comm)).average()
    after = values(model)
    assert is_equal_everywhere(comm, digest(after, plan.names(Scope.SHARED)))
    weights = [1 / comm.num_ranks] * comm.num_ranks
    assert_mean(after, plan.names(Scope.SHARED), scattered_tensors(comm), weights)


@law(day="mpirun-2 mpirun-3", night="gloo-2 mpirun-2-densenet121")
def private_tensors_and_counters_stay_bit_equal(comm: HorovodComm, folder: Path) -> None:
    model = scattered_model(comm.rank)
    plan = build_plan(tensor_specs(model), ENDS)
    before = values(model)
    averager_of(model, plan, comm, one_rank_a_site(comm)).average()
    after = values(model)
    for name in plan.names(Scope.PRIVATE) + plan.names(Scope.LOCAL):
        assert torch.equal(before[name], after[name]), name
    assert not is_equal_everywhere(comm, digest(after, plan.names(Scope.PRIVATE)))


@law(day="mpirun-2 mpirun-3", night="gloo-2 mpirun-2-densenet121")
def averaging_equal_models_changes_nothing(comm: HorovodComm, folder: Path) -> None:
    model = scattered_model(rank=0)
    plan = build_plan(tensor_specs(model), ())
    before = values(model)
    averager_of(model, plan, comm, one_rank_a_site(comm)).average()
    exactly = comm.num_ranks == 2  # a third is not a binary fraction
    for name, tensor in values(model).items():
        assert torch.equal(before[name], tensor) or not exactly, name
        torch.testing.assert_close(before[name], tensor, rtol=3e-7, atol=3e-7)


@law(day="mpirun-2 mpirun-3", night="gloo-2 mpirun-2-densenet121")
def the_order_of_ranks_changes_nothing(comm: HorovodComm, folder: Path) -> None:
    results = []
    for rank in (comm.rank, comm.num_ranks - 1 - comm.rank):
        model = scattered_model(rank)
        plan = build_plan(tensor_specs(model), ())
        averager_of(model, plan, comm, one_rank_a_site(comm)).average()
        results.append(values(model))
    for name in plan.names(Scope.SHARED):
        if comm.num_ranks == 2:
            assert torch.equal(results[0][name], results[1][name]), name
        torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-6, atol=1e-6)


@law(day="mpirun-2 mpirun-3", night="gloo-2 mpirun-2-densenet121")
def sites_weigh_by_their_studies_where_asked(comm: HorovodComm, folder: Path) -> None:
    model = scattered_model(comm.rank)
    plan = build_plan(tensor_specs(model), ENDS)
    studies = [10 * (rank + 1) for rank in range(comm.num_ranks)]
    averager_of(model, plan, comm, one_rank_a_site(comm), studies).average()
    weights = [count / sum(studies) for count in studies]
    assert_mean(model.state_dict(), plan.names(Scope.SHARED), scattered_tensors(comm), weights)


@law(day="mpirun-3", night="gloo-3")
def a_site_weighs_one_share_however_many_ranks_it_has(comm: HorovodComm, folder: Path) -> None:
    """With 3 ranks: sites of 1 and 2. Shared: over sites; private: over the ranks of the site."""
    topology = bind(comm, {"one": 1, "many": comm.num_ranks - 1})
    model = scattered_model(comm.rank)
    plan = build_plan(tensor_specs(model), ENDS)
    averager_of(model, plan, comm, topology).average()
    others = comm.num_ranks - 1
    shared_weights = [0.5] + [0.5 / others] * others
    own_weights = [1.0] + [0.0] * others if comm.rank == 0 else [0.0] + [1 / others] * others
    of_rank = scattered_tensors(comm)
    for scope, weights in ((Scope.SHARED, shared_weights), (Scope.PRIVATE, own_weights)):
        assert_mean(model.state_dict(), plan.names(scope), of_rank, weights)


@law(day="mpirun-2 mpirun-3", night="gloo-2 mpirun-4 gloo-4 mpirun-2-densenet121")
def weights_become_the_mean_over_sites_whatever_their_ranks(comm: HorovodComm, folder: Path) -> None:
    of_rank = scattered_tensors(comm)
    for topology in layouts(comm):
        model = scattered_model(comm.rank)
        plan = build_plan(tensor_specs(model), ENDS)
        studies = [3, 1, 2][: topology.num_sites]
        averager_of(model, plan, comm, topology, studies).average()
        ranks_at = [topology.ranks_at(site) for site in range(topology.num_sites)]
        weights = [studies[s] / sum(studies) / len(ranks_at[s]) for s in topology.site_of_rank]
        mates = topology.ranks_of_site
        own = [1 / len(mates) if rank in mates else 0.0 for rank in range(comm.num_ranks)]
        for scope, expected in ((Scope.SHARED, weights), (Scope.PRIVATE, own)):
            assert_mean(model.state_dict(), plan.names(scope), of_rank, expected)


@law(day="mpirun-2 mpirun-3", night="gloo-2 mpirun-2-densenet121")
def every_third_step_averages_and_the_others_do_not(comm: HorovodComm, folder: Path) -> None:
    model = scattered_model(comm.rank)
    plan = build_plan(tensor_specs(model), (), every=3)
    averager = averager_of(model, plan, comm, one_rank_a_site(comm))
    before = values(model)
    for _ in range(2):
        averager.average()
    assert all(torch.equal(before[name], tensor) for name, tensor in values(model).items())
    averager.average()
    assert is_equal_everywhere(comm, digest(values(model), plan.names(Scope.SHARED)))


@law(day="mpirun-2 mpirun-3", night="gloo-2 mpirun-2-densenet121")
def the_last_step_averages_whatever_the_pace(comm: HorovodComm, folder: Path) -> None:
    model = scattered_model(comm.rank)
    plan = build_plan(tensor_specs(model), (), every=3)
    averager = averager_of(model, plan, comm, one_rank_a_site(comm))
    averager.average()
    averager.close()
    assert is_equal_everywhere(comm, digest(values(model), plan.names(Scope.SHARED)))


@law(day="mpirun-2 gloo-2 mpirun-3", night="gloo-2 mpirun-2-densenet121")
def no_private_tensor_enters_a_collective(comm: HorovodComm, folder: Path) -> None:
    topology = one_rank_a_site(comm)
    engine, plan = engine_of(comm, topology, {"private": ENDS}, weight_decay=0.01)
    tensors = engine.state.model.state_dict()
    kept = [tensors[name] for name in plan.names(Scope.PRIVATE) + plan.names(Scope.LOCAL)]
    batches = iter([random_batch(10 * comm.rank + step) for step in range(3)])
    shared_before: list[Tensor] = []
    average = engine.state.averager.average

    def note_then_average() -> None:
        shared_before.append(torch.cat([tensors[name].reshape(-1) for name in plan.names(Scope.SHARED)]))
        average()

    engine.state.averager.average = note_then_average  # type: ignore[method-assign]
    with recorded_collectives() as records:
        engine.run(batches, 0, lambda done, reports: None)
    for _, sent, address in records:
        for tensor in kept:
            start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
            assert address + sent.nbytes <= start or end <= address
    # Nothing but each step's shared tensors, once, and one status a step.
    averages = [sent for name, sent, _ in records if name.startswith("weights.")]
    others = [sent for name, sent, _ in records if not name.startswith("weights.")]
    sent = torch.cat(averages).sort().values
    assert torch.equal(sent, (torch.cat(shared_before) / comm.num_ranks).sort().values) or comm.num_ranks == 3
    assert sent.numel() == torch.cat(shared_before).numel()
    assert [each.numel() for each in others] == [5, 5, 5]


@law(day="mpirun-2 mpirun-3", night="gloo-2 mpirun-2-densenet121")
def private_tensors_train_as_alone_given_the_same_shared_weights(
    comm: HorovodComm, folder: Path, exchange: Exchange = "weights"
) -> None:
    topology = one_rank_a_site(comm)
    settings = {"private": ENDS, "exchange": exchange}
    engine, plan = engine_of(comm, topology, settings, weight_decay=0.01)
    alone_at = Topology(0, ("alone",), (0,))
    alone, alone_plan = engine_of(LocalComm(), alone_at, {"private": ("*",)}, weight_decay=0.01)
    assert not alone_plan.names(Scope.SHARED)
    tensors, tensors_alone = engine.state.model.state_dict(), alone.state.model.state_dict()
    for step in range(3):
        batch = random_batch(10 * comm.rank + step)
        for name in plan.names(Scope.SHARED):
            tensors_alone[name].copy_(tensors[name])
        for each in (engine, alone):
            each.state.model.train()
            take_step(each, batch, step)
        for name in plan.names(Scope.PRIVATE) + plan.names(Scope.LOCAL):
            assert torch.equal(tensors[name], tensors_alone[name]), f"{name} in step {step}"
        assert is_equal_everywhere(comm, digest(tensors, plan.names(Scope.SHARED)))
    assert not is_equal_everywhere(comm, digest(tensors, plan.names(Scope.PRIVATE)))


@law(day="mpirun-2", night="gloo-2 mpirun-2-densenet121")
def exchanged_gradients_keep_shared_tensors_equal_and_private_ones_apart(comm: HorovodComm, folder: Path) -> None:
    private_tensors_train_as_alone_given_the_same_shared_weights(comm, folder, "gradients")
