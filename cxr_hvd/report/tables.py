"""What a comparison of set-ups says, as tables: one form for the page, for Markdown and for a terminal.

Owns the choice of rows and columns and how a number is written. What is undefined says why in its own words; it is
never a number. Pure. Names and notes are text of others: they are escaped where they are laid out.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cxr_hvd.report.format import (
    NOT_MEASURED,
    UNDEFINED,
    Cell,
    Table,
    as_bytes,
    as_count,
    as_difference,
    as_percent,
    as_points,
    as_score,
    estimate,
    is_number,
    p_of,
    plain,
    shown,
)
from cxr_hvd.stats.metrics import FREQUENT

Comparison = Mapping[str, Any]

MAIN = ("A", "B", "C", "D")
BOTH = "with both classes"


def overview_rows(comparison: Comparison) -> Table:
    """Every set-up on every test set: AUROC, accuracies, and what they are to be held against.

    A row each for the labels with both classes and for the frequent ones; one row where these are the same.
    """
    columns = ("test set", "set-up", "mean over", "macro AUROC", "accuracy at 0.5", "accuracy at chosen threshold")
    others = ("all-negative accuracy", "average precision", "Brier score", "sensitivity at 90% specificity")
    rows = [
        (
            Cell(shown(result["site"])),
            Cell(shown(result["experiment"])),
            Cell(said),
            estimate(means["macro_auroc"], as_score),
            estimate(means["mean_accuracy"], as_percent),
            estimate(means["mean_accuracy_at_threshold"], as_percent),
            plain(means["mean_all_negative_accuracy"], as_percent),
            estimate(means["macro_average_precision"], as_score),
            estimate(means["mean_brier"], as_score),
            estimate(means["mean_sensitivity"], as_percent),
        )
        for result in by_site(comparison)
        for said, means in label_sets(result)
    ]
    return Table("Every set-up on every test set", columns + others, tuple(rows), 3, True)


def label_sets(found: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the sets of labels that there are means over, each with its means: two, or one if they are alike."""
    both, frequent = found["mean_over"], found["frequent"]["mean_over"]
    if both is None or frequent is None:  # in a mean of sites
        return [(f"each site's labels {BOTH}", found), (f"each site's labels {FREQUENT}", found["frequent"])]
    if both == frequent:
        return [(f"{_num_labels(both)}, all {FREQUENT}" if both else f"{_num_labels(both)} {BOTH}", found)]
    return [(f"{_num_labels(both)} {BOTH}", found), (f"{_num_labels(frequent)} {FREQUENT}", found["frequent"])]


def label_set_rows(comparison: Comparison) -> Table:
    """Which labels the means on a test set are over."""
    firsts = {one["site"]: one for one in reversed(comparison["results"])}
    rows = [
        (
            Cell(shown(site)),
            *(
                Cell(", ".join(map(shown, labels))) if labels else Cell("", "none")
                for labels in (firsts[site]["mean_over"], firsts[site]["frequent"]["mean_over"])
            ),
        )
        for site in site_names(comparison)
    ]
    columns = ("test set", f"labels {BOTH}", f"of these, {FREQUENT}")
    return Table("Labels that means are over", columns, tuple(rows), len(columns))


def difference_rows(comparison: Comparison, is_whole: bool = False) -> Table:
    """Paired differences between two set-ups on the same studies and seeds: the main ones, or all."""
    differences = comparison["differences"] if is_whole else main_differences(comparison)
    places = dict.fromkeys((one["site"], one["split"]) for one in differences)
    bootstrap = "macro_auroc_bootstrap"
    has_both = is_whole and all(bootstrap in each for one in differences for each in (one, one["frequent"]))
    rows = [
        (
            Cell(said_place(one["site"], one["split"])),
            Cell(said_pair(one)),
            Cell(said),
            estimate(means["macro_auroc"], as_difference),
            p_of(means["macro_auroc"]),
            *((estimate(means[bootstrap], as_difference), p_of(means[bootstrap])) if has_both else ()),
            estimate(means["mean_accuracy"], as_points),
            p_of(means["mean_accuracy"]),
        )
        for place in places
        for one in differences
        if (one["site"], one["split"]) == place
        for said, means in label_sets(one)
    ]
    columns = (
        *("studies", "difference", "mean over", "macro AUROC", "p, AUROC"),
        *(("the same by bootstrap", "p by bootstrap") if has_both else ()),
        *("accuracy, points", "p, accuracy"),
    )
    return Table("Paired differences between set-ups", columns, tuple(rows), 3, True)


def main_differences(comparison: Comparison) -> list[Mapping[str, Any]]:
    """Return the differences on test studies among A to D, and of each variant to the one that it varies.

    All on test studies where there are none of these; those on other studies where there are none at all on these.
    """
    parent = {one["name"]: one["experiment"] for one in comparison["experiments"]}
    splits = {one["split"] for one in comparison["differences"]}
    split = "test" if "test" in splits else min(splits, key=str, default=None)
    found = [one for one in comparison["differences"] if one["split"] == split]
    return [one for one in found if _is_main(one["a"], one["b"], parent)] or found


def policy_rows(comparison: Comparison, names: Sequence[str]) -> Table:
    """What an institution may use that took no part in training, of these set-ups."""
    rows = [
        (
            Cell(shown(one["site"])),
            Cell(shown(one["experiment"])),
            Cell(shown(one["policy"])),
            estimate(one["macro_auroc"], as_score),
            estimate(one["mean_accuracy"], as_percent),
        )
        for site in institutions(comparison)
        for one in comparison["policies"]
        if one["site"] == site and one["experiment"] in names
    ]
    columns = ("test set", "set-up", "network used", "macro AUROC", "accuracy at 0.5")
    return Table("Networks that an institution may use on its own studies", columns, tuple(rows), 3, True)


def matrix_rows(comparison: Comparison) -> Table:
    """Macro AUROC of every network on every test set."""
    sites = institutions(comparison)
    found = {(one["experiment"], one["network"], one["site"]): one["macro_auroc"] for one in comparison["matrix"]}
    networks = dict.fromkeys((experiment, network) for experiment, network, _ in found)
    rows = [
        (
            Cell(shown(experiment)),
            Cell(shown(network)),
            *(_optional(found.get((experiment, network, site)), as_score) for site in sites),
        )
        for experiment, network in networks
    ]
    columns = ("set-up", "network", *(f"on {shown(site)}" for site in sites))
    return Table("Macro AUROC of every network on every test set", columns, tuple(rows), 2, True)


def exchange_rows(comparison: Comparison) -> Table:
    """What each set-up hands over, and the macro AUROC that it reaches."""
    sites = site_names(comparison)
    found = {(one["experiment"], one["site"]): one["macro_auroc"] for one in comparison["results"]}
    columns = ("set-up", "private", "BatchNorm statistics", "bytes an exchange", "bytes a run")
    rows = [
        (
            Cell(shown(one["name"])),
            Cell(shown(one["private_said"])),
            Cell(shown(one["batchnorm"])),
            Cell(as_bytes(one["bytes_per_exchange"])),
            Cell(as_bytes(one["bytes_per_run"])),
            *(_optional(found.get((one["name"], site)), as_score) for site in sites),
        )
        for one in sorted(comparison["experiments"], key=lambda one: _rank(one["bytes_per_run"]))
    ]
    reached = tuple(f"macro AUROC, {shown(site)}" for site in sites)
    return Table("What one rank hands over, and the AUROC that is reached", columns + reached, tuple(rows), 3)


def label_rows(comparison: Comparison, site: str, names: Sequence[str]) -> Table:
    """AUROC of every label on one test set, set-up beside set-up."""
    results = {one["experiment"]: one for one in comparison["results"] if one["site"] == site}
    names = [name for name in names if name in results]
    labels = {name: {one["label"]: one for one in results[name]["labels"]} for name in names}
    rows = []
    for label in dict.fromkeys(label for name in names for label in labels[name]):
        first = next(labels[name][label] for name in names if label in labels[name])
        rows.append(
            (
                Cell(shown(label)),
                Cell(as_count(first["num_studies"])),
                Cell(as_count(first["num_present"])),
                *(_label_auroc(labels[name].get(label)) for name in names),
            )
        )
    columns = ("label", "studies", "present", *(f"AUROC, {shown(name)}" for name in names))
    return Table(f"AUROC of every label on the test studies of {shown(site)}", columns, tuple(rows))


def site_names(comparison: Comparison) -> list[str]:
    """Return the sites whose test studies were judged, in the comparison's order."""
    judged = dict.fromkeys(one["site"] for one in comparison["results"])
    ordered = [site["name"] for site in comparison["sites"] if site["name"] in judged]
    return [*ordered, *(site for site in judged if site not in ordered)]


def institutions(comparison: Comparison) -> list[str]:
    """Return the sites on whose studies networks were tried: those that trained, then those that took no part."""
    tried = (one["site"] for rows in (comparison["matrix"], comparison["policies"]) for one in rows)
    return list(dict.fromkeys([*site_names(comparison), *tried]))


def chosen(comparison: Comparison) -> list[str]:
    """Return the set-ups that are shown in detail: all where they are few, else A to D, else the first."""
    names = [one["name"] for one in comparison["experiments"]]
    main = [name for name in names if name in MAIN]
    return names if len(names) <= len(MAIN) else main or names[: len(MAIN)]


def by_site(comparison: Comparison) -> list[Mapping[str, Any]]:
    """Return the results, test set by test set."""
    return [one for site in site_names(comparison) for one in comparison["results"] if one["site"] == site]


def said_pair(difference: Mapping[str, Any]) -> str:
    """Say which two set-ups a difference is between."""
    return f"{shown(difference['a'])} − {shown(difference['b'])}"


def said_place(site: object, split: object) -> str:
    """Say on which studies a difference was measured."""
    return f"{shown(site)}, {shown(split)}"


def _is_main(a: object, b: object, parent: Mapping[str, str]) -> bool:
    of_study = a in MAIN and b in MAIN
    return of_study or (a not in MAIN and parent.get(str(a)) == b) or (b not in MAIN and parent.get(str(b)) == a)


def _optional(found: Mapping[str, Any] | None, write: Callable[[float], str]) -> Cell:
    return estimate(found, write) if found else Cell("", NOT_MEASURED)


def _label_auroc(found: Mapping[str, Any] | None) -> Cell:
    if found is None:
        return Cell("", NOT_MEASURED)
    cell = estimate(found["auroc"], as_score)
    return Cell("", shown(found["note"])) if cell.note == UNDEFINED and found["note"] else cell


def _num_labels(labels: Sequence[object]) -> str:
    return f"{len(labels)} label{'' if len(labels) == 1 else 's'}"


def _rank(value: object) -> float:
    return value if is_number(value) else math.inf
