"""A site's run folder and the checkpoints in it.

`runs/NAME/SITE/` belongs to one site, has mode 0700, and is written by that site's ranks alone. A checkpoint is
the folder `checkpoints/step-N` with `shared.safetensors`, `private.safetensors`, one `optimizer-RANK.safetensors`
for each rank of the site (and one `exchange-RANK.safetensors`, where a short wire keeps rounding errors) and
`state.json`. It is filled beside its name, synced and renamed; then `latest` is
pointed at it, so that `latest` always loads. No pickle is written or read.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cxr_hvd.atomic import begin_folder, finish_folder, folder_beside, point_link, write_text
from cxr_hvd.collective.comm import Communicator, together
from cxr_hvd.collective.sharing import Scope, SharingPlan
from cxr_hvd.collective.sites import Topology
from cxr_hvd.config import Config, load_config
from cxr_hvd.errors import CheckpointError

KEPT = 2
OPTIMIZER_STEP = "step"


class RunFolder:
    """The folder `run/SITE` of one site."""

    def __init__(self, run: Path, site: str) -> None:
        self.path = run / site
        self.checkpoints = self.path / "checkpoints"

    def open_new(self, overwrite: bool) -> None:
        """Make the folder, empty.

        Raises:
            CheckpointError: it holds a run already, and `overwrite` is False.
        """
        if (self.path / "config.yaml").exists() and not overwrite:
            raise CheckpointError(
                f"{self.path} holds a run already: go on with --resume, replace it with --overwrite, "
                "or name another with --run"
            )
        try:
            if (self.path / "config.yaml").exists():
                shutil.rmtree(self.path)
            self.checkpoints.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot make the run folder ({error.strerror})") from error

    def write_record(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON or YAML record of the run, by the ending of `name`."""
        is_yaml = name.endswith(".yaml")
        text = yaml.safe_dump(dict(content), sort_keys=False) if is_yaml else json.dumps(content, indent=1)
        with _disk_errors(self.path / name):
            write_text(self.path / name, text + "\n")

    def config(self, settings: tuple[str, ...] = ()) -> Config:
        """Read back the config that the run was started with."""
        if not (self.path / "config.yaml").is_file():
            raise CheckpointError(f"{self.path}: no run of a site here; expected config.yaml and checkpoints/")
        return load_config(self.path / "config.yaml", settings)

    def latest_step(self) -> int:
        """Return how many steps the newest whole checkpoint has behind it, or 0 where there is none."""
        latest = self.checkpoints / "latest"
        return int(_read_state(latest)["step"]) if latest.is_dir() else 0


def sites_in(run: Path) -> list[str]:
    """Return the names of the sites whose folders are in a run and may be read from here."""
    sites = sorted(path.parent.name for path in run.glob("*/config.yaml"))
    if not sites:
        raise CheckpointError(f"{run}: no run here; expected one folder for each site, as `cxr-hvd train` makes")
    return sites


def save_checkpoint(
    folder: RunFolder,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    exchange: Mapping[str, Tensor],
    plan: SharingPlan,
    comm: Communicator,
    topology: Topology,
) -> None:
    """Write `checkpoints/step-N` and point `latest` at it. Collective: every rank, with the same step."""
    path = folder.checkpoints / f"step-{step}"
    with together(comm, "saving a checkpoint"), _disk_errors(path):
        if topology.is_site_leader:
            beside = begin_folder(path)
            tensors = model.state_dict()
            shared = set(plan.names(Scope.SHARED))
            save_file({n: t for n, t in tensors.items() if n in shared}, beside / "shared.safetensors")
            save_file({n: t for n, t in tensors.items() if n not in shared}, beside / "private.safetensors")
            state = {"step": step, "site": topology.site, "num_ranks_of_site": len(topology.ranks_of_site)}
            state |= {"has_exchange": bool(exchange)}
            write_text(beside / "state.json", json.dumps(state, indent=1))
    with together(comm, "saving a checkpoint"), _disk_errors(path):
        file = folder_beside(path) / f"optimizer-{topology.rank_in_site}.safetensors"
        save_file(_optimizer_tensors(model, optimizer), file)
        if exchange:
            save_file(dict(exchange), _exchange_file(folder_beside(path), topology))
    with together(comm, "saving a checkpoint"), _disk_errors(path):
        if topology.is_site_leader:
            finish_folder(path)
            point_link(folder.checkpoints / "latest", path)
            _remove_old(folder.checkpoints)


def load_weights(folder: RunFolder, model: nn.Module) -> int:
    """Put the latest checkpoint's shared and private tensors into a model; return its number of steps."""
    latest = folder.checkpoints / "latest"
    state = _read_state(latest)
    tensors = _load(latest / "shared.safetensors") | _load(latest / "private.safetensors")
    own = model.state_dict()
    for name in own.keys() | tensors.keys():
        found, wanted = tensors.get(name), own.get(name)
        if found is None or wanted is None or found.shape != wanted.shape or found.dtype != wanted.dtype:
            raise CheckpointError(
                f"{latest}: tensor {name}: expected {_said(wanted)}, found {_said(found)}; it is of another model"
            )
        wanted.copy_(found)
    return int(state["step"])


def load_optimizer(
    folder: RunFolder, model: nn.Module, optimizer: torch.optim.Optimizer, topology: Topology
) -> None:
    """Put the latest checkpoint's optimizer state of this rank back."""
    path = folder.checkpoints / "latest" / f"optimizer-{topology.rank_in_site}.safetensors"
    tensors = _load(path)
    state: dict[int, dict[str, Tensor]] = {}
    for index, (name, parameter) in enumerate(model.named_parameters()):
        prefix = f"{name}/"
        state[index] = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
        for moment in state[index].values():
            if moment.dim() and moment.shape != parameter.shape:
                raise CheckpointError(f"{path}: state of {name} has shape {list(moment.shape)}: another model's")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def load_exchange(folder: RunFolder, topology: Topology) -> dict[str, Tensor]:
    """Return what the latest checkpoint keeps of this rank's exchange; empty where it keeps nothing."""
    latest = folder.checkpoints / "latest"
    return _load(_exchange_file(latest, topology)) if _read_state(latest)["has_exchange"] else {}


def _exchange_file(checkpoint: Path, topology: Topology) -> Path:
    return checkpoint / f"exchange-{topology.rank_in_site}.safetensors"


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Name each state tensor `parameter/moment`."""
    return {
        f"{name}/{moment}": tensor
        for name, parameter in model.named_parameters()
        for moment, tensor in optimizer.state.get(parameter, {}).items()
        if isinstance(tensor, Tensor)
    }


def _said(tensor: Tensor | None) -> str:
    return "none" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{path}: cannot read it ({type(error).__name__}); use an earlier checkpoint"
        ) from error


def _read_state(checkpoint: Path) -> dict[str, Any]:
    try:
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        return {
            "step": int(state["step"]),
            "site": str(state["site"]),
            "has_exchange": bool(state.get("has_exchange", False)),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{checkpoint}: expected a checkpoint with state.json, found none to read"
        ) from error


def _remove_old(checkpoints: Path) -> None:
    steps = sorted(int(path.name.removeprefix("step-")) for path in checkpoints.glob("step-*"))
    for step in steps[:-KEPT]:
        shutil.rmtree(checkpoints / f"step-{step}", ignore_errors=True)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turn an error of the disk into one line."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{path}: cannot write ({error}); what was there before is whole: free the disk, then use --resume"
        ) from error
