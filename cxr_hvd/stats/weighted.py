"""Metrics of one vector of scores under many weightings of its studies at once: what resampling needs.

A study drawn twice weighs 2, one not drawn weighs 0; so a resample needs no copy and no sorting of its own.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cxr_hvd.stats.metrics import THRESHOLD, has_classes, is_present, why_no_label, why_undefined
from cxr_hvd.stats.sample import Floats, Sample, Scores

CHUNK_BYTES = 200_000_000
COPIES = 4  # of the weights that are in memory at once, at most


class Metric(Protocol):
    """One number of a test set, under weights of its studies."""

    def __call__(self, scores_NL: Scores, weights_BN: Floats) -> Floats:
        """Return the number (B,) under each weighting; NaN where it is undefined."""

    def why_undefined(self, scores_NL: Scores) -> str | None:
        """Return in some words why the number is undefined on the studies as they are; None where it is not."""


@dataclass(frozen=True)
class Auroc:
    """Mean AUROC over the labels in `columns` that have both classes in the resample.

    Undefined where any of the labels has scores that are not finite: a mean over the others would be another
    number. With one column, that label's AUROC.

    Attributes:
        no_label: why there is no column, where there is none.
    """

    sample: Sample
    columns: tuple[int, ...]
    no_label: str | None = None

    def __call__(self, scores_NL: Scores, weights_BN: Floats) -> Floats:
        if not _is_finite(self.sample, scores_NL, self.columns):
            return np.full(len(weights_BN), np.nan)
        values_BL = np.empty((len(weights_BN), len(self.columns)))
        for place, column in enumerate(self.columns):
            known = np.flatnonzero(self.sample.known_NL[:, column])
            scores_N, targets_N = scores_NL[known, column], self.sample.targets_NL[known, column]
            values_BL[:, place] = _auroc(scores_N, targets_N, weights_BN, known)
        return _mean_over_defined(values_BL)

    def why_undefined(self, scores_NL: Scores) -> str | None:
        if not self.columns:
            return self.no_label
        notes = [
            why_undefined(scores_NL[known, column], self.sample.targets_NL[known, column])
            for column in self.columns
            for known in [self.sample.known_NL[:, column]]
        ]
        return _joint_note(notes, "no label with both classes")


@dataclass(frozen=True)
class Accuracy:
    """Mean over the labels in `columns` of the share of right answers.

    Undefined where any of the labels has no threshold, or scores that are not finite.

    Attributes:
        thresholds: one for each of `columns`; present is what reaches it.
        no_label: why there is no column, where there is none.
    """

    sample: Sample
    columns: tuple[int, ...]
    thresholds: tuple[float | None, ...]
    no_label: str | None = None

    def __call__(self, scores_NL: Scores, weights_BN: Floats) -> Floats:
        if None in self.thresholds or not _is_finite(self.sample, scores_NL, self.columns):
            return np.full(len(weights_BN), np.nan)
        columns, thresholds_L = list(self.columns), np.array(self.thresholds, dtype=np.float64)
        targets_NL, known_NL = self.sample.targets_NL[:, columns], self.sample.known_NL[:, columns]
        right_NL = known_NL & (is_present(scores_NL[:, columns], thresholds_L) == (targets_NL == 1))
        right_BL = weights_BN @ right_NL.astype(np.float64)
        return _mean_over_defined(_ratio(right_BL, weights_BN @ known_NL.astype(np.float64)))

    def why_undefined(self, scores_NL: Scores) -> str | None:
        if not self.columns:
            return self.no_label
        if not _is_finite(self.sample, scores_NL, self.columns):
            return "scores are not finite"
        if not self.sample.known_NL[:, self.columns].any():
            return "no study"
        return "no threshold from validation" if None in self.thresholds else None


def columns_with(sample: Sample, at_least: int = 1) -> tuple[int, ...]:
    """Return the columns of the labels with at least so many present and as many absent studies."""
    num_known = sample.known_NL.sum(axis=0)
    num_present = (sample.targets_NL * sample.known_NL).sum(axis=0)
    counts = zip(num_known.tolist(), num_present.tolist(), strict=True)
    return tuple(column for column, (known, present) in enumerate(counts) if has_classes(known, present, at_least))


def macro_auroc(sample: Sample, at_least: int = 1) -> Auroc:
    """Return the mean AUROC over the labels with at least so many present and absent studies."""
    return Auroc(sample, columns_with(sample, at_least), _why_no_label(sample, at_least))


def mean_accuracy(
    sample: Sample, thresholds: tuple[float | None, ...] | None = None, at_least: int = 1
) -> Accuracy:
    """Return the mean accuracy over the labels of `macro_auroc`, at one threshold a label, or at 0.5.

    Args:
        thresholds: one for each of all labels.
    """
    columns = columns_with(sample, at_least)
    of_columns = tuple(thresholds[column] if thresholds else THRESHOLD for column in columns)
    return Accuracy(sample, columns, of_columns, _why_no_label(sample, at_least))


def auroc_of_weights(scores_N: Scores, targets_N: NDArray[np.floating[Any]], weights_BN: Floats) -> Floats:
    """Return the AUROC (B,) under each weighting of the studies, 0 to 1; ties count half.

    The weight of all pairs of a present and an absent study with the present one's score higher, by the weight of
    all pairs. Each column is sorted once, so B weightings cost O(N log N + B N), in chunks of B that take about
    200 MB.

    Args:
        scores_N: (N,).
        targets_N: (N,), 0 or 1.
        weights_BN: (B, N), at least 0.

    Returns:
        NaN where a class has no weight, and everywhere where scores are not finite.
    """
    return _auroc(scores_N, targets_N, weights_BN, np.arange(len(scores_N)))


def rows_at_once(num_studies: int) -> int:
    """Return for how many weightings the memory is enough."""
    return max(1, CHUNK_BYTES // (8 * COPIES * max(1, num_studies)))


def _auroc(
    scores_N: Scores, targets_N: NDArray[np.floating[Any]], weights_BM: Floats, places_N: NDArray[np.int64]
) -> Floats:
    """Return `auroc_of_weights` of the studies that stand at `places_N` in the weights."""
    if not np.isfinite(scores_N).all():
        return np.full(len(weights_BM), np.nan)
    present, absent = np.flatnonzero(targets_N == 1), np.flatnonzero(targets_N != 1)
    absent = absent[np.argsort(scores_N[absent], kind="stable")]
    num_below = np.searchsorted(scores_N[absent], scores_N[present], side="left")
    num_up_to = np.searchsorted(scores_N[absent], scores_N[present], side="right")
    weights_MB = weights_BM.T
    aurocs_B = np.empty(len(weights_BM))
    rows = rows_at_once(len(scores_N))
    for start in range(0, len(weights_BM), rows):
        chunk = slice(start, start + rows)
        present_PB = weights_MB[places_N[present], chunk]
        # Row k is the weight of the k absent studies with the lowest scores.
        sums_QB = np.zeros((len(absent) + 1, present_PB.shape[1]))
        np.cumsum(weights_MB[places_N[absent], chunk], axis=0, out=sums_QB[1:])
        beaten_B = np.einsum("pb,pb->b", present_PB, sums_QB[num_below])
        beaten_B += np.einsum("pb,pb->b", present_PB, sums_QB[num_up_to])
        aurocs_B[chunk] = _ratio(beaten_B / 2, present_PB.sum(axis=0) * sums_QB[-1])
    return aurocs_B


def _is_finite(sample: Sample, scores_NL: Scores, columns: tuple[int, ...]) -> bool:
    return bool(np.isfinite(scores_NL[:, columns][sample.known_NL[:, columns]]).all())


def _why_no_label(sample: Sample, at_least: int) -> str:
    """Return why a test set has no label with so many studies of each class, if it has none."""
    reason = why_no_label(int(sample.known_NL.sum()), at_least)
    notes = [
        why_undefined(targets_N[known_N], targets_N[known_N])
        for targets_N, known_N in zip(sample.targets_NL.T, sample.known_NL.T, strict=True)
    ]
    return (_joint_note(notes, reason) if at_least == 1 else None) or reason


def _joint_note(notes: list[str | None], of_several: str) -> str | None:
    if "scores are not finite" in notes:
        return "scores are not finite"
    if None in notes:
        return None
    return notes[0] if len(set(notes)) == 1 else of_several


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def _mean_over_defined(values_BL: Floats) -> Floats:
    is_defined_BL = np.isfinite(values_BL)
    sums_B = np.where(is_defined_BL, values_BL, 0.0).sum(axis=1)
    return _ratio(sums_B, is_defined_BL.sum(axis=1).astype(np.float64))
