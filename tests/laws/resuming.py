"""Laws of resuming: a run that was stopped ends with the files of one that never stopped."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from cxr_hvd.comm.communicator import together
from cxr_hvd.comm.horovod import HorovodComm
from cxr_hvd.comm.step_status import StopReason
from cxr_hvd.config.schema import Config
from cxr_hvd.errors import CheckpointError, ConfigError, Stopped
from cxr_hvd.files import point_link
from cxr_hvd.ledger.audit import audit
from cxr_hvd.ledger.reader import load_folders
from cxr_hvd.partial.blocks import tensor_specs
from cxr_hvd.training import stopping
from cxr_hvd.training.sharing import plan_sharing
from cxr_hvd.training.status_delay import steps_late
from cxr_hvd.training.train import LaunchOptions, train
from tests.laws.law import law
from tests.laws.parts import (
    GO_ON,
    common_folder,
    config_for,
    fails_with,
    fresh_model,
    is_equal_everywhere,
    rows,
    sited_config,
)

AUTO = LaunchOptions(resume="auto")
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
    "overlapped": {"sharing": {"every": 8, "overlap": True}, "training": {"ema_decay": 0.9}},
    "overlapped-int8": {"sharing": {"every": 8, "overlap": True, "wire": "int8"}},
    "weights-int8": {"sharing": {"wire": "int8"}},
}


def stop_after_the_first_checkpoint(comm: HorovodComm, config: Config, folder: Path) -> None:
    """Copy the run `whole`, which has two checkpoints, to `stopped`, which has only the first."""
    with together(comm, "copying the run"):
        if comm.rank == 0:
            shutil.copytree(folder / "whole", folder / "stopped", symlinks=True)
            for site in config.sites:
                checkpoints = folder / "stopped" / site / "checkpoints"
                first, last = sorted(checkpoints.glob("step-*"), key=lambda path: int(path.name[5:]))
                shutil.rmtree(last)
                point_link(checkpoints / "latest", first)


def lacking_exchange_files_are_refused(comm: HorovodComm, config: Config, own: Path, has_files: bool) -> None:
    """Rounding errors that are gone would change the result unseen: say so on every rank, in one line."""
    file = own / "stopped" / f"site{comm.rank}" / "checkpoints" / "latest" / "exchange-0.safetensors"
    if comm.rank == 1 and has_files:
        file.rename(file.with_suffix(".away"))
    if has_files:
        said = "no step of which all ranks hold a whole checkpoint: site site0, rank 0 "
        fails_with(CheckpointError, said, lambda: train(config, own / "stopped", comm, GO_ON))
    if comm.rank == 1 and has_files:
        file.with_suffix(".away").rename(file)


@law(day="mpirun-2 gloo-2", night="gloo-2 mpirun-2-densenet121")
def resuming_equals_never_stopping_bit_for_bit(comm: HorovodComm, folder: Path) -> None:
    config = config_for(folder, comm)
    train(config, folder / "whole", comm)
    stop_after_the_first_checkpoint(comm, config, folder)
    other = config.model_copy(update={"seed": 99})
    fails_with(ConfigError, "seed was 1 and is 99 now", lambda: train(other, folder / "stopped", comm, GO_ON))
    train(config, folder / "stopped", comm, GO_ON)
    for file in ("shared", "private", "optimizer-0"):
        name = f"site{comm.rank}/checkpoints/latest/{file}.safetensors"
        assert (folder / "whole" / name).read_bytes() == (folder / "stopped" / name).read_bytes(), name
    assert oct((folder / "whole" / f"site{comm.rank}").stat().st_mode)[-3:] == "700"


@law(day="mpirun-2", night="gloo-2 mpirun-2-densenet121")
def resuming_equals_never_stopping_for_every_exchange(comm: HorovodComm, folder: Path) -> None:
    variants: dict[str, dict[str, Any]] = {
        "gradients-bf16": {"exchange": "gradients", "wire": "bfloat16"},
        "weights-bf16-every-3": {"wire": "bfloat16", "every": 3},
        "weights-every-4-shared-state": {"every": 4, "optimizer_state": "shared"},
    }
    for name, sharing in variants.items():
        own = common_folder(comm, folder / name)
        config = config_for(own, comm, sharing=sharing)
        train(config, own / "whole", comm)
        stop_after_the_first_checkpoint(comm, config, own)
        lacking_exchange_files_are_refused(comm, config, own, has_files="bf16" in name)
        train(config, own / "stopped", comm, GO_ON)
        latest = own / "whole" / f"site{comm.rank}" / "checkpoints" / "latest"
        for file in sorted(latest.glob("*.safetensors")):
            other = own / "stopped" / f"site{comm.rank}" / "checkpoints" / "latest" / file.name
            assert file.read_bytes() == other.read_bytes(), f"{name}: {file.name}"
        assert (latest / "exchange-0.safetensors").exists() is ("bf16" in name)


@contextmanager
def asked_to_stop(comm: HorovodComm, after_step: int, rank: int) -> Iterator[None]:
    """Have one rank's request for a stop set in this step."""
    original, calls = stopping.StopRequest.reason, iter(range(1_000_000))

    def reason(self: stopping.StopRequest, num_late: int) -> StopReason:
        if next(calls) == after_step and comm.rank == rank:
            self.ask(StopReason.SIGNAL)
        return original(self, num_late)

    stopping.StopRequest.reason = reason  # type: ignore[method-assign]
    try:
        yield
    finally:
        stopping.StopRequest.reason = original  # type: ignore[method-assign]


def same_files(one: Path, other: Path) -> None:
    names = {path.name for path in one.iterdir()}
    assert names == {path.name for path in other.iterdir()}
    for name in sorted(names):
        assert (one / name).read_bytes() == (other / name).read_bytes(), f"{other / name}"


@law(day="mpirun-2", night="gloo-2")
def stopping_and_going_on_equals_never_stopping(comm: HorovodComm, folder: Path) -> None:
    """The variants that keep most between steps: error feedback, means under way or of weights, a loss scale."""
    names = ("weights-every-4-bf16-mean", "gradients-fp16-accumulated", "overlapped-int8")
    goes_on_as_if_never_stopped(comm, folder, [((1,) * comm.num_ranks, name) for name in names])


@law(slow="gloo-2", night="mpirun-2 mpirun-3")
def stopping_and_going_on_equals_never_stopping_for_every_exchange(comm: HorovodComm, folder: Path) -> None:
    """In the middle and at the end of an epoch, for every exchange, one and several ranks a site: bit for bit."""
    layouts = {2: (1, 1), 3: (1, 2)}
    cases = [(layouts[comm.num_ranks], name) for name in VARIANTS]
    if comm.num_ranks == 2:  # one site alone: what differs is that its ranks are several
        names = ("weights-every-4-bf16-mean", "gradients-fp16-accumulated", "overlapped")
        cases += [((2,), name) for name in names]
    goes_on_as_if_never_stopped(comm, folder, cases)


def goes_on_as_if_never_stopped(comm: HorovodComm, folder: Path, cases: list[tuple[tuple[int, ...], str]]) -> None:
    """Train each variant whole, and twice with a stop; all must end with the same files, bit for bit."""
    for number, (ranks, name) in enumerate(cases):
        own = common_folder(comm, folder / f"{name}-{'+'.join(map(str, ranks))}")
        epoch = 4
        variant = VARIANTS[name] | {"training": {"steps_per_epoch": epoch, **VARIANTS[name].get("training", {})}}
        config = sited_config(own, comm, ranks, **variant)
        comm.ledger.__init__()  # type: ignore[misc]  # as in a process of its own
        train(config, own / "whole", comm)
        num_late = steps_late(plan_sharing(config, tensor_specs(fresh_model())), config.training, comm.num_ranks)
        for stop_at in (0 if num_late > 1 else 1, 3):  # in the middle, where a mean is under way, and at an end
            stopped = own / f"stopped-{stop_at}"
            asked = (number + stop_at) % comm.num_ranks
            with asked_to_stop(comm, stop_at, asked):
                start = partial(train, config, stopped, comm)
                done = min(stop_at + 1 + num_late, epoch)  # before a validation all is known of every step
                fails_with(Stopped, f"stopped after step {done} of {2 * epoch}", start)
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


@law(day="mpirun-2", night="gloo-2")
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


@law(day="mpirun-2", night="gloo-2")
def a_run_without_any_checkpoint_starts_anew(comm: HorovodComm, folder: Path) -> None:
    config = sited_config(folder, comm, (1,) * comm.num_ranks)
    train(config, folder / "run", comm, AUTO)
    if comm.rank == 0:
        for site in config.sites:
            shutil.rmtree(folder / "run" / site / "checkpoints")
    is_equal_everywhere(comm, "removed")
    train(config, folder / "run", comm, AUTO)
    assert len(rows(folder / "run", f"site{comm.rank}", "metrics.jsonl", "step")) == 6
