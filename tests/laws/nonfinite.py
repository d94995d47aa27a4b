"""Laws of losses and gradients that are not finite: all ranks stop, or all skip the step."""

import math
from functools import partial
from pathlib import Path

import torch

from cxr_hvd.comm.horovod import HorovodComm
from cxr_hvd.errors import TrainingError
from cxr_hvd.partial.plan import Scope
from cxr_hvd.training.engine import Engine
from tests.laws.law import law
from tests.laws.parts import (
    ENDS,
    digest,
    engine_of,
    fails_with,
    is_equal_everywhere,
    one_rank_a_site,
    random_batch,
    take_step,
    values,
)


@law(day="mpirun-2 mpirun-3", night="gloo-2 mpirun-2-densenet121")
def what_is_not_finite_at_one_site_never_reaches_another(comm: HorovodComm, folder: Path) -> None:
    """However late all hear of it: the run ends on all ranks, names site and step, and all weights are finite."""
    bad_step = 2
    for sharing in ({}, {"every": 3}, {"every": 8, "overlap": True}, {"wire": "int8"}):
        engine, plan = engine_of(comm, one_rank_a_site(comm), {"private": ENDS, **sharing}, num_steps=12)
        batches = [random_batch(10 * comm.rank + step) for step in range(12)]
        if comm.rank == 1:
            batches[bad_step].images.fill_(float("nan"))
        run = partial(engine.run, iter(batches), 0, lambda done, reports: None)
        fails_with(TrainingError, f"in step {bad_step} (site site1, rank 1): the images of its batch", run)
        for name, tensor in engine.state.model.state_dict().items():
            assert bool(tensor.isfinite().all()), f"{sharing} {name}"
        late = plan.delay or 1
        assert engine.state.averager.num_steps <= bad_step + late


def poisoned(engine: Engine, rank_is_meant: bool, name: str) -> None:
    """Make a gradient infinite in backward."""
    if rank_is_meant:
        parameter = dict(engine.state.model.named_parameters())[name]
        parameter.register_hook(lambda gradient: torch.full_like(gradient, math.inf))


@law(day="mpirun-2", slow="gloo-2", night="mpirun-2 gloo-2 mpirun-3")
def a_gradient_that_is_not_finite_stops_all_and_is_named(comm: HorovodComm, folder: Path) -> None:
    for exchange in ("weights", "gradients"):
        for name, said in (
            ("features.denseblock3.denselayer1.conv1.weight", "denseblock3"),
            ("features.conv0.weight", "features.conv0.weight"),
        ):
            settings = {"private": ENDS, "exchange": exchange}
            engine, _ = engine_of(comm, one_rank_a_site(comm), settings)
            poisoned(engine, comm.rank == 1, name)
            before = values(engine.state.model)
            step = partial(take_step, engine, random_batch(comm.rank), 0)
            fails_with(TrainingError, "in step 0 (site site1, rank 1): the gradient of", step)
            after = values(engine.state.model)
            parameters = [n for n, _ in engine.state.model.named_parameters()]
            assert all(bool(after[n].isfinite().all()) for n in after if exchange == "weights")
            if exchange == "gradients":
                assert all(torch.equal(before[n], after[n]) for n in parameters), "no weight was changed"
            try:
                take_step(engine, random_batch(comm.rank), 1)
            except TrainingError as error:
                assert said in str(error)


@law(day="mpirun-2", night="gloo-2")
def a_step_that_is_not_finite_is_skipped_by_all_where_asked(comm: HorovodComm, folder: Path) -> None:
    """A skipped step leaves no trace: what follows is what would have followed without it."""
    for exchange in ("weights", "gradients"):
        settings = {"private": ENDS, "exchange": exchange}
        engine, plan = engine_of(comm, one_rank_a_site(comm), settings, on_nonfinite="skip")
        other, _ = engine_of(comm, one_rank_a_site(comm), settings, on_nonfinite="skip")
        bad = random_batch(7 * comm.rank)
        if comm.rank == 1:
            bad.images.fill_(float("nan"))
        good = [random_batch(10 * comm.rank + step) for step in range(2)]
        reports = [take_step(engine, batch, step) for step, batch in enumerate([good[0], bad, good[1]])]
        for step, batch in zip((0, 2), good, strict=True):
            take_step(other, batch, step)
        assert [report.is_skipped for report in reports] == [False, True, False]
        found, expected = values(engine.state.model), values(other.state.model)
        if exchange == "gradients":
            assert all(torch.equal(found[name], expected[name]) for name in expected)
        else:  # the skipped step averaged once more what was equal already
            for name in plan.names(Scope.PRIVATE) + plan.names(Scope.LOCAL):
                torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)
        assert is_equal_everywhere(comm, digest(found, plan.names(Scope.SHARED)))
        if comm.rank == 1:
            assert all(tensor.isfinite().all() for tensor in found.values())


@law(day="mpirun-2", night="gloo-2")
def too_many_skipped_steps_end_the_run(comm: HorovodComm, folder: Path) -> None:
    engine, _ = engine_of(comm, one_rank_a_site(comm), {"private": ENDS}, num_steps=30, on_nonfinite="skip")
    bad = random_batch(comm.rank)
    if comm.rank == 0:
        bad.images.fill_(float("inf"))

    def many() -> None:
        for step in range(30):
            take_step(engine, bad, step)

    fails_with(TrainingError, "the images of its batch are not finite, after 20 skipped steps in a row", many)
    assert engine.state.num_skipped_in_a_row == 21
