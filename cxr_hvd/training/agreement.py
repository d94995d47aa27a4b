"""What all ranks agree on before they train: config, plan, first weights, length; and equal sites."""

import hmac
import secrets
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import nn

from cxr_hvd import __version__
from cxr_hvd.comm.answers import check_number
from cxr_hvd.comm.contract import check_contract, flat_items
from cxr_hvd.comm.job import Job
from cxr_hvd.config.schema import Config
from cxr_hvd.data.studies import TrainingData
from cxr_hvd.errors import ConfigError
from cxr_hvd.models.build import network_items
from cxr_hvd.partial.model_plan import shared_digest
from cxr_hvd.partial.plan import SharingPlan
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.training.budget import budget_of
from cxr_hvd.training.records import Budget

COMPARED_VERSIONS = ("torch", "torchvision", "horovod", "numpy")
DIGEST_BYTES = 32
MAX_STUDIES = 1 << 40


def contract_items(
    config: Config, plan: SharingPlan, model: nn.Module, data: TrainingData, weights_digest: str = ""
) -> dict[str, str]:
    """State what all ranks must have alike, in the order in which a difference is best told."""
    header = data.files[0].header
    items = {"label order": ", ".join(header.label_names)}
    if config.pixel_pipelines == "same":
        items["pixel pipeline (pixel_pipelines: any allows several)"] = header.pixels
    items |= flat_items(config.shared_part(), "config")
    if config.model.weights:
        items["SHA-256 of the tensors of model.weights"] = weights_digest
    items |= {f"version of {name}": version_of(name) for name in COMPARED_VERSIONS}
    items |= {"version of cxr_hvd": __version__} | network_items(config.model)
    if config.is_merged:
        items |= {f"study file of {f.header.site}": f.digest for f in data.files}
    return items | plan.items() | {"model's first shared weights": shared_digest(plan, model)}


def version_of(package: str) -> str:
    """Return the version of a package that is installed; one site alone trains without Horovod, for example."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def agree_on_budget(config: Config, job: Job, data: TrainingData) -> Budget:
    """Find out how many studies each site has, and from that how long all train. Collective: every rank.

    Raises:
        ConfigError: on every rank, where validations are to end the run and there is nothing to validate on.
    """
    sizes = torch.tensor([len(data.studies), len(data.validation_studies)])
    size_of_rank = job.allgather_numbers(sizes, "studies", _read_counts)
    size_of_site = [size_of_rank[ranks[0]] for ranks in map(job.topology.ranks_at, range(job.topology.num_sites))]
    budget = budget_of(config, [train for train, _ in size_of_site], [validate for _, validate in size_of_site])
    if config.validation.patience and not any(budget.validation_studies_per_site):
        raise ConfigError(
            "validation.patience: expected VALIDATE studies at one site at least, found none: draw some with "
            "cxr-preprocess --validate N, or leave patience out"
        ).agreed()
    return budget


def _read_counts(answer: list[float]) -> tuple[int, int]:
    """Return a rank's numbers of training studies, one at least, and of validation studies."""
    train, validate = answer
    return int(check_number(train, 1, MAX_STUDIES)), int(check_number(validate, 0, MAX_STUDIES))


def find_twins(file: StudyFile, job: Job) -> list[list[str]]:
    """Find sites whose study files hold the same images, whatever their names, labels and order.

    What a rank sends is a hash of its images' digests, keyed by random numbers of all ranks: it tells nothing but
    whether two are equal, and cannot be recognised in another run.

    Collective: every rank. Blocking.

    Returns:
        The names of the sites of each such group, in the config's order.
    """
    topology = job.topology
    if topology.num_sites == 1:
        return []
    key = job.allgather(_as_tensor(secrets.token_bytes(DIGEST_BYTES)), "data.nonce")
    content = b"".join(sorted(digest.tobytes() for digest in file.digests))
    tag = hmac.digest(key.contiguous().numpy().tobytes(), content, "sha256")
    tags = job.allgather(_as_tensor(tag), "data.tag")
    sites: dict[bytes, list[str]] = {}
    for site, name in enumerate(topology.site_names):
        sites.setdefault(bytes(tags[topology.ranks_at(site)[0]].tolist()), []).append(name)
    return [names for names in sites.values() if len(names) > 1]


def _as_tensor(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def check_shared_weights(plan: SharingPlan, model: nn.Module, job: Job, step: int, is_common: bool | None) -> None:
    """Raise where sites resume from different shared weights; between averages they may. Collective: all.

    Args:
        is_common: what the checkpoint says of them; None: it is of an earlier version.
    """
    is_common = step % plan.every == 0 if is_common is None else is_common
    digest = shared_digest(plan, model) if is_common else "each site's own"
    check_contract(job, {f"shared weights after {step} steps": digest})
