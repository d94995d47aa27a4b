"""The networks that are judged across sites: a site's part of each run, and which of them are judged where.

A network that all sites have alike is judged everywhere, a site's own one at home. Elsewhere it is judged only
where its run's config says `sharing.evaluate_private`: then its private tensors travel.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cxr_hvd import __version__
from cxr_hvd.comm.answers import read_answers
from cxr_hvd.comm.contract import flat_items
from cxr_hvd.comm.job import Job
from cxr_hvd.config.schema import Config, config_digest
from cxr_hvd.errors import UsageError
from cxr_hvd.experiment.across.record import NetworkName
from cxr_hvd.experiment.scored_runs import name_of
from cxr_hvd.experiment.scores import COMMON
from cxr_hvd.models.build import build_model
from cxr_hvd.partial.blocks import tensor_specs
from cxr_hvd.partial.model_plan import shared_digest
from cxr_hvd.partial.plan import Scope
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.training.checkpoint.snapshot import load_judged_weights
from cxr_hvd.training.run_folder import RunFolder
from cxr_hvd.training.sharing import plan_sharing


@dataclass(frozen=True)
class SiteRun:
    """One site's part of a run.

    Attributes:
        setup: name of the set-up that the run is of.
        folder: of the site, in the run.
        private: names of the tensors that the site's network has for itself.
        shared_sha256: of the tensors that all sites have alike.
        step: after how many steps the checkpoint was taken.
        checkpoint: its folder.
    """

    setup: str
    folder: RunFolder
    config: Config
    private: tuple[str, ...]
    shared_sha256: str
    step: int
    checkpoint: Path

    def __str__(self) -> str:
        return f"{self.setup} seed {self.config.seed}"

    @property
    def travels(self) -> bool:
        """Whether its private tensors are sent, to be judged at other sites."""
        return bool(self.private) and self.config.sharing.evaluate_private and len(self.config.sites) > 1

    @property
    def owners(self) -> list[str]:
        """Whose networks it has: each site's, or the one of all."""
        return list(self.config.sites) if self.private else [COMMON]

    def load(self, num_labels: int) -> torch.nn.Module:
        """Return the site's network."""
        model = build_model(self.config.model, num_labels, self.config.seed)
        load_judged_weights(self.checkpoint, model)
        return model


def open_site_runs(
    runs: Sequence[Path], site: str, settings: tuple[str, ...], which: str, num_labels: int
) -> list[SiteRun]:
    """Open a site's part of each run, in the order of set-ups and seeds. Not collective.

    Raises:
        CheckpointError: a run has no folder of the site here, or no checkpoint.
        UsageError: runs are not of the same sites, or of one set-up and seed.
    """
    opened = {}
    for run in runs:
        folder = RunFolder(run, site)
        config = folder.config(settings)
        model = build_model(config.model, num_labels, config.seed)
        plan = plan_sharing(config, tensor_specs(model))
        checkpoint = folder.checkpoints / which
        step = load_judged_weights(checkpoint, model)
        site_run = SiteRun(
            name_of(run), folder, config, plan.names(Scope.PRIVATE), shared_digest(plan, model), step, checkpoint
        )
        if str(site_run) in opened:
            raise UsageError(f"{run}: expected one run of each set-up and seed, found two of {site_run}")
        opened[str(site_run)] = site_run
    first = next(iter(opened.values()))
    for site_run in opened.values():
        config, wanted = site_run.config, first.config
        for what, is_same in (
            ("sites", _ranks(config) == _ranks(wanted)),
            ("label policies", config.labels == wanted.labels),
        ):
            if not is_same:
                raise UsageError(
                    f"{site_run.folder.run}: its {what} are not those of {first.folder.run}: judge them apart"
                )
    return sorted(opened.values(), key=lambda each: (each.setup, each.config.seed))


def agreed_items(site_runs: Sequence[SiteRun], file: StudyFile, which: str) -> dict[str, str]:
    """State what all ranks must have alike before they judge runs across sites."""
    items = {
        "runs": ", ".join(map(str, site_runs)),
        "label order": ", ".join(file.header.label_names),
        "checkpoint": which,
        "version of cxr_hvd": __version__,
    }
    if any(site_run.config.pixel_pipelines == "same" for site_run in site_runs):
        items["pixel pipeline (pixel_pipelines: any allows several)"] = file.header.pixels
    for site_run in site_runs:
        items |= flat_items(site_run.config.shared_part(), f"config of {site_run}")
        items[f"evaluate_private of {site_run}"] = str(site_run.config.sharing.evaluate_private)
        items[f"steps of {site_run}"] = str(site_run.step)
        items[f"shared tensors of {site_run}"] = site_run.shared_sha256
    return items


def list_networks(site_runs: Sequence[SiteRun]) -> list[NetworkName]:
    """List all networks of the runs: the same on every rank."""
    return [
        NetworkName(
            setup=site_run.setup,
            experiment=site_run.config.experiment,
            seed=site_run.config.seed,
            network=owner,
            step=site_run.step,
            config_sha256=config_digest(site_run.config),
            shared_sha256=site_run.shared_sha256,
        )
        for site_run in site_runs
        for owner in site_run.owners
    ]


def judged_at(site_runs: Sequence[SiteRun], site: str) -> list[bool]:
    """Return of each network of `list_networks` whether it is judged on a site's studies."""
    return [owner in (site, COMMON) or site_run.travels for site_run in site_runs for owner in site_run.owners]


def load_networks(site_run: SiteRun, job: Job, num_labels: int) -> Iterator[tuple[str, torch.nn.Module]]:
    """Give each network of a run that is judged at this rank's site, with its owner, one at a time.

    Private tensors are sent only where the run allows it. Collective: every rank, to the end. Blocking.
    """
    with job.together("reading its network"):
        model = site_run.load(num_labels).to(job.device)
    if not site_run.travels:
        yield job.site if site_run.private else COMMON, model
        return
    tensors = model.state_dict()
    flat = torch.cat([tensors[name].detach().float().cpu().flatten() for name in site_run.private])
    rows = job.allgather(flat, f"network.{site_run}")
    read_answers(rows, _check_finite, f"network.{site_run}", job.name_of)
    topology = job.topology
    for index, owner in enumerate(topology.site_names):
        _fill(tensors, site_run.private, rows[topology.ranks_at(index)[0]])
        yield owner, model


def _fill(tensors: dict[str, Tensor], names: Sequence[str], row: Tensor) -> None:
    parts = torch.split(row, [tensors[name].numel() for name in names])
    for name, part in zip(names, parts, strict=True):
        tensors[name].copy_(part.view(tensors[name].shape))


def _check_finite(row: Tensor) -> None:
    if not bool(torch.isfinite(row).all()):
        raise ValueError("expected finite tensors")


def _ranks(config: Config) -> dict[str, int]:
    return {name: site.ranks for name, site in config.sites.items()}
