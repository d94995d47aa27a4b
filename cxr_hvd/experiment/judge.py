"""How good one set-up is on one site's test studies: all metrics, with intervals over patients and seeds."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from cxr_hvd.experiment.clinical import (
    average_precision_curve,
    judge_calibration,
    judge_subgroups,
    judge_threshold,
)
from cxr_hvd.experiment.comparison import Estimate, JudgedLabel, JudgedSetUp, MeanEstimates, RocCurve, SeedMean
from cxr_hvd.experiment.scored_runs import ScoredRuns
from cxr_hvd.stats.bootstrap import Draws, interval_of, resampled
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
from cxr_hvd.stats.sample import Sample, Scores
from cxr_hvd.stats.weighted import Auroc, Metric, macro_auroc, mean_accuracy

ROC_POINTS = 101

Thresholds = tuple[float | None, ...]
"""One for each label."""


def judge(runs: ScoredRuns, name: str, site: str, draws: Draws) -> JudgedSetUp:
    """Judge the network that a site uses in a set-up on its test studies."""
    sample, scores_SNL = runs.samples[site, "test"], runs.site_scores_SNL(name, site)
    thresholds = choose_site_thresholds(runs, name, site)
    metrics = [
        compute_metrics(scores_NL, sample.targets_NL, sample.known_NL, runs.origin.label_names, chosen)
        for scores_NL, chosen in zip(scores_SNL, thresholds, strict=True)
    ]
    means = estimate_means(sample, metrics, thresholds, scores_SNL, draws)
    frequent, groups = means, runs.groups(site)
    if metrics[0].frequent.mean_over != means.mean_over:
        rows = [of_seed.frequent for of_seed in metrics]
        frequent = estimate_means(sample, rows, thresholds, scores_SNL, draws, MIN_OF_CLASS)
    return JudgedSetUp(
        experiment=name,
        site=site,
        network=runs.of_name[name][0].scores.origin.network_of(site),
        num_studies=len(sample.targets_NL),
        num_patients=len(np.unique(sample.patients_N)),
        **vars(means),
        frequent=frequent,
        labels=tuple(
            judge_label(column, metrics, sample, scores_SNL, draws)
            for column in range(len(runs.origin.label_names))
        ),
        subgroups=judge_subgroups(groups, sample, scores_SNL, runs.origin.label_names) if groups else (),
    )


def estimate_means(
    sample: Sample,
    means: Sequence[LabelMeans],
    thresholds: Sequence[Thresholds],
    scores_SNL: Scores,
    draws: Draws,
    at_least: int = 1,
) -> MeanEstimates:
    """Return all means over the labels with at least so many present and absent studies.

    Args:
        means: of each seed over these labels.
        thresholds: of each seed.
    """
    notes = [row.note for row in means]
    with_thresholds = [mean_accuracy(sample, chosen, at_least) for chosen in thresholds]
    return MeanEstimates(
        mean_over=means[0].mean_over,
        macro_auroc=estimate(macro_auroc(sample, at_least), scores_SNL, draws),
        mean_accuracy=estimate(mean_accuracy(sample, at_least=at_least), scores_SNL, draws),
        mean_accuracy_at_threshold=estimate(with_thresholds, scores_SNL, draws),
        macro_average_precision=average([row.macro_average_precision for row in means], notes),
        mean_brier=average([row.mean_brier for row in means], notes),
        mean_sensitivity=average([row.mean_sensitivity for row in means], notes),
        mean_all_negative_accuracy=means[0].mean_all_negative_accuracy,
    )


def judge_label(
    column: int, metrics: Sequence[SplitMetrics], sample: Sample, scores_SNL: Scores, draws: Draws
) -> JudgedLabel:
    """Judge one label. With few present or absent studies its AUROC has no interval, and a note says so.

    Args:
        metrics: of each seed.
    """
    labels = [of_seed.labels[column] for of_seed in metrics]
    few = why_no_interval(labels[0].num_studies, labels[0].num_present)
    auroc = estimate(Auroc(sample, (column,)), scores_SNL, draws.measured() if few else draws)
    if few and auroc.value is not None:
        auroc = auroc.model_copy(update={"note": few})
    known_N = sample.known_NL[:, column]
    targets_N, scores_SN = sample.targets_NL[known_N, column], scores_SNL[:, known_N, column]
    is_finite = bool(np.isfinite(scores_SN).all())
    has_curve = len(targets_N) > 0 and is_finite
    curve = calibration_curve(scores_SN.ravel(), np.tile(targets_N, len(scores_SN))) if has_curve else []

    has_area = labels[0].auroc is not None and is_finite
    patients_N = sample.patients_N[known_N]
    intercept, slope = judge_calibration(scores_SN, targets_N, patients_N)

    def over_seeds(value_of: Callable[[LabelMetrics], float | None]) -> SeedMean:
        return average([value_of(label) for label in labels], [label.note for label in labels])

    return JudgedLabel(
        label=labels[0].label,
        num_studies=labels[0].num_studies,
        num_present=labels[0].num_present,
        note=next((label.note for label in labels if label.note), None),
        auroc=auroc,
        all_negative_accuracy=labels[0].all_negative_accuracy,
        average_precision=over_seeds(lambda label: label.average_precision),
        accuracy=over_seeds(lambda label: label.accuracy),
        accuracy_at_threshold=over_seeds(lambda label: label.accuracy_at_threshold),
        brier=over_seeds(lambda label: label.brier),
        sensitivity=over_seeds(lambda label: label.sensitivity_at_specificity),
        expected_calibration_error=over_seeds(lambda label: label.expected_calibration_error),
        roc=average_roc(scores_SN, targets_N) if has_area else None,
        calibration=tuple(curve),
        at_threshold=judge_threshold(scores_SN, targets_N, patients_N, [label.threshold for label in labels]),
        precision=average_precision_curve(scores_SN, targets_N) if has_area else None,
        calibration_intercept=intercept,
        calibration_slope=slope,
    )


def choose_site_thresholds(runs: ScoredRuns, name: str, site: str) -> list[Thresholds]:
    """Return for each seed the thresholds that are best on the site's own VALIDATE studies."""
    sample = runs.samples[site, "validate"]
    scores_SNL = runs.site_scores_SNL(name, site, "validate")
    return [choose_thresholds(scores_NL, sample.targets_NL, sample.known_NL) for scores_NL in scores_SNL]


def estimate(metric: Metric | Sequence[Metric], scores_SNL: Scores, draws: Draws) -> Estimate:
    """Return a metric's mean over seeds, its interval and each seed's value."""
    first = metric[0] if isinstance(metric, Sequence) else metric
    table_SB = resampled(metric, scores_SNL, draws)
    note = next((note for scores_NL in scores_SNL if (note := first.why_undefined(scores_NL))), None)
    interval = interval_of(table_SB, draws, note)
    return Estimate(
        value=interval.value,
        low=interval.low,
        high=interval.high,
        standard_error=interval.standard_error,
        by_seed=tuple(float(value) if np.isfinite(value) else None for value in table_SB[:, 0]),
        note=interval.note,
    )


def average(values: Sequence[float | None], notes: Sequence[str | None]) -> SeedMean:
    """Return the mean of a number over seeds, undefined where it is so for one.

    Args:
        notes: why it is, of each seed.
    """
    defined = [value for value in values if value is not None]
    is_whole = len(defined) == len(values) > 0
    return SeedMean(
        value=float(np.mean(defined)) if is_whole else None,
        by_seed=tuple(values),
        note=None if is_whole else next(filter(None, notes), "undefined"),
    )


def average_roc(scores_SN: Scores, targets_N: NDArray[np.floating[Any]]) -> RocCurve:
    """Return the ROC curve, averaged over seeds at each false positive rate, and the seeds' range."""
    grid = np.linspace(0, 1, ROC_POINTS)
    curves = []
    for scores_N in scores_SN:
        false_positive, true_positive, _ = roc_curve(targets_N, scores_N)
        curves.append(np.interp(grid, false_positive, true_positive))
    return RocCurve(
        false_positive=tuple(grid.tolist()),
        true_positive=tuple(np.mean(curves, axis=0).tolist()),
        low=tuple(np.min(curves, axis=0).tolist()),
        high=tuple(np.max(curves, axis=0).tolist()),
    )
