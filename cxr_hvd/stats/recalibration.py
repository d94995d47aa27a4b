"""Calibration intercept and slope: logistic recalibration of probabilities, with their logit as covariate.

The slope is that of logit P(present) = a + b logit(p): below 1, probabilities are too extreme. The intercept is a
with b held at 1 (calibration in the large): below 0, probabilities are too high. 1 and 0 are ideal (Cox,
Biometrika 1958; Van Calster et al., BMC Medicine 2019). Probabilities are kept `CLIP` away from 0 and 1.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit

from cxr_hvd.stats.clusters import (
    patient_codes,
    sums_of_patients,
    symmetric_interval,
    too_few,
    without_interval,
)
from cxr_hvd.stats.metrics import why_undefined
from cxr_hvd.stats.sample import TOLERANCE, Codes, Floats, Interval, Scores

CLIP = 1e-6
MAX_STEPS, SMALL_STEP = 100, 1e-9
_FAR = 60.0  # beyond it no intercept can lie: logits are within 14 of 0

Coefficient = tuple[Interval, tuple[float | None, ...]]
"""The mean over seeds with its interval, and each seed's."""


@dataclass(frozen=True)
class Recalibration:
    """Intercept (0 is ideal) and slope (1 is ideal)."""

    intercept: Coefficient
    slope: Coefficient


def recalibrate(scores_SN: Scores, targets_N: NDArray[np.floating[Any]], patients_N: Codes) -> Recalibration:
    """Return intercept and slope of each seed's probabilities, with intervals over patients and seeds.

    With fewer than 10 patients in a class there is no interval, and a note says so.

    Args:
        scores_SN: (S, N), 0 to 1. targets_N: (N,), 0 or 1.
        patients_N: a number for each study; studies of one patient have the same.
    """
    why = next((note for scores_N in scores_SN if (note := why_undefined(scores_N, targets_N))), None)
    if why or not len(scores_SN):
        undefined = without_interval(None, why or "no seed"), (None,) * len(scores_SN)
        return Recalibration(undefined, undefined)
    logits_SN = logit(np.clip(scores_SN.astype(np.float64), CLIP, 1 - CLIP))
    intercepts = [_intercept(logits_N, targets_N) for logits_N in logits_SN]
    notes = [_why_no_slope(logits_N, targets_N) for logits_N in logits_SN]
    slopes = [
        None if note else _slope(logits_N, targets_N) for logits_N, note in zip(logits_SN, notes, strict=True)
    ]
    return Recalibration(
        intercept=_over_seeds(intercepts, targets_N, patients_N, None),
        slope=_over_seeds(slopes, targets_N, patients_N, next(filter(None, notes), None)),
    )


def _over_seeds(
    fits: list[tuple[float, Floats]] | list[tuple[float, Floats] | None],
    targets_N: NDArray[np.floating[Any]],
    patients_N: Codes,
    note: str | None,
) -> Coefficient:
    """Return a coefficient over seeds, of each seed's value and its studies' influences."""
    by_seed = tuple(fit[0] if fit else None for fit in fits)
    whole = [fit for fit in fits if fit]
    if note or len(whole) < len(fits):
        return without_interval(None, note or "undefined"), by_seed
    values_S = np.array([value for value, _ in whole])
    classes = [len(np.unique(patients_N[targets_N == target])) for target in (0, 1)]
    if few := too_few(min(classes), " in a class"):
        return without_interval(float(values_S.mean()), few), by_seed
    codes_N, num_patients = patient_codes(patients_N)
    influences_SP = sums_of_patients(np.stack([influences_N for _, influences_N in whole]), codes_N, num_patients)
    return symmetric_interval(values_S, influences_SP), by_seed


def _intercept(logits_N: Floats, targets_N: NDArray[np.floating[Any]]) -> tuple[float, Floats]:
    """Return the intercept with the slope held at 1, and each study's influence on it."""

    def surplus(intercept: float) -> float:
        return float((targets_N - expit(intercept + logits_N)).sum())

    intercept = float(brentq(surplus, -_FAR, _FAR, xtol=1e-10))
    expected_N = expit(intercept + logits_N)
    return intercept, (targets_N - expected_N) / (expected_N * (1 - expected_N)).sum()


def _slope(logits_N: Floats, targets_N: NDArray[np.floating[Any]]) -> tuple[float, Floats]:
    """Return the slope beside a free intercept, and each study's influence on it."""
    scale = float(logits_N.std())
    design_ND = np.stack([np.ones_like(logits_N), (logits_N - logits_N.mean()) / scale], axis=1)

    def loss(weights_D: Floats) -> float:
        raw_N = design_ND @ weights_D
        return float((np.logaddexp(0, raw_N) - targets_N * raw_N).sum())

    # Newton's way. scikit-learn's LogisticRegression takes ten times as long; a test holds this against it.
    weights_D = np.zeros(2)
    for _ in range(MAX_STEPS):
        expected_N = expit(design_ND @ weights_D)
        information_DD = design_ND.T @ (design_ND * (expected_N * (1 - expected_N))[:, None])
        step_D = np.linalg.solve(information_DD, design_ND.T @ (targets_N - expected_N))
        while loss(weights_D + step_D) > loss(weights_D) + TOLERANCE and np.abs(step_D).max() > TOLERANCE:
            step_D = step_D / 2
        weights_D = weights_D + step_D
        if np.abs(step_D).max() < SMALL_STEP:
            break
    residuals_N = targets_N - expit(design_ND @ weights_D)
    influences_DN = np.linalg.solve(information_DD, design_ND.T * residuals_N)
    return float(weights_D[1]) / scale, influences_DN[1] / scale


def _why_no_slope(logits_N: Floats, targets_N: NDArray[np.floating[Any]]) -> str | None:
    """Return why no slope fits best: without overlap of the classes a steeper one is always better."""
    present, absent = logits_N[targets_N == 1], logits_N[targets_N == 0]
    if np.ptp(logits_N) <= 0:
        return "all probabilities are equal"
    if present.min() >= absent.max() or present.max() <= absent.min():
        return "the classes do not overlap"
    return None
