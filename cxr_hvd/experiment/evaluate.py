"""Judge a trained run: each site's own network on its own studies, by its own ranks."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from cxr_hvd.comm.answers import read_answers
from cxr_hvd.comm.communicator import Communicator, allgather_text, together
from cxr_hvd.comm.device import choose_device, set_threads
from cxr_hvd.comm.sites import Topology, bind
from cxr_hvd.config.schema import Config
from cxr_hvd.console import Console
from cxr_hvd.data.loader import threads_for
from cxr_hvd.data.studies import StudySet
from cxr_hvd.errors import StudyFileError, UsageError
from cxr_hvd.models.build import build_model
from cxr_hvd.monitor.files import JudgedSite
from cxr_hvd.stats.bootstrap import bootstrap, draw
from cxr_hvd.stats.metrics import FREQUENT, MIN_OF_CLASS, choose_thresholds, compute_metrics
from cxr_hvd.stats.sample import Sample
from cxr_hvd.stats.weighted import Auroc, Metric, columns_with, macro_auroc, mean_accuracy
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.terminal import cleaned
from cxr_hvd.training.checkpoint.checkpoint import load_judged_weights
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
) -> list[dict[str, Any]]:
    """Judge every site of a run; write each site's `results.json`.

    Several ranks are bound to their sites as in training, and a site's ranks share its studies out; one rank alone
    judges all sites that it can read. Only metrics travel between sites, never a study's score.

    Args:
        site: one site only, by one rank alone.
        which: the checkpoint to judge, `latest` or `best`.

    Collective: every rank. Blocking.

    Returns:
        One result for each site, in order of the sites' names, on every rank.
    """
    set_threads(comm)
    with together(comm, "reading its run folder"):
        names = sites_in(run)
        if site is not None and (site not in names or comm.num_ranks > 1):
            where = f"{run} has {', '.join(names)}" if comm.num_ranks == 1 else f"found {comm.num_ranks} ranks"
            raise UsageError(f"--site {site}: expected a site of the run, alone on one rank; {where}")
        ranks_per_site = {name: each.ranks for name, each in RunFolder(run, names[0]).config().sites.items()}
    if comm.num_ranks == 1:
        topologies = [Topology(0, (name,), (0,)) for name in ([site] if site else names)]
    else:
        topologies = [bind(comm, ranks_per_site)]
    results = []
    for topology in topologies:
        folder = RunFolder(run, topology.site)
        with ExitStack() as opened:
            with together(comm, "opening its site's run"):
                own = open_site(folder, topology, split, tuple(settings), which, comm, opened)
            result = judge_site(own, split, which, comm)
        with together(comm, "writing its results"):
            if topology.is_site_leader:
                folder.write_record("results.json", result)
                results.append(result)
    name_of = topologies[0].name_of
    texts = allgather_text(comm, json.dumps(results), "results", name_of)
    told = read_answers(texts, read_results, "results", name_of)
    return sorted((result for of_rank in told for result in of_rank), key=lambda each: str(each["site"]))


def read_results(text: str) -> list[dict[str, Any]]:
    """Read the results that a rank hands over.

    Raises:
        ValueError: they have not the form of what `print_results` shows.
    """
    results: list[dict[str, Any]] = json.loads(text)
    for result in results:
        judged = JudgedSite.model_validate(result)
        names = {"macro_auroc", "mean_accuracy", *(label.label for label in judged.labels)}
        missing = names - {name for name, bounds in judged.intervals.items() if not isinstance(bounds, dict)}
        frequent = judged.intervals.get("frequent")
        missing |= {"macro_auroc", "mean_accuracy"} - (frequent.keys() if isinstance(frequent, dict) else set())
        if missing:
            raise ValueError(f"no interval of {', '.join(sorted(missing))}")
    return results


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
    model = build_model(config.model.name, len(studies.label_names), config.seed)
    step = load_judged_weights(folder.checkpoints / which, model)
    model.to(choose_device(config.training.device, comm))
    return OpenSite(topology, config, file, studies, StudySet([file], Split.VALIDATE, policy), model, step)


def judge_site(own: OpenSite, split: Split, which: str, comm: Communicator) -> dict[str, Any]:
    """Return all metrics of a site's network. Collective: all ranks of the site."""
    studies, thresholds = own.studies, None
    num_threads = threads_for(own.config.loader.threads, torch.get_num_threads())
    scores_NL = predict_at_site(own.model, studies, own.config, num_threads, comm, own.topology)
    if split is not Split.VALIDATE and len(own.validation_studies):
        validation = own.validation_studies
        validated_NL = predict_at_site(own.model, validation, own.config, num_threads, comm, own.topology)
        thresholds = choose_thresholds(validated_NL, validation.targets, validation.known)
    metrics = compute_metrics(scores_NL, studies.targets, studies.known, studies.label_names, thresholds)
    patients_N = np.unique(own.file.patient_ids[own.file.indices(split)], return_inverse=True)[1]
    return {
        "site": own.topology.site,
        "experiment": own.config.experiment,
        "split": split.name.lower(),
        "checkpoint": which,
        "step": own.step,
        **metrics.as_json(),
        "intervals": intervals(Sample(studies.targets, studies.known, patients_N), scores_NL, studies.label_names),
    }


def intervals(sample: Sample, scores_NL: NDArray[np.float32], label_names: Sequence[str]) -> dict[str, Any]:
    """Return 95% intervals over patients of the means and of each label's AUROC: [low, high], or None.

    `frequent` has those of the means over the labels with at least `MIN_OF_CLASS` studies of each class; the
    others have none.
    """
    draws, frequent = draw(sample.patients_N, num_seeds=1), columns_with(sample, MIN_OF_CLASS)

    def bounds(metric: Metric) -> list[float] | None:
        found = bootstrap(metric, scores_NL[None], draws)
        return None if found.low is None or found.high is None else [found.low, found.high]

    def of_means(at_least: int) -> dict[str, list[float] | None]:
        metrics: dict[str, Metric] = {
            "macro_auroc": macro_auroc(sample, at_least),
            "mean_accuracy": mean_accuracy(sample, at_least=at_least),
        }
        return {name: bounds(metric) for name, metric in metrics.items()}

    return {
        **of_means(1),
        "frequent": of_means(MIN_OF_CLASS),
        **{
            label: bounds(Auroc(sample, (column,))) if column in frequent else None
            for column, label in enumerate(label_names)
        },
    }


def print_results(results: Sequence[dict[str, Any]], console: Console) -> None:
    """Print a table for each site: AUROC with its interval, accuracy and that of answering "absent", by label.

    Means are over the labels with both classes; and over the frequent ones, where these are fewer.
    """
    for result in results:
        title = f"{result['site']}: experiment {result['experiment']}, step {result['step']}, {result['split']}"
        table = Table(title=f"{title}, {result['num_studies']} studies", title_justify="left")
        table.add_column("label")
        for heading in ("studies", "present", "AUROC", "95%", "accuracy", "all-negative"):
            table.add_column(heading, justify="right")
        for label in (each for each in result["labels"] if each["num_studies"]):
            table.add_row(
                label["label"],
                str(label["num_studies"]),
                str(label["num_present"]),
                _said(label["auroc"], ".3f"),
                _range(result["intervals"][label["label"]], ".2f"),
                _said(label["accuracy"], ".1%"),
                _said(label["all_negative_accuracy"], ".1%"),
                style="" if label["auroc"] is not None else "dim",
            )
        table.add_section()
        intervals = result["intervals"]
        sets = [("with both classes", result, intervals)]
        if result["frequent"]["mean_over"] != result["mean_over"]:
            sets.append((FREQUENT, result["frequent"], intervals["frequent"]))
        for said, means, bounds in sets:
            table.add_row(
                f"mean over {_num_labels(means['mean_over'])} {said}",
                "",
                "",
                _said(means["macro_auroc"], ".3f"),
                _range(bounds["macro_auroc"], ".2f"),
                _said(means["mean_accuracy"], ".1%"),
                _said(means["mean_all_negative_accuracy"], ".1%"),
                style="bold",
            )
        captions = []
        if len(sets) > 1:
            captions.append(f"no interval for labels with fewer than {MIN_OF_CLASS} present or absent studies")
        if result["mean_accuracy_at_threshold"] is not None:
            chosen = _said(result["mean_accuracy_at_threshold"], ".1%")
            captions.append(f"accuracy at thresholds chosen on VALIDATE studies: {chosen}")
        unknown = [label["label"] for label in result["labels"] if not label["num_studies"]]
        if unknown:
            captions.append(f"known in no study here: {', '.join(unknown)}")
        if captions:
            table.caption = Text("\n".join(map(cleaned, captions)))
            table.caption_justify = "left"
        console.print(table)


def _num_labels(labels: Sequence[str]) -> str:
    return f"{len(labels)} label{'' if len(labels) == 1 else 's'}"


def _said(value: float | None, style: str) -> str:
    return "undefined" if value is None else format(value, style)


def _range(bounds: Sequence[float] | None, style: str) -> str:
    return "" if bounds is None else f"{bounds[0]:{style}} to {bounds[1]:{style}}"
