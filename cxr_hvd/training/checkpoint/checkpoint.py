"""Checkpoints: written by a thread while training goes on, whole or not at all, and read back bit for bit.

A checkpoint is the folder `checkpoints/step-N`. The site's leader writes `shared.safetensors`,
`private.safetensors` and `state.json`; each rank of the site its `optimizer-RANK.safetensors`,
`exchange-RANK.safetensors` where a short wire keeps rounding errors, `mean-RANK.safetensors` where a running mean
of the weights is kept, and, between two averages, when ranks of a site differ, `weights-RANK.safetensors`. No
pickle is written or read.

It takes three moments (`CheckpointWriter`): all ranks copy their tensors after the same step; a thread of each
writes and syncs the copies beside the checkpoint's name; once all ranks have told that theirs are written, all
agree, and the leader of each site renames the folder and points `latest` at it. So `latest` always loads, and
sites can differ by one checkpoint at most, however a run is killed.
"""

import json
import shutil
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cxr_hvd.comm.answers import check_number, read_answers
from cxr_hvd.comm.communicator import Communicator, allgather, together
from cxr_hvd.comm.sites import Topology
from cxr_hvd.comm.step_status import StepStatus, Writing
from cxr_hvd.errors import CheckpointError, CxrHvdError
from cxr_hvd.files import finish_folder, folder_beside, point_link, sync
from cxr_hvd.ledger.form import MAX_COUNT
from cxr_hvd.partial.plan import Scope, SharingPlan
from cxr_hvd.terminal import say
from cxr_hvd.training.checkpoint.files import check_whole, load_tensors, read_state
from cxr_hvd.training.engine import Engine
from cxr_hvd.training.optim import Optimizer
from cxr_hvd.training.run_folder import BEST, LATEST, RunFolder, disk_errors

MOST_OFFERED = 8

Files = dict[str, dict[str, Tensor]]


class CheckpointWriter:
    """Writes a rank's part of each checkpoint, and finishes it together with the other ranks.

    Args:
        folder: the site's; its ranks share it.
        keep: how many of the newest checkpoints stay, besides the best.

    Attributes:
        best_step: the step whose checkpoint `best` is to name; None where none is the best yet.
        seconds: how long the last checkpoint took from its copy to the disk.
    """

    def __init__(self, folder: RunFolder, comm: Communicator, topology: Topology, keep: int) -> None:
        self.best_step: int | None = None
        self.seconds = 0.0
        self._folder = folder
        self._comm = comm
        self._topology = topology
        self._keep = keep
        self._step: int | None = None
        self._thread: threading.Thread | None = None
        self._error: CxrHvdError | None = None

    @property
    def writing(self) -> Writing:
        """How far this rank's part is."""
        if self._thread is None:
            return Writing.IDLE
        if self._thread.is_alive():
            return Writing.BUSY
        return Writing.FAILED if self._error else Writing.WRITTEN

    def begin(self, step: int, files: Files, state: Mapping[str, Any]) -> None:
        """Begin to write what all ranks of a step have copied.

        Collective: every rank, with the same step. Blocking only where the checkpoint before is not finished yet.

        Args:
            files: from name to tensors that nobody changes any more.
            state: what the site's leader writes to `state.json`.
        """
        self.finish()
        content = dict(state) if self._topology.is_site_leader else None
        self._step, self._error, self._began = step, None, time.monotonic()
        path = self._folder.checkpoint(step)
        self._thread = threading.Thread(target=self._write, args=(path, files, content), name="checkpoint")
        self._thread.start()

    def settle(self, pulses: Sequence[StepStatus]) -> None:
        """Finish the checkpoint where all ranks have told that their part is written, or that it failed.

        Collective: every rank, with the pulses of the same step.
        """
        if self._step is not None and all(pulse.writing > Writing.BUSY for pulse in pulses):
            self.finish()

    def finish(self) -> None:
        """Wait until all ranks have written, and name the checkpoint. Collective: every rank. Blocking."""
        if self._step is None or self._thread is None:
            return
        step = self._step
        self._thread.join()
        with together(self._comm, "saving a checkpoint"):
            if self._error:
                raise self._error
        with together(self._comm, "finishing a checkpoint"), disk_errors(self._folder.checkpoints):
            if self._topology.is_site_leader:
                finish_folder(self._folder.checkpoint(step))
                point_link(self._folder.checkpoints / LATEST, self._folder.checkpoint(step))
                self.name_best()
                self._remove_old()
        self.seconds = time.monotonic() - self._began
        self._step = self._thread = None

    def name_best(self) -> None:
        """Point `best` at the best checkpoint, where that is finished. Not collective: a site's leader."""
        if self.best_step is None:  # a longer run does not judge again what the shorter one judged at its end
            (self._folder.checkpoints / BEST).unlink(missing_ok=True)
        elif self._folder.checkpoint(self.best_step).is_dir():
            point_link(self._folder.checkpoints / BEST, self._folder.checkpoint(self.best_step))

    def _write(self, path: Path, files: Files, state: Mapping[str, Any] | None) -> None:
        try:
            with disk_errors(path):
                write_files(folder_beside(path), files, state)
        except CxrHvdError as error:
            self._error = error

    def _remove_old(self) -> None:
        for step in self._folder.steps()[self._keep :]:
            if step != self.best_step:
                shutil.rmtree(self._folder.checkpoint(step), ignore_errors=True)


def write_files(beside: Path, files: Files, state: Mapping[str, Any] | None) -> None:
    """Write and sync one rank's files into the folder that all ranks of the site fill."""
    beside.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, tensors in files.items():
        save_file(tensors, beside / name)
        sync(beside / name)
    if state is not None:
        (beside / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
        sync(beside / "state.json")


@torch.no_grad()
def snapshot_tensors(engine: Engine, step: int) -> Files:
    """Copy all tensors that this rank writes after so many steps, into memory that training does not use."""
    model, rank = engine.model, engine.topology.rank_in_site
    tensors, shared = model.state_dict(), set(engine.plan.names(Scope.SHARED))
    files: Files = {}
    if engine.topology.is_site_leader:
        files["shared.safetensors"] = {n: t for n, t in tensors.items() if n in shared}
        files["private.safetensors"] = {n: t for n, t in tensors.items() if n not in shared}
    elif is_between_averages(engine.plan, step, engine.num_steps):
        files[_own("weights", rank)] = tensors
    files[_own("optimizer", rank)] = _optimizer_tensors(model, engine.optimizer)
    if exchange := engine.averager.state():
        files[_own("exchange", rank)] = exchange
    if engine.weight_mean:
        files[_own("mean", rank)] = engine.weight_mean.tensors()
    return {
        name: {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in content.items()}
        for name, content in files.items()
    }


def snapshot_record(engine: Engine, step: int, validation: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint says besides tensors: the same on all ranks of a site."""
    return {
        "step": step,
        "site": engine.topology.site,
        "num_ranks_of_site": len(engine.topology.ranks_of_site),
        "has_exchange": bool(engine.averager.state()),
        "has_mean": engine.weight_mean is not None,
        "num_skipped_in_a_row": engine.num_skipped_in_a_row,
        "loss_scale": engine.loss_scale.state() if engine.loss_scale else None,
        "validation": dict(validation),
    }


def is_between_averages(plan: SharingPlan, step: int, num_steps: int) -> bool:
    """Return whether ranks of a site may differ after so many steps."""
    return plan.exchange == "weights" and step % plan.every != 0 and step != num_steps


# ---- reading back


def agree_on_step(folder: RunFolder, plan: SharingPlan, comm: Communicator, topology: Topology) -> int | None:
    """Return the newest step of which all ranks hold a whole checkpoint; None where no rank holds any.

    Collective: every rank. Blocking.

    Raises:
        CheckpointError: on every rank, where some hold checkpoints but there is no step that all hold whole.
    """
    own, damaged = _whole_steps(folder, plan, topology)
    padded = torch.tensor(own + [0] * (MOST_OFFERED - len(own)), dtype=torch.int64)
    rows = allgather(comm, padded, "steps.whole").tolist()
    offered = read_answers(rows, _read_steps, "steps.whole", topology.name_of)
    common = set.intersection(*offered)
    if not common and any(offered):
        told = "; ".join(
            f"{topology.name_of(rank)} {', '.join(map(str, sorted(steps))) or 'none'}"
            for rank, steps in enumerate(offered)
        )
        error = CheckpointError(
            f"there is no step of which all ranks hold a whole checkpoint: {told}; bring a common one back from a "
            "backup, or start anew with --overwrite"
        )
        error.is_agreed = True
        raise error
    newest = max(common, default=0)
    for step, why in damaged.items():
        if step > newest > 0:
            path = folder.checkpoint(step)
            say(f"{path} is passed over, {topology.name_of(topology.rank)} goes on from step {newest}: {why}")
    if not common:
        with together(comm, "looking for a checkpoint to go on from"):
            for step, why in damaged.items():
                raise CheckpointError(
                    f"{folder.checkpoint(step)}: cannot go on from it, nor from an earlier one: {why}; start anew "
                    "with --overwrite"
                )
    return newest or None


def _read_steps(answer: list[int]) -> set[int]:
    return {int(check_number(step, 0, MAX_COUNT)) for step in answer if step}


def _whole_steps(folder: RunFolder, plan: SharingPlan, topology: Topology) -> tuple[list[int], dict[int, str]]:
    """Return the newest steps whose checkpoints this rank can go on from, and why it cannot from others."""
    whole: list[int] = []
    damaged: dict[int, str] = {}
    for step in folder.steps():
        if len(whole) < MOST_OFFERED:
            try:
                check_whole(folder.checkpoint(step), step, plan, topology)
                whole.append(step)
            except CheckpointError as error:
                damaged[step] = str(error)
    return whole, damaged


def load_checkpoint(folder: RunFolder, step: int, engine: Engine) -> dict[str, Any]:
    """Put model, optimizer, exchange, loss scale and running mean of a checkpoint back; return its state."""
    checkpoint, rank = folder.checkpoint(step), engine.topology.rank_in_site
    state = read_state(checkpoint)
    try:
        restore(checkpoint, state, rank, engine)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{checkpoint}: is of another model or run ({type(error).__name__}); use an earlier checkpoint"
        ) from error
    return state


def restore(checkpoint: Path, state: Mapping[str, Any], rank: int, engine: Engine) -> None:
    """Put into an engine what a rank's files of a checkpoint hold."""
    own = checkpoint / _own("weights", rank)
    load_weights([own] if own.exists() else _weight_files(checkpoint), engine.model)
    load_optimizer(checkpoint / _own("optimizer", rank), engine.model, engine.optimizer)
    engine.averager.load_state(load_tensors(checkpoint / _own("exchange", rank)) if state["has_exchange"] else {})
    engine.num_skipped_in_a_row = state["num_skipped_in_a_row"]
    if engine.loss_scale and state["loss_scale"]:
        engine.loss_scale.load_state(state["loss_scale"])
    if engine.weight_mean:
        engine.weight_mean.load(load_tensors(checkpoint / _own("mean", rank)))


def load_judged_weights(checkpoint: Path, model: nn.Module) -> int:
    """Put into a model what of a checkpoint is to be judged or used; return its number of steps.

    That is the running mean of the weights where one was kept, else the weights.
    """
    state = read_state(checkpoint)
    mean = checkpoint / _own("mean", 0)
    load_weights([*_weight_files(checkpoint), *([mean] if state["has_mean"] else [])], model)
    return int(state["step"])


def load_weights(files: Iterable[Path], model: nn.Module) -> None:
    """Put tensors into a model, those of later files over those of earlier ones.

    Raises:
        CheckpointError: a file cannot be read, or tensors are not the model's.
    """
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= load_tensors(file)
    own = model.state_dict()
    for name in own.keys() | tensors.keys():
        found, wanted = tensors.get(name), own.get(name)
        if found is None or wanted is None or found.shape != wanted.shape or found.dtype != wanted.dtype:
            raise CheckpointError(
                f"{file}: tensor {name}: expected {_said(wanted)}, found {_said(found)}; it is of another model"
            )
        wanted.copy_(found)


def load_optimizer(path: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Put this rank's optimizer state back."""
    tensors = load_tensors(path)
    state: dict[Tensor, dict[str, Tensor]] = {}
    for name, parameter in model.named_parameters():
        prefix = f"{name}/"
        state[parameter] = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
        for moment in state[parameter].values():
            if moment.dim() and moment.shape != parameter.shape:
                raise CheckpointError(f"{path}: state of {name} has shape {list(moment.shape)}: another model's")
    optimizer.load_state(state)


def _own(what: str, rank_in_site: int) -> str:
    return f"{what}-{rank_in_site}.safetensors"


def _weight_files(checkpoint: Path) -> list[Path]:
    return [checkpoint / "shared.safetensors", checkpoint / "private.safetensors"]


def _optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Name each state tensor `parameter/moment`."""
    return {
        f"{name}/{moment}": tensor
        for name, parameter in model.named_parameters()
        for moment, tensor in optimizer.state.get(parameter, {}).items()
        if isinstance(tensor, Tensor)
    }


def _said(tensor: Tensor | None) -> str:
    return "none" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
