"""Intervals in closed form, over patients and seeds: each patient's influence on a number, seed by seed.

A patient's influence is how much a number moves with the weight of all that patient's studies (the infinitesimal
jackknife; for ratios and regressions the sandwich of Liang and Zeger, Biometrika 1986). What seeds have in common
moves with the patients; what they have not is their spread: as in `intervals`, and never less than the patients'
part alone. No draws, so that hundreds of numbers cost what one bootstrap does.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import t as student

from cxr_hvd.stats.metrics import MIN_OF_CLASS
from cxr_hvd.stats.sample import CONFIDENCE, NO_VARIANCE, TOLERANCE, Codes, Floats, Interval


def patient_codes(patients_N: Codes) -> tuple[NDArray[np.int64], int]:
    """Return a number from 0 for the patient of each study, and how many patients there are."""
    patients, codes_N = np.unique(patients_N, return_inverse=True)
    return codes_N.reshape(-1).astype(np.int64), len(patients)


def sums_of_patients(values_SN: Floats, codes_N: NDArray[np.int64], num_patients: int) -> Floats:
    """Return sums over each patient's studies, (S, P)."""
    return np.stack([np.bincount(codes_N, values_N, num_patients) for values_N in values_SN])


def too_few(num_patients: int, of_what: str = "") -> str | None:
    """Return in some words why so few patients give no interval; None where they are enough."""
    if num_patients >= MIN_OF_CLASS:
        return None
    return f"{num_patients} patient{'' if num_patients == 1 else 's'}{of_what}, fewer than {MIN_OF_CLASS}"


def symmetric_interval(values_S: Floats, influences_SP: Floats) -> Interval:
    """Return the mean over seeds with Student's interval round it."""
    value, (variance, freedom) = float(values_S.mean()), variance_of_mean(values_S, influences_SP)
    if variance <= TOLERANCE**2:
        return without_interval(value, NO_VARIANCE)
    error = variance**0.5
    reach = _quantile(freedom) * error
    return Interval(value, value - reach, value + reach, error, 0, None)


def area_interval(values_S: Floats, influences_SP: Floats) -> Interval:
    """Return the mean of areas, 0 to 1, with an interval that is symmetric in its logit (Pepe, 2003)."""
    value, (variance, freedom) = float(values_S.mean()), variance_of_mean(values_S, influences_SP)
    if variance <= TOLERANCE**2 or not TOLERANCE < value < 1 - TOLERANCE:
        return without_interval(value, NO_VARIANCE)
    error = variance**0.5
    reach = _quantile(freedom) * error / (value * (1 - value))
    return Interval(value, float(expit(logit(value) - reach)), float(expit(logit(value) + reach)), error, 0, None)


def share_interval(values_S: Floats, influences_SP: Floats, num_patients: int, num_studies: float) -> Interval:
    """Return the mean of shares with Wilson's interval for the effective number of studies (Rao and Scott, 1992).

    That number is the one of independent studies that would have the variance that was found. Where a share is 0
    or 1 there is none, and each patient counts once.

    Args:
        num_patients, num_studies: that the share is of.
    """
    value, (variance, freedom) = float(values_S.mean()), variance_of_mean(values_S, influences_SP)
    effective = float(num_patients)
    if variance > TOLERANCE**2 and TOLERANCE < value < 1 - TOLERANCE:
        effective = min(value * (1 - value) / variance, num_studies)
    spread = _quantile(freedom) ** 2 / effective
    middle = (value + spread / 2) / (1 + spread)
    reach = (spread * (value * (1 - value) + spread / 4)) ** 0.5 / (1 + spread)
    return Interval(value, max(0.0, middle - reach), min(1.0, middle + reach), variance**0.5, 0, None)


def without_interval(value: float | None, note: str) -> Interval:
    """Return a number without an interval, or neither, and why."""
    return Interval(value, None, None, None, 0, note)


def variance_of_mean(values_S: Floats, influences_SP: Floats) -> tuple[float, float]:
    """Return the variance of the mean over seeds, and its degrees of freedom.

    Args:
        values_S: one a seed.
        influences_SP: of each patient; 0 for those that have no part in it.
    """
    num_seeds, num_patients = len(values_S), int(influences_SP.any(axis=0).sum())
    if num_patients < 2:
        return 0.0, np.inf
    covariance_SS = influences_SP @ influences_SP.T * (num_patients / (num_patients - 1))
    of_patients = float(covariance_SS.mean())
    if num_seeds == 1:
        return of_patients, np.inf
    common = float(covariance_SS.sum() - np.trace(covariance_SS)) / (num_seeds * (num_seeds - 1))
    of_seeds = float(values_S.var(ddof=1)) / num_seeds
    variance = max(max(common, 0.0) + of_seeds, of_patients)
    return variance, (num_seeds - 1) * (variance / of_seeds) ** 2 if of_seeds > TOLERANCE**2 else np.inf


def _quantile(freedom: float) -> float:
    return float(student.ppf((1 + CONFIDENCE) / 2, freedom))
