"""From scores and known labels to what they are worth, label by label, by scikit-learn.

What cannot be computed is None, with a note that says why, and never 0.5: an AUROC needs both classes, and scores
that are not finite are worth nothing. Accuracy stands beside that of answering "absent" always, since most labels
are absent most of the time. How certain any of it is: `stats/sample.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_hvd.stats.sample import Scores

THRESHOLD = 0.5
MIN_OF_CLASS = 10
"""Of fewer present or fewer absent studies, 95% intervals hold the true AUROC in less than 90% of samples."""

FREQUENT = f"with {MIN_OF_CLASS} present and {MIN_OF_CLASS} absent or more"

SPECIFICITY = 0.9
NUM_BINS = 10


@dataclass(frozen=True)
class LabelMetrics:
    """One label over the studies in which it is known; None where undefined.

    Attributes:
        label: its name.
        num_studies, num_present: studies in which it is known, and of those in which it is present.
        auroc: area under the ROC curve, 0 to 1.
        accuracy: share of right answers at a probability of 0.5.
        all_negative_accuracy: share of right answers of always saying "absent".
        average_precision: mean precision over recalls, 0 to 1; guessing gives the share of present.
        brier: mean squared distance of probability and truth, 0 to 1; lower is better.
        sensitivity_at_specificity: the highest sensitivity at a specificity of at least `SPECIFICITY`, 0 to 1.
        expected_calibration_error: mean distance of probability and share of present over the bins of
            `calibration_curve`, each counting by its studies, 0 to 1 (Naeini et al., AAAI 2015).
        threshold: the one given, of `choose_thresholds`.
        accuracy_at_threshold: share of right answers there.
        note: why any of these is None; thresholds that were not asked for need no reason.
    """

    label: str
    num_studies: int
    num_present: int
    auroc: float | None
    accuracy: float | None
    all_negative_accuracy: float | None
    average_precision: float | None
    brier: float | None
    sensitivity_at_specificity: float | None
    expected_calibration_error: float | None
    threshold: float | None
    accuracy_at_threshold: float | None
    note: str | None


@dataclass(frozen=True)
class LabelMeans:
    """Means over one set of labels, the same for all of them.

    A mean is None where the set is empty or one of its labels lacks the number: a mean over the others would be
    another number.

    Attributes:
        mean_over: names of the labels.
        note: why a mean is None; thresholds that were not asked for need no reason.
    """

    mean_over: tuple[str, ...]
    macro_auroc: float | None
    mean_accuracy: float | None
    mean_all_negative_accuracy: float | None
    macro_average_precision: float | None
    mean_brier: float | None
    mean_sensitivity: float | None
    mean_accuracy_at_threshold: float | None
    note: str | None


@dataclass(frozen=True)
class SplitMetrics(LabelMeans):
    """All labels of one test set. Its own means are over the labels that have both classes.

    Attributes:
        labels: each label's metrics.
        num_studies: of the test set.
        frequent: the means over the labels with at least `MIN_OF_CLASS` present and as many absent studies.
    """

    labels: tuple[LabelMetrics, ...]
    num_studies: int
    frequent: LabelMeans


def compute_metrics(
    probabilities_NL: Scores,
    targets_NL: NDArray[np.float32],
    known_NL: NDArray[np.bool_],
    label_names: tuple[str, ...],
    thresholds: Sequence[float | None] | None = None,
) -> SplitMetrics:
    """Judge probabilities (N, L), 0 to 1, against targets (N, L) of 0 and 1 where `known_NL` is True.

    Args:
        thresholds: one a label, chosen on other studies than these; None where a label has none.
    """
    labels = tuple(
        _label_metrics(
            name,
            probabilities_NL[known_NL[:, column], column],
            targets_NL[known_NL[:, column], column],
            thresholds[column] if thresholds is not None else None,
            thresholds is not None,
        )
        for column, name in enumerate(label_names)
    )
    means, frequent = (_means(labels, at_least, thresholds is not None) for at_least in (1, MIN_OF_CLASS))
    return SplitMetrics(**vars(means), labels=labels, num_studies=len(targets_NL), frequent=frequent)


def why_undefined(scores_N: Scores, targets_N: NDArray[np.floating[Any]]) -> str | None:
    """Return in some words why these scores have no AUROC; None where they have one."""
    num_studies, num_present = len(targets_N), int(np.sum(targets_N))
    if not num_studies:
        return "no study"
    if not np.isfinite(scores_N).all():
        return "scores are not finite"
    if num_present == num_studies:
        return f"one class only: {num_studies} present"
    return f"one class only: {num_studies} absent" if not num_present else None


def has_classes(num_studies: int, num_present: int, at_least: int = 1) -> bool:
    """Return whether at least so many studies are present, and as many absent."""
    return min(num_present, num_studies - num_present) >= at_least


def why_no_interval(num_studies: int, num_present: int) -> str | None:
    """Return in some words why a label has too few studies for an interval; None where it has enough."""
    if has_classes(num_studies, num_present, MIN_OF_CLASS):
        return None
    num_absent = num_studies - num_present
    few = f"{num_present} present" if num_present < MIN_OF_CLASS else f"{num_absent} absent"
    return f"{few}, fewer than {MIN_OF_CLASS}"


def why_no_label(num_known: int, at_least: int) -> str:
    """Return in some words why a set of labels with so many studies of each class is empty."""
    if not num_known:
        return "no study"
    if at_least == 1:
        return "no label with both classes"
    return f"no label with {at_least} present and {at_least} absent studies"


def choose_thresholds(
    probabilities_NL: Scores, targets_NL: NDArray[np.float32], known_NL: NDArray[np.bool_]
) -> tuple[float | None, ...]:
    """Return for each label the threshold with the most right answers; None where these studies cannot tell.

    Present is what reaches it. Candidates stand halfway between neighbouring scores, and beyond the lowest and
    the highest; of equally good ones, the one nearest to 0.5 is taken. An optimist on the studies that it was
    chosen on: judge it on others.
    """
    return tuple(
        _choose_threshold(probabilities_NL[known, column], targets_NL[known, column])
        for column, known in enumerate(known_NL.T)
    )


def calibration_curve(
    probabilities_N: Scores, targets_N: NDArray[np.floating[Any]], num_bins: int = NUM_BINS
) -> list[tuple[float, float, int]]:
    """Return mean probability, share present and number of studies of each bin that holds a study.

    Bins have equal width; each holds its lower bound, the last its upper, too. Ours, since scikit-learn's gives
    no numbers of studies.

    Args:
        probabilities_N: (N,), 0 to 1, finite.
        targets_N: (N,), 0 or 1.
    """
    probabilities_N = probabilities_N.astype(np.float64)
    bins_N = np.minimum((probabilities_N * num_bins).astype(np.int64), num_bins - 1)
    counts = np.bincount(bins_N, minlength=num_bins)
    sums = np.bincount(bins_N, probabilities_N, num_bins)
    num_present = np.bincount(bins_N, targets_N.astype(np.float64), num_bins)
    return [
        (float(sums[place] / counts[place]), float(num_present[place] / counts[place]), int(counts[place]))
        for place in np.flatnonzero(counts)
    ]


def is_present(probabilities: Scores, threshold: float | NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return what reaches the threshold, compared in float64: in float32 a threshold may round onto a score."""
    return probabilities.astype(np.float64) >= threshold


def _label_metrics(
    name: str,
    probabilities_N: Scores,
    targets_N: NDArray[np.float32],
    threshold: float | None,
    is_threshold_due: bool,
) -> LabelMetrics:
    # Takes 3 s of a core: imported by the first validation, not by the start of a training.
    from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

    num_studies, num_present = len(targets_N), int(targets_N.sum())
    note = why_undefined(probabilities_N, targets_N)
    is_judged = num_studies > 0 and bool(np.isfinite(probabilities_N).all())
    has_both_classes = note is None
    if is_threshold_due and threshold is None:
        note = "; ".join(reason for reason in (note, "no threshold from validation") if reason)

    def accuracy_at(value: float) -> float:
        return float(np.mean(is_present(probabilities_N, value) == targets_N))

    return LabelMetrics(
        label=name,
        num_studies=num_studies,
        num_present=num_present,
        auroc=float(roc_auc_score(targets_N, probabilities_N)) if has_both_classes else None,
        accuracy=accuracy_at(THRESHOLD) if is_judged else None,
        all_negative_accuracy=float(np.mean(targets_N == 0)) if is_judged else None,
        average_precision=float(average_precision_score(targets_N, probabilities_N)) if has_both_classes else None,
        brier=float(brier_score_loss(targets_N, probabilities_N, pos_label=1)) if is_judged else None,
        sensitivity_at_specificity=_sensitivity(probabilities_N, targets_N) if has_both_classes else None,
        expected_calibration_error=_calibration_error(probabilities_N, targets_N) if is_judged else None,
        threshold=threshold,
        accuracy_at_threshold=accuracy_at(threshold) if is_judged and threshold is not None else None,
        note=note,
    )


def _sensitivity(probabilities_N: Scores, targets_N: NDArray[np.float32]) -> float:
    from sklearn.metrics import roc_curve

    false_alarms, sensitivities, _ = roc_curve(targets_N, probabilities_N, drop_intermediate=False)
    return float(sensitivities[1 - false_alarms >= SPECIFICITY].max())


def _calibration_error(probabilities_N: Scores, targets_N: NDArray[np.float32]) -> float:
    bins = calibration_curve(probabilities_N, targets_N)
    return sum(abs(predicted - share) * count for predicted, share, count in bins) / len(targets_N)


def _choose_threshold(probabilities_N: Scores, targets_N: NDArray[np.float32]) -> float | None:
    if why_undefined(probabilities_N, targets_N):
        return None
    scores_K, place_N = np.unique(probabilities_N.astype(np.float64), return_inverse=True)
    gains_K = np.bincount(place_N, 1.0 - 2.0 * targets_N)  # right answers more, once the threshold is above
    num_right = targets_N.sum() + np.concatenate([[0.0], np.cumsum(gains_K)])
    above = max((scores_K[-1] + 1) / 2, float(np.nextafter(np.float32(scores_K[-1]), np.float32(np.inf))))
    candidates = np.concatenate([[scores_K[0] / 2], (scores_K[:-1] + scores_K[1:]) / 2, [above]])
    best = candidates[num_right == num_right.max()]
    return float(best[np.argmin(np.abs(best - THRESHOLD))])


def _means(labels: tuple[LabelMetrics, ...], at_least: int, is_threshold_due: bool) -> LabelMeans:
    """Return the means over the labels with at least so many present and absent studies."""
    chosen = [label for label in labels if has_classes(label.num_studies, label.num_present, at_least)]
    notes = [] if chosen else [why_no_label(sum(label.num_studies for label in labels), at_least)]
    not_finite = [label.label for label in chosen if label.accuracy is None]
    if not_finite:
        notes.append(f"scores are not finite: {', '.join(not_finite)}")
    no_threshold = [label.label for label in chosen if label.threshold is None]
    if is_threshold_due and no_threshold:
        notes.append(f"no threshold from validation: {', '.join(no_threshold)}")
    return LabelMeans(
        mean_over=tuple(label.label for label in chosen),
        macro_auroc=_mean([label.auroc for label in chosen]),
        mean_accuracy=_mean([label.accuracy for label in chosen]),
        mean_all_negative_accuracy=_mean([label.all_negative_accuracy for label in chosen]),
        macro_average_precision=_mean([label.average_precision for label in chosen]),
        mean_brier=_mean([label.brier for label in chosen]),
        mean_sensitivity=_mean([label.sensitivity_at_specificity for label in chosen]),
        mean_accuracy_at_threshold=_mean([label.accuracy_at_threshold for label in chosen]),
        note="; ".join(notes) or None,
    )


def _mean(values: list[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined and len(defined) == len(values) else None
