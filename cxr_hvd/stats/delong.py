"""Differences of AUROCs in closed form (DeLong, DeLong and Clarke-Pearson, Biometrics 1988), by patients.

Quick and without draws, but for AUROCs of one label alone, and over patients alone: seeds are taken as they are.
Studies of one patient count as one cluster (Obuchowski, Biometrics 1997); with one study a patient that is exactly
DeLong's covariance. Structural components come from midranks (Sun and Xu, IEEE Signal Processing Letters 2014).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from cxr_hvd.errors import UsageError
from cxr_hvd.stats.metrics import why_undefined
from cxr_hvd.stats.sample import (
    CONFIDENCE,
    NO_VARIANCE,
    TOLERANCE,
    Codes,
    Difference,
    Floats,
    Scores,
)

QUANTILE = float(norm.ppf((1 + CONFIDENCE) / 2))


def auroc_covariance(
    scores_KN: Scores, targets_N: NDArray[np.floating[Any]], patients_N: Codes | None = None
) -> tuple[Floats, Floats]:
    """Return AUROCs (K,) of K vectors of scores of the same studies, and their covariance (K, K).

    O(K N log N).

    Args:
        scores_KN: (K, N), finite.
        targets_N: (N,), 0 or 1, both there.
        patients_N: a number for each study; None where each has a patient of its own.

    Returns:
        The covariance is NaN where fewer than two patients have present or fewer than two have absent studies.
    """
    codes_N = np.arange(len(targets_N)) if patients_N is None else np.unique(patients_N, return_inverse=True)[1]
    aurocs_K, present_KC, absent_KC = structural_components(scores_KN, targets_N, codes_N)
    is_present = np.asarray(targets_N) == 1
    crossed_KK = present_KC @ absent_KC.T
    covariance_KK = (
        unbiased(len(np.unique(codes_N[is_present]))) * present_KC @ present_KC.T
        + unbiased(len(np.unique(codes_N[~is_present]))) * absent_KC @ absent_KC.T
        + unbiased(present_KC.shape[1]) * (crossed_KK + crossed_KK.T)
    )
    return aurocs_K, covariance_KK


def structural_components(
    scores_KN: Scores, targets_N: NDArray[np.floating[Any]], codes_N: Codes, num_patients: int | None = None
) -> tuple[Floats, Floats, Floats]:
    """Return AUROCs (K,), and each patient's part in how far chance moves them.

    Args:
        scores_KN: (K, N), finite.
        targets_N: (N,), 0 or 1, both there.
        codes_N: a number for each study, from 0; studies of one patient have the same.
        num_patients: C, above all codes; the highest code and one where left out.

    Returns:
        Beside the AUROCs the components (K, C) of the present and of the absent studies, centred, divided by their
        number and summed by patient; each row sums to 0.
    """
    is_present = np.asarray(targets_N) == 1
    num_present, num_absent = int(is_present.sum()), int((~is_present).sum())
    ranks_KN = rankdata(scores_KN, axis=1)
    # Of a present study, the share of absent ones below it; of an absent one, of present ones above it.
    shares_KN = np.empty(ranks_KN.shape)
    class_KP, class_KQ = (rankdata(scores_KN[:, in_class], axis=1) for in_class in (is_present, ~is_present))
    shares_KN[:, is_present] = (ranks_KN[:, is_present] - class_KP) / num_absent
    shares_KN[:, ~is_present] = 1 - (ranks_KN[:, ~is_present] - class_KQ) / num_present
    aurocs_K = shares_KN[:, is_present].mean(axis=1)
    centred_KN = shares_KN - aurocs_K[:, None]
    present_KC = sums_of_patients(np.where(is_present, centred_KN, 0.0), codes_N, num_patients) / num_present
    absent_KC = sums_of_patients(np.where(is_present, 0.0, centred_KN), codes_N, num_patients) / num_absent
    return aurocs_K, present_KC, absent_KC


def delong_difference(
    scores_a_SN: Scores,
    scores_b_SN: Scores,
    targets_N: NDArray[np.floating[Any]],
    patients_N: Codes | None = None,
) -> Difference:
    """Return how much the mean AUROC of a's seeds is above that of b's, with normal interval and p-value.

    Args:
        scores_a_SN, scores_b_SN: (S, N) of the same studies, seeds in one order; or (N,) of one seed.
    """
    scores_a_SN, scores_b_SN = np.atleast_2d(scores_a_SN), np.atleast_2d(scores_b_SN)
    if scores_a_SN.shape != scores_b_SN.shape:
        raise UsageError(f"expected scores of one shape, found {scores_a_SN.shape} and {scores_b_SN.shape}")
    scores_KN = np.concatenate([scores_a_SN, scores_b_SN])
    note = _why_undefined(scores_KN, targets_N)
    if note:
        return Difference(None, None, None, None, None, (), 0, note)
    aurocs_K, covariance_KK = auroc_covariance(scores_KN, targets_N, patients_N)
    return contrast_difference(aurocs_K, covariance_KK)


def contrast_difference(aurocs_K: Floats, covariance_KK: Floats) -> Difference:
    """Return how much the mean of the first half of AUROCs is above that of the second, over patients alone.

    Args:
        aurocs_K: (2 S,), a's seeds and then b's in the same order.
        covariance_KK: of these over patients.
    """
    num_seeds = len(aurocs_K) // 2
    contrast_K = np.repeat([1 / num_seeds, -1 / num_seeds], num_seeds)
    value, variance = float(contrast_K @ aurocs_K), float(contrast_K @ covariance_KK @ contrast_K)
    per_seed = tuple((aurocs_K[:num_seeds] - aurocs_K[num_seeds:]).tolist())
    note = _why_no_interval(variance)
    if note:
        return Difference(value, None, None, None, None, per_seed, 0, note)
    error = variance**0.5
    p_value = float(2 * norm.sf(abs(value) / error))
    return Difference(value, value - QUANTILE * error, value + QUANTILE * error, error, p_value, per_seed, 0, None)


def sums_of_patients(values_KN: Floats, codes_N: Codes, num_patients: int | None = None) -> Floats:
    """Return (K, C): the values summed over each patient's studies."""
    return np.stack([np.bincount(codes_N, values_N, minlength=num_patients or 0) for values_N in values_KN])


def unbiased(num: int) -> float:
    """Return the factor that makes a sum of squares over so many patients unbiased; NaN of fewer than two."""
    return num / (num - 1) if num > 1 else np.nan


def _why_undefined(scores_KN: Scores, targets_N: NDArray[np.floating[Any]]) -> str | None:
    notes = (why_undefined(scores_N, targets_N) for scores_N in scores_KN)
    return next((note for note in notes if note), None if len(scores_KN) else "no seed")


def _why_no_interval(variance: float) -> str | None:
    if np.isnan(variance):
        return "fewer than two patients in a class"
    return NO_VARIANCE if variance <= TOLERANCE**2 else None
