"""What all ranks must have alike before they train, and what a resumed run must have kept."""

import hashlib
from importlib.metadata import PackageNotFoundError, version

import torch

from cxr_hvd import __version__
from cxr_hvd.collective.comm import Communicator
from cxr_hvd.collective.contract import check_contract, flat_items
from cxr_hvd.collective.sharing import Scope, SharingPlan, build_plan
from cxr_hvd.collective.sites import Topology
from cxr_hvd.config import Config
from cxr_hvd.errors import ConfigError
from cxr_hvd.training.data import TrainingData
from cxr_hvd.training.model import tensor_specs
from cxr_hvd.training.run_folder import RunFolder

COMPARED_VERSIONS = ("torch", "torchvision", "horovod", "numpy")


def plan_of(config: Config, model: torch.nn.Module) -> SharingPlan:
    """Build the sharing plan that a config asks for."""
    sharing = config.sharing
    return build_plan(
        tensor_specs(model),
        config.private_patterns,
        sharing.batchnorm,
        sharing.every,
        sharing.exchange,
        sharing.wire,
        config.moments,
    )


def contract_items(
    config: Config, plan: SharingPlan, model: torch.nn.Module, data: TrainingData
) -> dict[str, str]:
    """State what all ranks must have alike, in the order in which a difference is best told."""
    header = data.files[0].header
    items = {"label order": ", ".join(header.label_names)}
    if config.pixel_pipelines == "same":
        items["pixel pipeline (pixel_pipelines: any allows several)"] = header.pixels
    items |= flat_items(config.shared_part(), "config")
    items |= {f"version of {name}": version_of(name) for name in COMPARED_VERSIONS}
    items |= {"version of cxr_hvd": __version__}
    if config.is_merged:
        items |= {f"study file of {f.header.site}": f.digest for f in data.files}
    return items | plan.items() | {"model's first shared weights": shared_digest(plan, model)}


def version_of(package: str) -> str:
    """Return the version of a package that is installed; one site alone trains without Horovod, for example."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def shared_digest(plan: SharingPlan, model: torch.nn.Module) -> str:
    """Return the SHA-256 of a model's shared tensors, in the plan's order."""
    tensors, digest = model.state_dict(), hashlib.sha256()
    for name in plan.names(Scope.SHARED):
        digest.update(tensors[name].contiguous().cpu().numpy())
    return digest.hexdigest()


def check_shared_weights(
    plan: SharingPlan, model: torch.nn.Module, comm: Communicator, topology: Topology, step: int
) -> None:
    """Raise where sites resume from different shared weights; between averages they may. Collective: all."""
    if step % plan.every == 0:
        check_contract(comm, topology, {f"shared weights after {step} steps": shared_digest(plan, model)})


def check_same_config(folder: RunFolder, config: Config) -> None:
    """Raise where a run would go on as something else than it was started as."""
    before = flat_items(folder.config().shared_part(), "config")
    now = flat_items(config.shared_part(), "config")
    for name in before.keys() | now.keys():
        if before.get(name) != now.get(name):
            raise ConfigError(
                f"{name} was {before.get(name)} when {folder.path} was started, and is {now.get(name)} now: "
                "resume with the same config, or start anew with another --run"
            )
