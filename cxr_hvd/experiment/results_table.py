"""The results of sites as tables for a terminal."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from cxr_hvd.console import Console
from cxr_hvd.monitor.results_file import Bounds, MeanIntervals, MeansResult, SiteResults
from cxr_hvd.stats.metrics import FREQUENT, MIN_OF_CLASS
from cxr_hvd.terminal import cleaned


def print_results(results: Sequence[SiteResults], console: Console) -> None:
    """Print a table for each site: AUROC with its interval, accuracy and that of answering "absent", by label.

    Means are over the labels with both classes; and over the frequent ones, where these are fewer.
    """
    for result in results:
        console.print(_table(result))


def _table(result: SiteResults) -> Table:
    title = f"{result.site}: experiment {result.experiment}, step {result.step}, {result.split}"
    table = Table(title=f"{title}, {result.num_studies} studies", title_justify="left")
    table.add_column("label")
    for heading in ("studies", "present", "AUROC", "95%", "accuracy", "all-negative"):
        table.add_column(heading, justify="right")
    for label in result.labels:
        if label.num_studies:
            table.add_row(
                label.label,
                str(label.num_studies),
                str(label.num_present),
                _number(label.auroc, ".3f"),
                _range(result.intervals.labels[label.label]),
                _number(label.accuracy, ".1%"),
                _number(label.all_negative_accuracy, ".1%"),
                style="" if label.auroc is not None else "dim",
            )
    table.add_section()
    sets: list[tuple[str, MeansResult, MeanIntervals]] = [("with both classes", result, result.intervals)]
    if result.frequent.mean_over != result.mean_over:
        sets.append((FREQUENT, result.frequent, result.intervals.frequent))
    for which, means, intervals in sets:
        num_labels = len(means.mean_over)
        table.add_row(
            f"mean over {num_labels} label{'' if num_labels == 1 else 's'} {which}",
            "",
            "",
            _number(means.macro_auroc, ".3f"),
            _range(intervals.macro_auroc),
            _number(means.mean_accuracy, ".1%"),
            _number(means.mean_all_negative_accuracy, ".1%"),
            style="bold",
        )
    captions = []
    if len(sets) > 1:
        captions.append(f"no interval for labels with fewer than {MIN_OF_CLASS} present or absent studies")
    if result.mean_accuracy_at_threshold is not None:
        captions.append(
            f"accuracy at thresholds chosen on VALIDATE studies: {result.mean_accuracy_at_threshold:.1%}"
        )
    unknown = [label.label for label in result.labels if not label.num_studies]
    if unknown:
        captions.append(f"known in no study here: {', '.join(unknown)}")
    if captions:
        table.caption = Text("\n".join(map(cleaned, captions)))
        table.caption_justify = "left"
    return table


def _number(value: float | None, style: str) -> str:
    return "undefined" if value is None else format(value, style)


def _range(bounds: Bounds | None) -> str:
    return "" if bounds is None else f"{bounds[0]:.2f} to {bounds[1]:.2f}"
