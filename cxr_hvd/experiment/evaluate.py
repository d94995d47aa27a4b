"""Judge a trained run: each site's own network on its own studies, by its own ranks."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cxr_hvd.comm.answers import read_answers
from cxr_hvd.comm.communicator import Communicator, allgather_text, together
from cxr_hvd.comm.device import choose_device, set_threads
from cxr_hvd.comm.job import Job
from cxr_hvd.comm.sites import Topology, bind
from cxr_hvd.config.schema import Config
from cxr_hvd.data.loader import batching_of_run
from cxr_hvd.data.studies import StudySet
from cxr_hvd.errors import StudyFileError, UsageError
from cxr_hvd.models.build import build_model
from cxr_hvd.monitor.results_file import RESULTS, Bounds, MeanIntervals, ResultIntervals, SiteResults
from cxr_hvd.stats.bootstrap import bootstrap, draw
from cxr_hvd.stats.metrics import MIN_OF_CLASS, choose_thresholds, compute_metrics
from cxr_hvd.stats.sample import Sample
from cxr_hvd.stats.weighted import Auroc, Metric, columns_with, macro_auroc, mean_accuracy
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.training.checkpoint.snapshot import load_judged_weights
from cxr_hvd.training.run_folder import LATEST, RunFolder, sites_in
from cxr_hvd.training.validation import predict_at_site


@dataclass(frozen=True)
class OpenSite:
    """A site whose network is to be judged.

    Attributes:
        topology: which ranks share the work.
        file: its study file.
        studies: those to be judged on; `validation_studies` are for choosing thresholds, and may be none.
        model: its network, after `step` steps.
    """

    topology: Topology
    config: Config
    file: StudyFile
    studies: StudySet
    validation_studies: StudySet
    model: torch.nn.Module
    step: int


def evaluate(
    run: Path,
    comm: Communicator,
    split: Split,
    settings: Sequence[str] = (),
    site: str | None = None,
    which: str = LATEST,
) -> list[SiteResults]:
    """Judge every site of a run; write each site's `results.json`.

    Several ranks are bound to their sites as in training, and a site's ranks share its studies out; one rank alone
    judges all sites that it can read. Only metrics travel between sites, never a study's score.

    Args:
        site: one site only, by one rank alone.
        which: the checkpoint to judge, `latest` or `best`.

    Collective: every rank. Blocking.

    Returns:
        The results of each site, in order of the sites' names, on every rank.
    """
    set_threads(comm)
    with together(comm, "reading its run folder"):
        names = sites_in(run)
        if site is not None and (site not in names or comm.num_ranks > 1):
            where = f"{run} has {', '.join(names)}" if comm.num_ranks == 1 else f"found {comm.num_ranks} ranks"
            raise UsageError(f"--site {site}: expected a site of the run, alone on one rank; {where}")
        sites = RunFolder(run, names[0]).config().sites
        ranks_per_site = {name: section.ranks for name, section in sites.items()}
    if comm.num_ranks == 1:
        topologies = [Topology(0, (name,), (0,)) for name in ([site] if site else names)]
    else:
        topologies = [bind(comm, ranks_per_site)]
    results: list[SiteResults] = []
    for topology in topologies:
        folder = RunFolder(run, topology.site)
        with ExitStack() as opened:
            with together(comm, "opening its site's run"):
                site_run = open_site(folder, topology, split, tuple(settings), which, comm, opened)
            result = judge_site(site_run, split, which, comm)
        with together(comm, "writing its results"):
            if topology.is_site_leader:
                folder.write_record("results.json", result.model_dump(mode="json"))
                results.append(result)
    name_of = topologies[0].name_of
    texts = allgather_text(comm, RESULTS.dump_json(tuple(results)).decode(), "results", name_of)
    answers = read_answers(texts, RESULTS.validate_json, "results", name_of)
    return sorted((result for answer in answers for result in answer), key=lambda result: result.site)


def open_site(
    folder: RunFolder,
    topology: Topology,
    split: Split,
    settings: tuple[str, ...],
    which: str,
    comm: Communicator,
    opened: ExitStack,
) -> OpenSite:
    """Open a site's study file and load its network; `opened` closes the file. Not collective."""
    config = folder.config(settings)
    file = opened.enter_context(StudyFile(config.sites[topology.site].data))
    policy = config.labels.policy(file.header.label_names)
    studies = StudySet([file], split, policy)
    if not len(studies):
        raise StudyFileError(
            f"{file.path}: expected {split.name} studies, found none; draw some with --{split.name.lower()} N"
        )
    model = build_model(config.model, len(studies.label_names), config.seed)
    step = load_judged_weights(folder.checkpoints / which, model)
    model.to(choose_device(config.training.device, comm))
    return OpenSite(topology, config, file, studies, StudySet([file], Split.VALIDATE, policy), model, step)


def judge_site(site_run: OpenSite, split: Split, which: str, comm: Communicator) -> SiteResults:
    """Return all metrics of a site's network. Collective: all ranks of the site."""
    config, topology, studies, thresholds = site_run.config, site_run.topology, site_run.studies, None
    batching, job = batching_of_run(config, torch.get_num_threads()), Job(comm, topology)
    scores_NL = predict_at_site(site_run.model, studies, batching, job)
    if split is not Split.VALIDATE and len(site_run.validation_studies):
        validation = site_run.validation_studies
        validated_NL = predict_at_site(site_run.model, validation, batching, job)
        thresholds = choose_thresholds(validated_NL, validation.targets, validation.known)
    metrics = compute_metrics(scores_NL, studies.targets, studies.known, studies.label_names, thresholds)
    patients_N = np.unique(site_run.file.patient_ids[site_run.file.indices(split)], return_inverse=True)[1]
    sample = Sample(studies.targets, studies.known, patients_N)
    return SiteResults(
        site=topology.site,
        experiment=config.experiment,
        split=split.name.lower(),
        checkpoint=which,
        step=site_run.step,
        **vars(metrics),
        intervals=compute_intervals(sample, scores_NL, studies.label_names),
    )


def compute_intervals(
    sample: Sample, scores_NL: NDArray[np.float32], label_names: Sequence[str]
) -> ResultIntervals:
    """Return 95% intervals over patients of the means, and of the AUROC of each label.

    Labels with fewer than `MIN_OF_CLASS` studies of a class have none.
    """
    draws, frequent = draw(sample.patients_N, num_seeds=1), columns_with(sample, MIN_OF_CLASS)

    def bounds(metric: Metric) -> Bounds | None:
        interval = bootstrap(metric, scores_NL[None], draws)
        return None if interval.low is None or interval.high is None else (interval.low, interval.high)

    def of_means(at_least: int) -> MeanIntervals:
        return MeanIntervals(
            macro_auroc=bounds(macro_auroc(sample, at_least)),
            mean_accuracy=bounds(mean_accuracy(sample, at_least=at_least)),
        )

    labels = {
        label: bounds(Auroc(sample, (column,))) if column in frequent else None
        for column, label in enumerate(label_names)
    }
    means = {**vars(of_means(1)), "frequent": of_means(MIN_OF_CLASS)}
    return ResultIntervals.model_validate({**labels, **means})
