"""Metrics of one vector of scores under many weightings of its studies at once: what resampling needs.

A study drawn twice weighs 2, one not drawn weighs 0; so a resample needs no copy and no sorting of its own.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cxr_hvd.evaluation.statistics import Floats, Sample, Scores
from cxr_hvd.training.metrics import THRESHOLD, is_present, why_undefined

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
    """

    sample: Sample
    columns: tuple[int, ...]

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
        notes = [
            why_undefined(scores_NL[known, column], self.sample.targets_NL[known, column])
            for column in self.columns
            for known in [self.sample.known_NL[:, column]]
        ]
        return _joint_note(notes, "no label with both classes")


@dataclass(frozen=True)
class Accuracy:
    """Mean over the labels in `columns` of the share of right answers; labels without a threshold count nowhere.

    Undefined where any of the labels has scores that are not finite.

    Attributes:
        thresholds: one for each of `columns`; present is what reaches it.
    """

    sample: Sample
    columns: tuple[int, ...]
    thresholds: tuple[float | None, ...]

    def __call__(self, scores_NL: Scores, weights_BN: Floats) -> Floats:
        if not _is_finite(self.sample, scores_NL, self.columns):
            return np.full(len(weights_BN), np.nan)
        columns, thresholds_L = self._with_threshold()
        targets_NL, known_NL = self.sample.targets_NL[:, columns], self.sample.known_NL[:, columns]
        right_NL = known_NL & (is_present(scores_NL[:, columns], thresholds_L) == (targets_NL == 1))
        right_BL = weights_BN @ right_NL.astype(np.float64)
        return _mean_over_defined(_ratio(right_BL, weights_BN @ known_NL.astype(np.float64)))

    def why_undefined(self, scores_NL: Scores) -> str | None:
        if not _is_finite(self.sample, scores_NL, self.columns):
            return "scores are not finite"
        columns, _ = self._with_threshold()
        if not self.sample.known_NL[:, self.columns].any():
            return "no study"
        return None if self.sample.known_NL[:, columns].any() else "no threshold from validation"

    def _with_threshold(self) -> tuple[list[int], Floats]:
        pairs = zip(self.columns, self.thresholds, strict=True)
        given = [(column, threshold) for column, threshold in pairs if threshold is not None]
        return [column for column, _ in given], np.array([threshold for _, threshold in given], dtype=np.float64)


def macro_auroc(sample: Sample) -> Auroc:
    """Return the mean AUROC over all labels."""
    return Auroc(sample, tuple(range(sample.targets_NL.shape[1])))


def mean_accuracy(sample: Sample, thresholds: tuple[float | None, ...] | None = None) -> Accuracy:
    """Return the mean accuracy over all labels, at one threshold a label, or at 0.5."""
    num_labels = sample.targets_NL.shape[1]
    return Accuracy(sample, tuple(range(num_labels)), thresholds or (THRESHOLD,) * num_labels)


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
