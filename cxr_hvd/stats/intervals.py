"""Intervals and tests that hold with few seeds: what patients and what seeds add to the error, estimated apart.

A bootstrap of three seeds knows three values and none beside them: where all three lie on one side of zero, so do
all resamples, and chance alone does that one time in four. Here the seeds' part of the error comes from their
spread, with Student's quantiles for their number. So radiology judges a method with several readers: seeds are the
readers, patients the cases (Obuchowski and Rockette, Commun. Stat. Simul. Comput. 1995; Hillis, Stat. Med. 2007).
"""

from dataclasses import replace

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
)

MIN_SEEDS = 3
"""Of fewer there is no p-value: with two, 9 to 12% of tests find a difference where there is none."""


def components_difference(table_a_SB: Floats, table_b_SB: Floats, note: str | None = None) -> Difference:
    """Return how much experiment a is above experiment b, with its 95% interval over patients and seeds.

    Interval and p-value are those of Student's t; the interval is symmetric. With one seed, it is over patients
    alone.

    Args:
        table_a_SB, table_b_SB: of `bootstrap.resampled`, or means of such tables: the same draws, paired seeds.
        note: what to say where the value is undefined.
    """
    if table_a_SB.shape != table_b_SB.shape:
        raise UsageError(f"expected tables of one shape, found {table_a_SB.shape} and {table_b_SB.shape}")
    table_SB = table_a_SB - table_b_SB
    if not (table_SB.size and np.isfinite(table_SB[:, 0]).all()):
        return Difference(None, None, None, None, None, (), 0, note or UNDEFINED)
    value, per_seed = float(table_SB[:, 0].mean()), tuple(table_SB[:, 0].tolist())
    resamples_SB = table_SB[:, 1:][:, np.isfinite(table_SB[:, 1:]).all(axis=0)]
    num_resamples = resamples_SB.shape[1]

    def without_interval(why: str) -> Difference:
        return Difference(value, None, None, None, None, per_seed, num_resamples, why)

    if num_resamples < 2:
        return without_interval(NOT_RESAMPLED)
    if (np.ptp(resamples_SB, axis=1) <= TOLERANCE).all():
        return without_interval(ALL_EQUAL)
    difference = covariance_difference(table_SB[:, 0], np.atleast_2d(np.cov(resamples_SB)))
    return replace(difference, num_resamples=num_resamples)


def covariance_difference(values_S: Floats, covariance_SS: Floats) -> Difference:
    """Return the mean over seeds of a number, for example of a difference, with its 95% interval.

    The same as `components_difference`, where the covariance over patients is known without draws.

    Args:
        values_S: of each seed, finite.
        covariance_SS: of these over patients.
    """
    value, per_seed = float(values_S.mean()), tuple(values_S.tolist())
    error, freedom = _error(values_S, covariance_SS)
    if error <= TOLERANCE:
        return Difference(value, None, None, None, None, per_seed, 0, NO_VARIANCE)
    reach = float(student.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    p_value = float(2 * student.sf(abs(value) / error, freedom))
    return Difference(value, value - reach, value + reach, error, p_value, per_seed, 0, None)


def _error(values_S: Floats, covariance_SS: Floats) -> tuple[float, float]:
    """Return the standard error of the mean over seeds, and its degrees of freedom.

    What seeds have in common moves with the patients: the mean covariance of two seeds over the patients. What
    they have not, be it of the seed or of seed and patient together, is their spread as measured.
    """
    num_seeds = len(values_S)
    if num_seeds == 1:
        return float(covariance_SS[0, 0] ** 0.5), np.inf
    common = float(covariance_SS.sum() - np.trace(covariance_SS)) / (num_seeds * (num_seeds - 1))
    of_seeds = float(values_S.var(ddof=1)) / num_seeds
    variance = max(common, 0.0) + of_seeds
    return variance**0.5, (num_seeds - 1) * (variance / of_seeds) ** 2 if of_seeds > TOLERANCE**2 else np.inf
