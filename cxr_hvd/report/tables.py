"""The main tables of a comparison: one form for the page, for Markdown and for a terminal.

Owns the choice of rows and columns. What is undefined says why in its own words; it is never a number. Pure. Names
and notes are text of others: they are escaped where they are laid out.
"""

from collections.abc import Sequence
from typing import TypeVar

from cxr_hvd.experiment.comparison import Comparison, MeanEstimates, PairedMeans, SetUpDifference
from cxr_hvd.report.format import (
    Cell,
    ReportTable,
    as_bytes,
    as_count,
    as_difference,
    as_named,
    as_percent,
    as_points,
    as_score,
    estimate,
    number,
    p_value,
    shown,
    word,
)
from cxr_hvd.stats.metrics import FREQUENT
from cxr_hvd.terminal import MAX_SHOWN

MAIN = ("A", "B", "C", "D")
BOTH = "with both classes"
P_AUROC, P_ACCURACY = "AUROC, p uncorrected", "accuracy, p uncorrected"

M = TypeVar("M", MeanEstimates, PairedMeans)


def overview_rows(comparison: Comparison) -> ReportTable:
    """Every set-up on every test set: AUROC, accuracies, and what they are to be held against.

    A row each for the labels with both classes and for the frequent ones; one row where these are the same.
    """
    columns = ("test set", "set-up", "mean over", "macro AUROC", "accuracy at 0.5", "accuracy at chosen threshold")
    others = ("all-negative accuracy", "average precision", "Brier score", "sensitivity at 90% specificity")
    rows = [
        (
            word(site),
            word(result.experiment),
            Cell(labels),
            estimate(means.macro_auroc, as_score),
            estimate(means.mean_accuracy, as_percent),
            estimate(means.mean_accuracy_at_threshold, as_percent),
            number(means.mean_all_negative_accuracy, as_percent),
            estimate(means.macro_average_precision, as_score),
            estimate(means.mean_brier, as_score),
            estimate(means.mean_sensitivity, as_percent),
        )
        for site in comparison.site_names
        for result in comparison.results
        if result.site == site
        for labels, means in label_sets(result, result.frequent)
    ]
    return ReportTable("Every set-up on every test set", columns + others, tuple(rows), 3, True)


def label_sets(both: M, frequent: M) -> list[tuple[str, M]]:
    """Return the sets of labels that there are means over, each with its means: two, or one if they are alike."""
    if both.mean_over is None or frequent.mean_over is None:  # in a mean of sites
        return [(f"each site's labels {BOTH}", both), (f"each site's labels {FREQUENT}", frequent)]
    num_both, num_frequent = as_named(len(both.mean_over), "label"), as_named(len(frequent.mean_over), "label")
    if both.mean_over == frequent.mean_over:
        return [(f"{num_both}, all {FREQUENT}" if both.mean_over else f"{num_both} {BOTH}", both)]
    return [(f"{num_both} {BOTH}", both), (f"{num_frequent} {FREQUENT}", frequent)]


def label_set_rows(comparison: Comparison) -> ReportTable:
    """Which labels the means on a test set are over."""
    firsts = {result.site: result for result in reversed(comparison.results)}
    rows = [
        (
            word(site),
            *(
                Cell(", ".join(map(shown, labels))) if labels else Cell("", "none")
                for labels in (firsts[site].mean_over, firsts[site].frequent.mean_over)
            ),
        )
        for site in comparison.site_names
    ]
    columns = ("test set", f"labels {BOTH}", f"of these, {FREQUENT}")
    return ReportTable("Labels that means are over", columns, tuple(rows), len(columns))


def difference_rows(comparison: Comparison, is_whole: bool = False) -> ReportTable:
    """Paired differences between two set-ups on the same studies and seeds: the main ones, or all."""
    differences = comparison.differences if is_whole else main_differences(comparison)
    places = dict.fromkeys((pair.site, pair.split) for pair in differences)
    rows = [
        (
            Cell(place_name(*place)),
            Cell(pair_name(pair.a, pair.b)),
            Cell(labels),
            estimate(means.macro_auroc, as_difference),
            p_value(means.macro_auroc),
            estimate(means.mean_accuracy, as_points),
            p_value(means.mean_accuracy),
        )
        for place in places
        for pair in differences
        if (pair.site, pair.split) == place
        for labels, means in label_sets(pair, pair.frequent)
    ]
    columns = ("studies", "difference", "mean over", "macro AUROC", P_AUROC, "accuracy, points", P_ACCURACY)
    return ReportTable("Paired differences between set-ups", columns, tuple(rows), 3, True)


def main_differences(comparison: Comparison) -> Sequence[SetUpDifference]:
    """Return the differences on test studies among A to D, and of each variant to the one that it varies.

    All on test studies where there are none of these; those on other studies where there are none at all on these.
    """
    parent = {setup.name: setup.experiment for setup in comparison.experiments}
    splits = {pair.split for pair in comparison.differences}
    split = "test" if "test" in splits else min(splits, default=None)
    pairs = [pair for pair in comparison.differences if pair.split == split]
    return [pair for pair in pairs if _is_main(pair.a, pair.b, parent)] or pairs


def policy_rows(comparison: Comparison, names: Sequence[str]) -> ReportTable:
    """What an institution may use that took no part in training, of these set-ups."""
    rows = [
        (
            word(site),
            word(policy.experiment),
            word(policy.policy),
            estimate(policy.macro_auroc, as_score),
            estimate(policy.mean_accuracy, as_percent),
        )
        for site in comparison.institutions
        for policy in comparison.policies
        if policy.site == site and policy.experiment in names
    ]
    columns = ("test set", "set-up", "network used", "macro AUROC", "accuracy at 0.5")
    return ReportTable("Networks that an institution may use on its own studies", columns, tuple(rows), 3, True)


def matrix_rows(comparison: Comparison) -> ReportTable:
    """Macro AUROC of every network on every test set."""
    sites = comparison.institutions
    aurocs = {(row.experiment, row.network, row.site): row.macro_auroc for row in comparison.matrix}
    rows = [
        (
            word(experiment),
            word(network),
            *(estimate(aurocs.get((experiment, network, site)), as_score) for site in sites),
        )
        for experiment, network in dict.fromkeys((experiment, network) for experiment, network, _ in aurocs)
    ]
    columns = ("set-up", "network", *(f"on {shown(site)}" for site in sites))
    return ReportTable("Macro AUROC of every network on every test set", columns, tuple(rows), 2, True)


def exchange_rows(comparison: Comparison) -> ReportTable:
    """What each set-up hands over, and the macro AUROC that it reaches."""
    sites = comparison.site_names
    aurocs = {(result.experiment, result.site): result.macro_auroc for result in comparison.results}
    rows = [
        (
            *map(word, (setup.name, setup.private, setup.batchnorm)),
            Cell(as_bytes(setup.bytes_per_exchange)),
            Cell(as_bytes(setup.bytes_per_run)),
            *(estimate(aurocs.get((setup.name, site)), as_score) for site in sites),
        )
        for setup in sorted(comparison.experiments, key=lambda setup: setup.bytes_per_run)
    ]
    columns = ("set-up", "private", "BatchNorm statistics", "bytes an exchange", "bytes a run")
    reached = tuple(f"macro AUROC, {shown(site)}" for site in sites)
    return ReportTable(
        "What one rank hands over, and the AUROC that is reached", columns + reached, tuple(rows), 3
    )


def label_rows(comparison: Comparison, site: str, names: Sequence[str]) -> ReportTable:
    """AUROC of every label on one test set, set-up beside set-up."""
    results = {result.experiment: result for result in comparison.results if result.site == site}
    names = [name for name in names if name in results]
    labels = {(label.label, name): label for name in names for label in results[name].labels}
    firsts = {label.label: label for label in reversed(labels.values())}
    rows = [
        (
            word(name),
            Cell(as_count(firsts[name].num_studies)),
            Cell(as_count(firsts[name].num_present)),
            *(
                estimate(label.auroc, as_score, label.note) if label else estimate(None, as_score)
                for label in (labels.get((name, setup)) for setup in names)
            ),
        )
        for name in dict.fromkeys(name for name, _ in labels)
    ]
    columns = ("label", "studies", "present", *(f"AUROC, {shown(name)}" for name in names))
    return ReportTable(f"AUROC of every label on the test studies of {shown(site)}", columns, tuple(rows))


def choose_setups(comparison: Comparison) -> list[str]:
    """Return the set-ups that are shown in detail: all where they are few, else A to D, else the first."""
    names = [setup.name for setup in comparison.experiments]
    main = [name for name in names if name in MAIN]
    return names if len(names) <= len(MAIN) else main or names[: len(MAIN)]


def pair_name(a: str, b: str, max_letters: int = MAX_SHOWN) -> str:
    """Return which two set-ups a difference is between."""
    return f"{shown(a, max_letters)} − {shown(b, max_letters)}"


def place_name(site: str, split: str) -> str:
    """Return on which studies a difference was measured."""
    return f"{shown(site)}, {shown(split)}"


def _is_main(a: str, b: str, parent: dict[str, str]) -> bool:
    of_study = a in MAIN and b in MAIN
    return of_study or (a not in MAIN and parent.get(a) == b) or (b not in MAIN and parent.get(b) == a)
