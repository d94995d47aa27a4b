"""Intervals and tests that hold with few seeds: what patients and what seeds add to the error, estimated apart.

A bootstrap of three seeds knows three values and none beside them: where all three lie on one side of zero, so do
all resamples, and chance alone does that one time in four. Here the seeds' part of the error comes from their
spread, with Student's quantiles for their number. So radiology judges a method with several readers: seeds are the
readers, patients the cases (Obuchowski and Rockette, Commun. Stat. Simul. Comput. 1995; Hillis, Stat. Med. 2007).
"""

import numpy as np
from scipy.stats import t as student

from cxr_hvd.errors import UsageError
from cxr_hvd.stats.sample import (
    ALL_EQUAL,
    CONFIDENCE,
    NO_VARIANCE,
    NOT_RESAMPLED,
    TOLERANCE,
    UNDEFINED,
    Difference,
    Floats,
    Interval,
)


def components_interval(table_SB: Floats, note: str | None = None) -> Interval:
    """Return the mean over seeds with its 95% interval over patients and seeds.

    It is symmetric, so it may reach beyond 0 or 1. With one seed, it is over patients alone.

    Args:
        table_SB: of `resampling.resampled`, or arithmetic on such tables.
        note: what to say where the value is undefined.
    """
    return _interval(table_SB, note)[0]


def components_difference(table_a_SB: Floats, table_b_SB: Floats, note: str | None = None) -> Difference:
    """Return how much experiment a is above experiment b, of tables with the same draws and paired seeds.

    The p-value is that of Student's t.
    """
    if table_a_SB.shape != table_b_SB.shape:
        raise UsageError(f"expected tables of one shape, found {table_a_SB.shape} and {table_b_SB.shape}")
    table_SB = table_a_SB - table_b_SB
    found, freedom = _interval(table_SB, note)
    per_seed = () if found.value is None else tuple(table_SB[:, 0].tolist())
    p_value = None
    if found.value is not None and found.standard_error is not None:
        p_value = float(2 * student.sf(abs(found.value) / found.standard_error, freedom))
    return Difference(
        value=found.value,
        low=found.low,
        high=found.high,
        standard_error=found.standard_error,
        p_value=p_value,
        per_seed=per_seed,
        num_resamples=found.num_resamples,
        note=found.note,
    )


def _interval(table_SB: Floats, note: str | None) -> tuple[Interval, float]:
    """Return the interval and its degrees of freedom."""
    if not (table_SB.size and np.isfinite(table_SB[:, 0]).all()):
        return Interval(None, None, None, None, 0, note or UNDEFINED), np.nan
    value = float(table_SB[:, 0].mean())
    resamples_SB = table_SB[:, 1:][:, np.isfinite(table_SB[:, 1:]).all(axis=0)]
    num_resamples = resamples_SB.shape[1]
    if num_resamples < 2:
        return Interval(value, None, None, None, num_resamples, NOT_RESAMPLED), np.nan
    error, freedom = _error(table_SB[:, 0], resamples_SB)
    is_equal = bool((np.ptp(resamples_SB, axis=1) <= TOLERANCE).all())
    if is_equal or error <= TOLERANCE:
        return Interval(value, None, None, None, num_resamples, ALL_EQUAL if is_equal else NO_VARIANCE), np.nan
    reach = float(student.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    return Interval(value, value - reach, value + reach, error, num_resamples, None), freedom


def _error(values_S: Floats, resamples_SB: Floats) -> tuple[float, float]:
    """Return the standard error of the mean over seeds, and its degrees of freedom.

    What seeds have in common moves with the patients: the mean covariance of two seeds over the draws. What they
    have not, be it of the seed or of seed and patient together, is their spread as measured.
    """
    num_seeds = len(values_S)
    covariance_SS = np.atleast_2d(np.cov(resamples_SB))
    if num_seeds == 1:
        return float(covariance_SS[0, 0] ** 0.5), np.inf
    common = float(covariance_SS.sum() - np.trace(covariance_SS)) / (num_seeds * (num_seeds - 1))
    of_seeds = float(values_S.var(ddof=1)) / num_seeds
    variance = max(common, 0.0) + of_seeds
    return variance**0.5, (num_seeds - 1) * (variance / of_seeds) ** 2 if of_seeds > TOLERANCE**2 else np.inf
