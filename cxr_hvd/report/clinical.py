"""The tables that a clinical journal asks for: operating points, recalibration, subgroups, and the flow. Pure."""

from collections.abc import Sequence

from cxr_hvd.experiment.comparison import Comparison, JudgedSetUp, SiteDescription
from cxr_hvd.report.format import (
    NOT_KNOWN,
    Cell,
    ReportTable,
    as_count,
    as_percent,
    as_score,
    as_signed,
    estimate,
    number,
    shown,
    word,
)

SPLITS = ("train", "validate", "test")
Counts = tuple[int | None, int | None, int | None]
"""Patients, studies and images."""


def operating_rows(comparison: Comparison, site: str, names: Sequence[str]) -> ReportTable:
    """Return sensitivity, specificity and predictive values of every label at the chosen threshold."""
    rows = []
    for result in results_of(comparison, site, names):
        for label in result.labels:
            if (point := label.at_threshold) is None or not label.num_studies:
                continue
            rates = (
                point.sensitivity,
                point.specificity,
                point.positive_predictive_value,
                point.negative_predictive_value,
            )
            rows.append(
                (
                    word(result.experiment),
                    word(label.label),
                    Cell(as_count(label.num_present)),
                    Cell(as_count(label.num_studies - label.num_present)),
                    _thresholds(point.thresholds),
                    *(estimate(rate, as_percent) for rate in rates),
                )
            )
    columns = ("set-up", "label", "with it", "without it", "threshold", "sensitivity", "specificity")
    others = ("positive predictive value", "negative predictive value")
    title = f"At the chosen thresholds, on the test studies of {shown(site)}"
    return ReportTable(title, columns + others, tuple(rows), 2, True)


def calibration_rows(comparison: Comparison, site: str, names: Sequence[str]) -> ReportTable:
    """Return calibration intercept, slope and error of every label."""
    rows = [
        (
            word(result.experiment),
            word(label.label),
            estimate(label.calibration_intercept, as_signed),
            estimate(label.calibration_slope, as_signed),
            estimate(label.expected_calibration_error, as_score, label.note),
        )
        for result in results_of(comparison, site, names)
        for label in result.labels
        if label.calibration_slope is not None and label.num_studies
    ]
    columns = ("set-up", "label", "calibration intercept", "calibration slope", "calibration error")
    return ReportTable(f"Calibration on the test studies of {shown(site)}", columns, tuple(rows), 2, True)


def subgroup_rows(comparison: Comparison, site: str, names: Sequence[str]) -> ReportTable:
    """Return the macro AUROC in each subgroup, beside that of all studies over the same labels."""
    rows = [
        (
            Cell(f"{shown(part.kind)}: {shown(part.name)}"),
            word(result.experiment),
            Cell(as_count(part.num_studies)),
            Cell(as_count(part.num_patients)),
            Cell(as_count(len(part.labels))),
            estimate(part.macro_auroc, as_score),
            number(part.all_studies_auroc, as_score, "no label"),
        )
        for kind_and_name in subgroup_names(comparison, site)
        for result in results_of(comparison, site, names)
        for part in result.subgroups
        if (part.kind, part.name) == kind_and_name
    ]
    columns = ("subgroup", "set-up", "studies", "patients", "labels", "macro AUROC", "same labels, all studies")
    return ReportTable(f"Subgroups of the test studies of {shown(site)}", columns, tuple(rows), 2, True)


def subgroup_label_rows(comparison: Comparison, site: str, names: Sequence[str]) -> ReportTable:
    """Return the AUROC of each label in each subgroup that has enough patients for it."""
    rows = [
        (
            Cell(f"{shown(part.kind)}: {shown(part.name)}"),
            word(result.experiment),
            word(label.label),
            Cell(as_count(label.num_studies)),
            Cell(as_count(label.num_present)),
            estimate(label.auroc, as_score),
        )
        for kind_and_name in subgroup_names(comparison, site)
        for result in results_of(comparison, site, names)
        for part in result.subgroups
        if (part.kind, part.name) == kind_and_name
        for label in part.labels
    ]
    columns = ("subgroup", "set-up", "label", "studies", "present", "AUROC")
    return ReportTable(f"Labels in subgroups of {shown(site)}", columns, tuple(rows), 3, True)


def flow_rows(site: SiteDescription) -> ReportTable:
    """Return how many patients, studies and images there are at each step from the source to the splits."""
    flow, steps = site.flow, list[tuple[str, Counts]]()
    if flow is not None:
        labelled, drawn = flow.labelled, flow.drawn
        steps.append(("studies in the source's tables", (None, labelled.studies + flow.unlabelled_studies, None)))
        steps.append(("left out: no labels", (None, flow.unlabelled_studies, None)))
        steps.append(("with labels", (labelled.patients, labelled.studies, labelled.images)))
        not_drawn = (
            labelled.patients - drawn.patients,
            labelled.studies - drawn.studies,
            labelled.images - drawn.images,
        )
        steps.append(("left out: not drawn", not_drawn))
        steps.append(("drawn", (drawn.patients, drawn.studies, drawn.images)))
        for reason, count in flow.unusable_images.items():
            steps.append((f"left out: image is {reason}", (None, None, count)))
        steps.append(("left out: no usable image", (None, flow.emptied_studies, None)))
    totals = [sum(counts.values()) for counts in (site.num_patients, site.num_studies, site.num_images)]
    if site.num_studies:
        steps.append(("in the study file", (totals[0], totals[1], totals[2])))
    for split in SPLITS:
        if split in site.num_studies:
            counts = tuple(of.get(split) for of in (site.num_patients, site.num_studies, site.num_images))
            steps.append((f"of these, to {split}", (counts[0], counts[1], counts[2])))
    rows = [
        (word(step), *(Cell("") if count is None else Cell(as_count(count)) for count in counts))
        for step, counts in steps
    ]
    columns = ("step", "patients", "studies", "images")
    return ReportTable(f"From the source to the splits of {shown(site.name)}", columns, tuple(rows))


def group_rows(site: SiteDescription) -> ReportTable:
    """Return how many studies of each view, sex and age a site holds, in each split."""
    rows = [
        (word(kind), word(name), *(number(counts.get(split, 0), as_count, NOT_KNOWN) for split in SPLITS))
        for kind, groups in site.groups.items()
        for name, counts in groups.items()
    ]
    title = f"Views, sexes and ages of {shown(site.name)}"
    return ReportTable(title, ("by", "group", *SPLITS), tuple(rows), 2, True)


def has_thresholds(comparison: Comparison) -> bool:
    """Return whether the comparison judges chosen thresholds: those of earlier versions do not."""
    return any(label.at_threshold for result in comparison.results for label in result.labels)


def subgroup_names(comparison: Comparison, site: str) -> list[tuple[str, str]]:
    """Return kind and name of each subgroup on a site's test studies, in order."""
    parts = (part for result in comparison.results if result.site == site for part in result.subgroups)
    return list(dict.fromkeys((part.kind, part.name) for part in parts))


def results_of(comparison: Comparison, site: str, names: Sequence[str]) -> list[JudgedSetUp]:
    """Return the results of these set-ups on a site's test studies."""
    return [result for result in comparison.results if result.site == site and result.experiment in names]


def _thresholds(by_seed: Sequence[float | None]) -> Cell:
    """Return the threshold, or the lowest and the highest of several seeds."""
    known = [threshold for threshold in by_seed if threshold is not None]
    if not known:
        return Cell("", "none")
    return Cell(" to ".join(dict.fromkeys((as_score(min(known)), as_score(max(known))))))
