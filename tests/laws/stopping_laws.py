"""Laws of stopping, going on, skipping and ending together; run as those of laws.py."""

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cxr_hvd.comm.horovod import HorovodComm
from cxr_hvd.comm.job import Job
from cxr_hvd.comm.step_status import StepStatus, StopReason, Writing, begin_statuses
from cxr_hvd.config.file import parse_config
from cxr_hvd.config.schema import Config
from cxr_hvd.data.loader import Batch
from cxr_hvd.errors import CheckpointError, ConfigError, Stopped, TrainingError
from cxr_hvd.ledger.audit import audit
from cxr_hvd.ledger.reader import load_folders
from cxr_hvd.partial.plan import Scope
from cxr_hvd.study.layout import Split
from cxr_hvd.training import stopping
from cxr_hvd.training.engine import Engine
from cxr_hvd.training.train import LaunchOptions, train
from lab.study_files import write_study_file
from tests.laws.exchange_laws import common_folder, engine_of
from tests.laws.laws import (
    ENDS,
    NETWORK,
    digest,
    fails_with,
    is_equal_everywhere,
    one_rank_a_site,
    random_batch,
    values,
)

AUTO = LaunchOptions(resume="auto")
SPLITS = (Split.TRAIN, Split.TRAIN, Split.VALIDATE)
VARIANTS: dict[str, dict[str, Any]] = {
    "weights": {},
    "weights-every-4-bf16-mean": {
        "sharing": {"every": 4, "wire": "bfloat16"},
        "training": {"ema_decay": 0.9, "clip_norm": 0.5},
    },
    "gradients-bf16": {"sharing": {"exchange": "gradients", "wire": "bfloat16"}, "training": {"clip_norm": 0.5}},
    "gradients-fp16-accumulated": {
        "sharing": {"exchange": "gradients", "batchnorm": "private"},
        "training": {"precision": "fp16", "accumulate": 2, "schedule": "step", "warmup_steps": 2},
    },
    "weights-shared-moments-skip": {
        "sharing": {"every": 2, "optimizer_state": "shared"},
        "training": {"optimizer": "sgd", "on_nonfinite": "skip", "schedule": "cosine"},
        "validation": {"patience": 2, "every_epochs": 1},
    },
}


def sited_config(
    folder: Path,
    comm: HorovodComm,
    ranks: tuple[int, ...],
    splits: tuple[Split, ...] = SPLITS,
    **sections: Any,
) -> Config:
    """Make a study file for each site, of unequal sizes, and the config of 2 epochs of 3 steps on them."""
    if comm.rank == 0:
        for site in range(len(ranks)):
            write_study_file(folder / f"site{site}.h5", 12 + 6 * site, site, splits, site=f"site{site}")
    sites = {f"site{site}": {"data": str(folder / f"site{site}.h5"), "ranks": n} for site, n in enumerate(ranks)}
    training = {"epochs": 2, "steps_per_epoch": 3, "batch_size": 4, "precision": "fp32"}
    model = {"name": NETWORK, "image_size": 32}
    tree: dict[str, Any] = {"experiment": "D", "sites": sites, "model": model, "training": training}
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    is_equal_everywhere(comm, "files are written")
    return parse_config(tree, "laws")


@contextmanager
def asked_to_stop(comm: HorovodComm, after_step: int, rank: int) -> Iterator[None]:
    """Have one rank's request for a stop set in this step."""
    original, calls = stopping.StopRequest.wish, iter(range(1_000_000))

    def wish(self: stopping.StopRequest) -> StopReason:
        if next(calls) == after_step and comm.rank == rank:
            self.ask(StopReason.SIGNAL)
        return original(self)

    stopping.StopRequest.wish = wish  # type: ignore[method-assign]
    try:
        yield
    finally:
        stopping.StopRequest.wish = original  # type: ignore[method-assign]


def same_files(one: Path, other: Path) -> None:
    names = {path.name for path in one.iterdir()}
    assert names == {path.name for path in other.iterdir()}
    for name in sorted(names):
        assert (one / name).read_bytes() == (other / name).read_bytes(), f"{other / name}"


def rows(run: Path, site: str, log: str, *fields: str) -> list[list[Any]]:
    told = [json.loads(line) for line in (run / site / log).read_text().splitlines()]
    return [[row[field] for field in fields] for row in told]


def stopping_and_going_on_equals_never_stopping(comm: HorovodComm, folder: Path) -> None:
    """The two variants that keep most between steps: error feedback, a mean of weights, a loss scale."""
    names = ("weights-every-4-bf16-mean", "gradients-fp16-accumulated")
    goes_on_as_if_never_stopped(comm, folder, [((1,) * comm.num_ranks, name) for name in names])


def stopping_and_going_on_equals_never_stopping_for_every_exchange(comm: HorovodComm, folder: Path) -> None:
    """In the middle and at the end of an epoch, for every exchange, one and several ranks a site: bit for bit."""
    layouts = {2: (1, 1), 3: (1, 2)}
    cases = [(layouts[comm.num_ranks], name) for name in VARIANTS]
    if comm.num_ranks == 2:  # one site alone: what differs is that its ranks are several
        cases += [((2,), name) for name in ("weights-every-4-bf16-mean", "gradients-fp16-accumulated")]
    goes_on_as_if_never_stopped(comm, folder, cases)


def goes_on_as_if_never_stopped(comm: HorovodComm, folder: Path, cases: list[tuple[tuple[int, ...], str]]) -> None:
    """Train each variant whole, and twice with a stop; all must end with the same files, bit for bit."""
    for number, (ranks, name) in enumerate(cases):
        own = common_folder(comm, folder / f"{name}-{'+'.join(map(str, ranks))}")
        config = sited_config(own, comm, ranks, **VARIANTS[name])
        comm.ledger.__init__()  # type: ignore[misc]  # as in a process of its own
        train(config, own / "whole", comm)
        for stop_at in (1, 2):  # after step 2 in the middle, after step 3 at the end of an epoch
            stopped = own / f"stopped-{stop_at}"
            asked = (number + stop_at) % comm.num_ranks
            with asked_to_stop(comm, stop_at, asked):
                start = partial(train, config, stopped, comm)
                fails_with(Stopped, f"stopped after step {stop_at + 1} of 6", start)
            train(config, stopped, comm, AUTO)
            is_equal_everywhere(comm, "the run is over")
            for site in config.sites:
                latest = [run / site / "checkpoints" / "latest" for run in (own / "whole", stopped)]
                same_files(*latest)
                for log, *fields in (
                    ("metrics.jsonl", "step", "loss_of_site"),
                    ("validation.jsonl", "step", "agreed_auroc", "is_best"),
                ):
                    assert rows(own / "whole", site, log, *fields) == rows(stopped, site, log, *fields), (
                        f"{name} {log}"
                    )
                best = [run / site / "checkpoints" / "best" for run in (own / "whole", stopped)]
                assert best[0].readlink() == best[1].readlink()
        is_equal_everywhere(comm, "compared")
        judged = audit(load_folders(own / "whole"))
        assert not judged.faults, judged.faults[:5]
        if comm.rank == 0:
            shutil.rmtree(own)


def all_go_on_from_the_newest_step_that_all_hold_whole(comm: HorovodComm, folder: Path) -> None:
    """One lacks the newest, another's is cut short: all take the one before. Without a common one all say so."""
    config = sited_config(folder, comm, (1,) * comm.num_ranks, checkpoints={"every_steps": 2, "keep": 3})
    run = folder / "run"
    train(config, run, comm)
    mine = run / f"site{comm.rank}" / "checkpoints"
    expected = digest_of(mine / "step-6")
    if comm.rank == 0:
        shutil.rmtree(mine / "step-6")
    if comm.rank == 1:
        file = mine / "step-6" / "optimizer-0.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
    train(config, run, comm, AUTO)
    assert [row[0] for row in rows(run, f"site{comm.rank}", "metrics.jsonl", "step")] == list(range(6))
    assert digest_of(mine / "step-6") == expected
    is_equal_everywhere(comm, "compared")
    for state in mine.glob("step-*/state.json") if comm.rank == 1 else ():
        state.unlink()
    said = "there is no step of which all ranks hold a whole checkpoint"
    fails_with(CheckpointError, said, lambda: train(config, run, comm, AUTO))


def digest_of(checkpoint: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in checkpoint.iterdir()}


def a_run_without_any_checkpoint_starts_anew(comm: HorovodComm, folder: Path) -> None:
    config = sited_config(folder, comm, (1,) * comm.num_ranks)
    train(config, folder / "run", comm, AUTO)
    if comm.rank == 0:
        for site in config.sites:
            shutil.rmtree(folder / "run" / site / "checkpoints")
    is_equal_everywhere(comm, "removed")
    train(config, folder / "run", comm, AUTO)
    assert len(rows(folder / "run", f"site{comm.rank}", "metrics.jsonl", "step")) == 6


# ---- steps that are not finite


def poisoned(engine: Engine, rank_is_meant: bool, name: str) -> None:
    """Make a gradient infinite in backward."""
    if rank_is_meant:
        parameter = dict(engine.model.named_parameters())[name]
        parameter.register_hook(lambda gradient: torch.full_like(gradient, math.inf))


def a_gradient_that_is_not_finite_stops_all_and_is_named(comm: HorovodComm, folder: Path) -> None:
    for exchange in ("weights", "gradients"):
        for name, said in (
            ("features.denseblock3.denselayer1.conv1.weight", "denseblock3"),
            ("features.conv0.weight", "features.conv0.weight"),
        ):
            settings = {"private_patterns": ENDS, "exchange": exchange}
            engine, _ = engine_of(comm, one_rank_a_site(comm), settings)
            poisoned(engine, comm.rank == 1, name)
            before = values(engine.model)
            step = partial(engine.train_step, random_batch(comm.rank), 0)
            fails_with(TrainingError, "in step 0 (site site1, rank 1): the gradient of", step)
            after = values(engine.model)
            parameters = [n for n, _ in engine.model.named_parameters()]
            assert all(torch.equal(before[n], after[n]) for n in parameters), "no weight was changed"
            try:
                engine.train_step(random_batch(comm.rank), 1)
            except TrainingError as error:
                assert said in str(error)


def a_step_that_is_not_finite_is_skipped_by_all_where_asked(comm: HorovodComm, folder: Path) -> None:
    """A skipped step leaves no trace: what follows is what would have followed without it."""
    for exchange in ("weights", "gradients"):
        settings = {"private_patterns": ENDS, "exchange": exchange}
        engine, plan = engine_of(comm, one_rank_a_site(comm), settings, on_nonfinite="skip")
        other, _ = engine_of(comm, one_rank_a_site(comm), settings, on_nonfinite="skip")
        bad = random_batch(7 * comm.rank)
        if comm.rank == 1:
            bad.images.fill_(float("nan"))
        good = [random_batch(10 * comm.rank + step) for step in range(2)]
        reports = [engine.train_step(batch, step) for step, batch in enumerate([good[0], bad, good[1]])]
        for step, batch in zip((0, 2), good, strict=True):
            other.train_step(batch, step)
        assert [report.is_skipped for report in reports] == [False, True, False]
        found, expected = values(engine.model), values(other.model)
        if exchange == "gradients":
            assert all(torch.equal(found[name], expected[name]) for name in expected)
        else:  # the skipped step averaged once more what was equal already
            for name in plan.names(Scope.PRIVATE) + plan.names(Scope.LOCAL):
                torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)
        assert is_equal_everywhere(comm, digest(found, plan.names(Scope.SHARED)))
        if comm.rank == 1:
            assert all(tensor.isfinite().all() for tensor in found.values())


def too_many_skipped_steps_end_the_run(comm: HorovodComm, folder: Path) -> None:
    engine, _ = engine_of(comm, one_rank_a_site(comm), {"private_patterns": ENDS}, on_nonfinite="skip")
    bad = random_batch(comm.rank)
    if comm.rank == 0:
        bad.images.fill_(float("inf"))

    def many() -> None:
        for step in range(30):
            engine.train_step(bad, step)

    fails_with(TrainingError, "the images of its batch are not finite, after 20 skipped steps in a row", many)
    assert engine.num_skipped_in_a_row == 21


# ---- clipping, validation, pulses


def clipping_keeps_exchanged_weights_equal_and_bounds_the_step(comm: HorovodComm, folder: Path) -> None:
    clip_norm, learning_rate = 0.1, 1e-3
    for exchange in ("weights", "gradients"):
        settings = {"private_patterns": ENDS, "exchange": exchange}
        engine, plan = engine_of(comm, one_rank_a_site(comm), settings, "sgd", clip_norm=clip_norm)
        before = values(engine.model)
        engine.train_step(random_batch(comm.rank), 0)
        after = values(engine.model)
        assert is_equal_everywhere(comm, digest(after, plan.names(Scope.SHARED)))
        for scope in (Scope.SHARED, Scope.PRIVATE):
            names = [n for n in plan.names(scope) if "running" not in n]
            length = float(torch.cat([(after[n] - before[n]).flatten() for n in names]).norm())
            longest = clip_norm * learning_rate
            assert length <= 1.01 * longest, f"{exchange} {scope}: {length}"
            # A mean may be shorter than each step. A private step has the full length, or nothing was clipped.
            assert scope is Scope.SHARED or length >= 0.99 * longest, f"{exchange} {scope}: {length}"


def a_sites_ranks_judge_together_as_one_would(comm: HorovodComm, folder: Path) -> None:
    """Ranks that share the studies out come to the same AUROC as one rank with all of them."""
    from cxr_hvd.comm.local import LocalComm
    from cxr_hvd.comm.sites import Topology, bind
    from cxr_hvd.data.studies import open_training_data
    from cxr_hvd.training.validation import Validation

    config = sited_config(folder, comm, (comm.num_ranks,))
    topology = bind(comm, {"site0": comm.num_ranks})
    verdicts = []
    for own_comm, own_topology in ((comm, topology), (LocalComm(), Topology(0, ("site0",), (0,)))):
        data = open_training_data(config, own_topology)
        engine, _ = engine_of(own_comm, own_topology, {"private_patterns": ENDS})
        verdicts.append(Validation(data.validation_studies, config, engine, 1).judge(3))
        data.files[0].close()
    assert verdicts[0].macro_auroc is not None
    assert verdicts[0].macro_auroc == verdicts[1].macro_auroc
    assert is_equal_everywhere(comm, f"{verdicts[0].macro_auroc} {verdicts[0].mean_accuracy}")


def patience_without_anything_to_judge_by_is_refused_by_all(comm: HorovodComm, folder: Path) -> None:
    config = sited_config(folder, comm, (1,) * comm.num_ranks, (Split.TRAIN,), validation={"patience": 1})
    fails_with(ConfigError, "validation.patience: expected VALIDATE", lambda: train(config, folder / "run", comm))


def every_rank_hears_every_pulse(comm: HorovodComm, folder: Path) -> None:
    own = StepStatus(0.5 + comm.rank, 2.0, comm.rank != 1, StopReason(comm.rank % 4), Writing.WRITTEN)
    pulses = begin_statuses(Job(comm, one_rank_a_site(comm)), own)()
    assert pulses[comm.rank] == own
    assert [pulse.loss for pulse in pulses] == [0.5 + rank for rank in range(comm.num_ranks)]
    assert [pulse.is_finite for pulse in pulses] == [rank != 1 for rank in range(comm.num_ranks)]


def a_batch_in_parts_gives_the_gradient_of_the_whole(comm: HorovodComm, folder: Path) -> None:
    """With BatchNorm frozen, since it sees the parts; unknown labels are spread unevenly over the parts."""
    grads = []
    for exchange in ("weights", "gradients"):
        for accumulate in (1, 2, 4):
            settings = {"private_patterns": ENDS, "exchange": exchange}
            engine, _ = engine_of(
                comm, one_rank_a_site(comm), settings, "sgd", accumulate=accumulate, batch_size=4
            )
            for module in engine.model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.eval()
            batch = random_batch(comm.rank)
            known = batch.known.clone()
            known[0, 3:] = False
            report = engine.train_step(Batch(batch.images, batch.targets, known), 0)
            own = torch.cat([each.grad.flatten() for each in engine.model.parameters() if each.grad is not None])
            grads.append((exchange, own, report.loss))
    for exchange in ("weights", "gradients"):
        (_, whole, loss), *others = [each for each in grads if each[0] == exchange]
        for _, parts, part_loss in others:
            assert math.isclose(loss, part_loss, rel_tol=1e-5)
            assert float((parts - whole).norm() / whole.norm()) < 1e-4
