"""Judge a trained run: each site's own network on its own studies."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from cxr_hvd.collective.comm import Communicator, gather_text, together
from cxr_hvd.errors import StudyFileError, UsageError
from cxr_hvd.study.study_file import Split, StudyFile
from cxr_hvd.training.checkpoint import load_judged_weights
from cxr_hvd.training.device import choose_device, set_threads
from cxr_hvd.training.loader import StudySet, threads_for
from cxr_hvd.training.metrics import compute_metrics
from cxr_hvd.training.model import build_model
from cxr_hvd.training.run_folder import LATEST, RunFolder, sites_in
from cxr_hvd.training.validation import predict


def evaluate(
    run: Path,
    comm: Communicator,
    split: Split,
    settings: Sequence[str] = (),
    site: str | None = None,
    which: str = LATEST,
) -> list[dict[str, Any]]:
    """Judge every site of a run, the sites dealt out over the ranks; write each site's `results.json`.

    Only metrics travel between ranks, never a study's score.

    Args:
        which: the checkpoint to judge, `latest` or `best`.

    Collective: every rank. Blocking.

    Returns:
        One result for each site, in order of the sites' names, on every rank.
    """
    set_threads(comm)
    with together(comm, "evaluating its site"):
        names = sites_in(run)
        if site is not None and site not in names:
            raise UsageError(f"{run} has no site '{site}', only {', '.join(names)}")
        own = [site] if site else names[comm.rank :: comm.num_ranks]
        results = [evaluate_site(RunFolder(run, name), name, split, tuple(settings), which, comm) for name in own]
    told = [result for text in gather_text(comm, json.dumps(results), "results") for result in json.loads(text)]
    return list({result["site"]: result for result in sorted(told, key=lambda each: each["site"])}.values())


def evaluate_site(
    folder: RunFolder, site: str, split: Split, settings: tuple[str, ...], which: str, comm: Communicator
) -> dict[str, Any]:
    """Judge one site's network on one split of its own studies, and write `results.json`. Not collective."""
    config = folder.config(settings)
    with StudyFile(config.sites[site].data) as file:
        studies = StudySet([file], split, config.labels.policy(file.header.label_names))
        if not len(studies):
            raise StudyFileError(
                f"{file.path}: expected {split.name} studies, found none; draw some with --{split.name.lower()} N"
            )
        model = build_model(config.model.name, len(studies.label_names), config.seed)
        step = load_judged_weights(folder.checkpoints / which, model)
        model.to(choose_device(config.training.device, comm))
        num_threads = threads_for(config.loader.threads, torch.get_num_threads())
        probabilities_NL = predict(model, studies, np.arange(len(studies)), config, num_threads, comm)
    metrics = compute_metrics(probabilities_NL, studies.targets, studies.known, studies.label_names)
    result = {
        "site": site,
        "experiment": config.experiment,
        "split": split.name.lower(),
        "checkpoint": which,
        "step": step,
        **metrics.as_json(),
    }
    folder.write_record("results.json", result)
    return result


def print_results(results: Sequence[dict[str, Any]], console: Console) -> None:
    """Print one table for each site: label, studies, AUROC, accuracy, and that of answering "absent" always."""
    for result in results:
        title = f"{result['site']}: experiment {result['experiment']}, step {result['step']}, {result['split']}"
        table = Table(title=f"{title}, {result['num_studies']} studies", title_justify="left")
        table.add_column("label")
        for heading in ("studies", "present", "AUROC", "accuracy", "all-negative"):
            table.add_column(heading, justify="right")
        for label in (each for each in result["labels"] if each["num_studies"]):
            table.add_row(
                label["label"],
                str(label["num_studies"]),
                str(label["num_present"]),
                _said(label["auroc"], ".3f"),
                _said(label["accuracy"], ".1%"),
                _said(label["all_negative_accuracy"], ".1%"),
                style="" if label["auroc"] is not None else "dim",
            )
        table.add_section()
        table.add_row(
            "mean over defined labels",
            "",
            "",
            _said(result["macro_auroc"], ".3f"),
            _said(result["mean_accuracy"], ".1%"),
            _said(result["mean_all_negative_accuracy"], ".1%"),
            style="bold",
        )
        unknown = [label["label"] for label in result["labels"] if not label["num_studies"]]
        if unknown:
            table.caption = f"known in no study here: {', '.join(unknown)}"
            table.caption_justify = "left"
        console.print(table)


def _said(value: float | None, style: str) -> str:
    return "undefined" if value is None else format(value, style)
