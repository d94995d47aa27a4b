"""What all ranks must have alike before they train, and what a resumed run must have kept."""

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from cxr_hvd import __version__
from cxr_hvd.comm.answers import check_number, read_answers
from cxr_hvd.comm.communicator import Communicator, allgather
from cxr_hvd.comm.contract import check_contract, flat_items
from cxr_hvd.comm.job import Job
from cxr_hvd.comm.sites import Topology
from cxr_hvd.config.schema import Config
from cxr_hvd.data.studies import TrainingData
from cxr_hvd.errors import ConfigError
from cxr_hvd.partial.plan import Scope, SharingPlan
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.training.budget import budget_of
from cxr_hvd.training.records import Budget
from cxr_hvd.training.run_folder import RunFolder

COMPARED_VERSIONS = ("torch", "torchvision", "horovod", "numpy")
DIGEST_BYTES = 32
MAX_STUDIES = 1 << 40
LENGTH = ("training.epochs", "training.max_steps")
MAY_CHANGE = (
    *LENGTH,
    "training.device",
    "training.on_nonfinite",
    "validation.every_epochs",
    "validation.patience",
    "validation.min_delta",
    "checkpoints.every_steps",
    "checkpoints.keep",
    "loader.threads",
    "loader.prefetch",
)
"""What a run may change when it goes on; all else would make it another run (decision 0015)."""


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


def agree_on_budget(config: Config, comm: Communicator, topology: Topology, data: TrainingData) -> Budget:
    """Find out how many studies each site has, and from that how long all train. Collective: every rank.

    Raises:
        ConfigError: on every rank, where validations are to end the run and there is nothing to validate on.
    """
    own = torch.tensor([len(data.studies), len(data.validation_studies)])
    counts = read_answers(allgather(comm, own, "studies").tolist(), _read_counts, "studies", topology.name_of)
    of_site = [counts[topology.ranks_at(site)[0]] for site in range(topology.num_sites)]
    budget = budget_of(config, [train for train, _ in of_site], [validate for _, validate in of_site])
    if config.validation.patience and not any(budget.validation_studies_per_site):
        error = ConfigError(
            "validation.patience: expected VALIDATE studies at one site at least, found none: draw some with "
            "cxr-preprocess --validate N, or leave patience out"
        )
        error.is_agreed = True
        raise error
    return budget


def _read_counts(answer: list[int]) -> tuple[int, int]:
    """Return a rank's numbers of training studies, one at least, and of validation studies."""
    train, validate = answer
    return int(check_number(train, 1, MAX_STUDIES)), int(check_number(validate, 0, MAX_STUDIES))


def find_twins(file: StudyFile, comm: Communicator, topology: Topology) -> list[list[str]]:
    """Find sites whose study files hold the same images, whatever their names, labels and order.

    What a rank sends is a hash of its images' digests, keyed by random numbers of all ranks: it tells nothing but
    whether two are equal, and cannot be recognised in another run.

    Collective: every rank. Blocking.

    Returns:
        The names of the sites of each such group, in the config's order.
    """
    if topology.num_sites == 1:
        return []
    key = allgather(comm, _as_tensor(secrets.token_bytes(DIGEST_BYTES)), "data.nonce")
    content = b"".join(sorted(digest.tobytes() for digest in file.digests))
    own = hmac.digest(key.contiguous().numpy().tobytes(), content, "sha256")
    tags = allgather(comm, _as_tensor(own), "data.tag")
    sites: dict[bytes, list[str]] = {}
    for site, name in enumerate(topology.site_names):
        sites.setdefault(bytes(tags[topology.ranks_at(site)[0]].tolist()), []).append(name)
    return [names for names in sites.values() if len(names) > 1]


def _as_tensor(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def check_shared_weights(
    plan: SharingPlan, model: torch.nn.Module, comm: Communicator, topology: Topology, step: int
) -> None:
    """Raise where sites resume from different shared weights; between averages they may. Collective: all."""
    if step % plan.every == 0:
        check_contract(Job(comm, topology), {f"shared weights after {step} steps": shared_digest(plan, model)})


def changed_settings(folder: RunFolder, config: Config) -> dict[str, tuple[str, str]]:
    """Compare a config with the one that the run in a folder has, where there is one with a checkpoint.

    Returns:
        What differs and may, by its dotted name: what it was, and what it is.

    Raises:
        ConfigError: something differs that may not: the run would go on as another.
    """
    if not folder.has_run() or not folder.steps():
        return {}
    before, now = (_plain_items(each.shared_part()) for each in (folder.config(), config))
    changed = {
        name: (before.get(name, "not there"), now.get(name, "not there"))
        for name in {**now, **before}
        if before.get(name) != now.get(name)
    }
    for name, (was, is_now) in changed.items():
        if name not in MAY_CHANGE:
            raise ConfigError(
                f"{name} was {was} and is {is_now} now: {folder.path} goes on with what it was started with; set "
                f"it back, or start anew with another --run (what may change: {', '.join(MAY_CHANGE)})"
            )
    return changed


def check_length(changed: Iterable[str], step: int, num_steps: int, folder: RunFolder) -> None:
    """Check that a run that goes on is not cut to less than it has done.

    Raises:
        ConfigError: it is.
    """
    is_cut = any(name in LENGTH for name in changed) and num_steps <= step
    if is_cut or num_steps < step:
        raise ConfigError(
            f"{folder.path}: expected a run of more than the {step} steps that it has done, found {num_steps}: "
            "raise training.epochs or training.max_steps"
        )


def describe_changes(changed: Mapping[str, tuple[str, str]], config: Config, step: int, num_steps: int) -> str:
    """Say in one line what changes when a run goes on, and what that means for its learning rate."""
    text = "; ".join(f"{name} was {was} and is {is_now} now" for name, (was, is_now) in changed.items())
    schedule = config.training.schedule
    if any(name in LENGTH for name in changed) and schedule != "constant":
        text += f"; from step {step} on the learning rate is that of a run of {num_steps} steps ({schedule})"
    return text


def _plain_items(tree: Mapping[str, Any]) -> dict[str, str]:
    return {name.removeprefix("config."): value for name, value in flat_items(tree, "config").items()}
