"""How long all ranks train: steps of an epoch and of a run, from the sizes of the sites. Needs no torch."""

from collections.abc import Sequence

from cxr_hvd.config.schema import Config
from cxr_hvd.errors import CxrHvdError
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.training.records import Budget


def num_steps_before_launch(config: Config) -> int | None:
    """Return the steps of a run where config and the study files that are here tell them, else None."""
    try:
        sizes = []
        for site in config.sites.values():
            with StudyFile(site.data) as file:
                sizes.append(len(file.indices(Split.TRAIN)))
    except CxrHvdError:
        asked = config.training.steps_per_epoch
        return _num_steps(config, asked) if isinstance(asked, int) else config.training.max_steps
    merged = [sum(sizes)] * len(sizes)
    return budget_of(config, merged if config.is_merged else sizes).num_steps if all(sizes) else None


def budget_of(config: Config, studies_per_site: list[int], validation_studies: Sequence[int] = ()) -> Budget:
    """Return how long a config trains on sites of these sizes. Pure; merged sites each count all studies."""
    ranks = [site.ranks for site in config.sites.values()]
    sharers = [sum(ranks) if config.is_merged else num_ranks for num_ranks in ranks]
    studies_per_step = [config.training.batch_size * num_ranks for num_ranks in sharers]
    passes = [-(-studies // taken) for studies, taken in zip(studies_per_site, studies_per_step, strict=True)]
    asked = config.training.steps_per_epoch
    steps_per_epoch = asked if isinstance(asked, int) else max(passes) if asked == "largest" else min(passes)
    return Budget(
        num_steps=_num_steps(config, steps_per_epoch),
        steps_per_epoch=steps_per_epoch,
        studies_per_site=studies_per_site,
        passes_per_epoch=[
            steps_per_epoch * taken / studies
            for taken, studies in zip(studies_per_step, studies_per_site, strict=True)
        ],
        validation_studies_per_site=list(validation_studies),
    )


def _num_steps(config: Config, steps_per_epoch: int) -> int:
    num_steps = config.training.epochs * steps_per_epoch
    return min(num_steps, config.training.max_steps or num_steps)
