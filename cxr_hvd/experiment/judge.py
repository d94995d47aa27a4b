"""How good one set-up is on one site's test studies: all metrics, with intervals over patients and seeds."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from cxr_hvd.experiment.scored_runs import ScoredRuns
from cxr_hvd.stats.bootstrap import Draws, draw, interval_of, resampled
from cxr_hvd.stats.metrics import (
    MIN_OF_CLASS,
    LabelMeans,
    LabelMetrics,
    SplitMetrics,
    calibration_curve,
    choose_thresholds,
    compute_metrics,
    why_no_interval,
)
from cxr_hvd.stats.sample import Interval, Sample, Scores
from cxr_hvd.stats.weighted import Auroc, Metric, macro_auroc, mean_accuracy

ROC_POINTS = 101


def judge(runs: ScoredRuns, name: str, site: str, draws: Draws) -> dict[str, Any]:
    """Judge the network that a site uses in a set-up on its test studies; see `comparison` for what is in it."""
    sample, scores_SNL = runs.samples[site, "test"], runs.own_scores_SNL(name, site)
    thresholds = chosen_thresholds(runs, name, site)
    of_seeds = [
        compute_metrics(scores_NL, sample.targets_NL, sample.known_NL, runs.origin.label_names, chosen)
        for scores_NL, chosen in zip(scores_SNL, thresholds, strict=True)
    ]
    means = means_of(sample, of_seeds, thresholds, scores_SNL, draws)
    is_same = of_seeds[0].mean_over == of_seeds[0].frequent.mean_over
    frequent_of_seeds = [each.frequent for each in of_seeds]
    return {
        "experiment": name,
        "site": site,
        "network": runs.of_name[name][0].scores.origin.network_of(site),
        "num_studies": len(sample.targets_NL),
        "num_patients": len(np.unique(sample.patients_N)),
        **means,
        "frequent": means
        if is_same
        else means_of(sample, frequent_of_seeds, thresholds, scores_SNL, draws, MIN_OF_CLASS),
        "labels": [
            judge_label(column, of_seeds, sample, scores_SNL, draws)
            for column in range(len(runs.origin.label_names))
        ],
    }


def means_of(
    sample: Sample,
    of_seeds: Sequence[LabelMeans],
    thresholds: Sequence[tuple[float | None, ...]],
    scores_SNL: Scores,
    draws: Draws,
    at_least: int = 1,
) -> dict[str, Any]:
    """Return all means over the labels with at least so many present and absent studies.

    Args:
        of_seeds: the means of each seed over the same labels.
        thresholds: of each seed, one for each of all labels.
    """
    with_thresholds = [mean_accuracy(sample, chosen, at_least) for chosen in thresholds]
    return {
        "mean_over": list(of_seeds[0].mean_over),
        "macro_auroc": interval(macro_auroc(sample, at_least), scores_SNL, draws),
        "mean_accuracy": interval(mean_accuracy(sample, at_least=at_least), scores_SNL, draws),
        "mean_accuracy_at_threshold": interval(with_thresholds, scores_SNL, draws),
        "macro_average_precision": over_seeds(of_seeds, lambda each: each.macro_average_precision),
        "mean_brier": over_seeds(of_seeds, lambda each: each.mean_brier),
        "mean_sensitivity": over_seeds(of_seeds, lambda each: each.mean_sensitivity),
        "mean_all_negative_accuracy": of_seeds[0].mean_all_negative_accuracy,
    }


def judge_label(
    column: int, of_seeds: Sequence[SplitMetrics], sample: Sample, scores_SNL: Scores, draws: Draws
) -> dict[str, Any]:
    """Judge one label. With few present or absent studies its AUROC has no interval, and a note says so."""
    labels = [metrics.labels[column] for metrics in of_seeds]
    few = why_no_interval(labels[0].num_studies, labels[0].num_present)
    auroc = interval(Auroc(sample, (column,)), scores_SNL, draws.measured() if few else draws)
    if few and auroc["value"] is not None:
        auroc["note"] = few
    known_N = sample.known_NL[:, column]
    targets_N, scores_SN = sample.targets_NL[known_N, column], scores_SNL[:, known_N, column]
    fields: dict[str, Callable[[LabelMetrics], float | None]] = {
        "average_precision": lambda label: label.average_precision,
        "accuracy": lambda label: label.accuracy,
        "accuracy_at_threshold": lambda label: label.accuracy_at_threshold,
        "brier": lambda label: label.brier,
        "sensitivity": lambda label: label.sensitivity_at_specificity,
        "expected_calibration_error": lambda label: label.expected_calibration_error,
    }
    is_finite = bool(np.isfinite(scores_SN).all())
    return {
        "label": labels[0].label,
        "num_studies": labels[0].num_studies,
        "num_present": labels[0].num_present,
        "note": next((label.note for label in labels if label.note), None),
        "auroc": auroc,
        "all_negative_accuracy": labels[0].all_negative_accuracy,
        **{name: label_over_seeds(labels, of) for name, of in fields.items()},
        "roc": roc_over_seeds(scores_SN, targets_N) if labels[0].auroc is not None and is_finite else None,
        "calibration": [
            list(point) for point in calibration_curve(scores_SN.ravel(), np.tile(targets_N, len(scores_SN)))
        ]
        if len(targets_N) and is_finite
        else [],
    }


def chosen_thresholds(runs: ScoredRuns, name: str, site: str) -> list[tuple[float | None, ...]]:
    """Return for each seed the thresholds that are best on the site's own VALIDATE studies."""
    sample = runs.samples[site, "validate"]
    scores_SNL = runs.own_scores_SNL(name, site, "validate")
    return [choose_thresholds(scores_NL, sample.targets_NL, sample.known_NL) for scores_NL in scores_SNL]


def interval(metric: Metric | Sequence[Metric], scores_SNL: Scores, draws: Draws) -> dict[str, Any]:
    """Return a metric's mean over seeds, its interval and each seed's value, as plain values."""
    first = metric[0] if isinstance(metric, Sequence) else metric
    table_SB = resampled(metric, scores_SNL, draws)
    note = next((note for scores_NL in scores_SNL if (note := first.why_undefined(scores_NL))), None)
    return interval_json(interval_of(table_SB, draws, note), table_SB)


def interval_json(found: Interval, table_SB: NDArray[np.float64]) -> dict[str, Any]:
    """Return an interval as plain values, with what each seed has."""
    return {
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "standard_error": found.standard_error,
        "by_seed": [float(value) if np.isfinite(value) else None for value in table_SB[:, 0]],
        "note": found.note,
    }


def over_seeds(of_seeds: Sequence[LabelMeans], value_of: Callable[[LabelMeans], float | None]) -> dict[str, Any]:
    """Return the mean of a number over seeds, undefined where it is so for one."""
    notes = [metrics.note for metrics in of_seeds]
    return _mean([value_of(metrics) for metrics in of_seeds], notes)


def label_over_seeds(
    labels: Sequence[LabelMetrics], value_of: Callable[[LabelMetrics], float | None]
) -> dict[str, Any]:
    """Return the mean of a label's number over seeds."""
    return _mean([value_of(label) for label in labels], [label.note for label in labels])


def roc_over_seeds(scores_SN: Scores, targets_N: NDArray[np.floating[Any]]) -> dict[str, list[float]]:
    """Return the ROC curve, averaged over seeds at each false positive rate, and the seeds' range."""
    grid = np.linspace(0, 1, ROC_POINTS)
    curves = []
    for scores_N in scores_SN:
        false_positive, true_positive, _ = roc_curve(targets_N, scores_N)
        curves.append(np.interp(grid, false_positive, true_positive))
    return {
        "false_positive": grid.tolist(),
        "true_positive": np.mean(curves, axis=0).tolist(),
        "low": np.min(curves, axis=0).tolist(),
        "high": np.max(curves, axis=0).tolist(),
    }


def draws_of(runs: ScoredRuns, site: str, num_seeds: int, num_resamples: int, split: str = "test") -> Draws:
    """Draw a site's patients: the same draws for all set-ups, so that they can be compared in pairs."""
    return draw(
        runs.samples[site, split].patients_N, num_seeds, num_resamples, stream=runs.institutions.index(site)
    )


def _mean(values: list[float | None], notes: Sequence[str | None]) -> dict[str, Any]:
    defined = [value for value in values if value is not None]
    is_whole = len(defined) == len(values) > 0
    note = None if is_whole else next((each for each in notes if each), "undefined")
    return {"value": float(np.mean(defined)) if is_whole else None, "by_seed": values, "note": note}
