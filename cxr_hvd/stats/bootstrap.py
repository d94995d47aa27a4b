"""Intervals by the bootstrap: patients are drawn anew with all their studies, and seeds with them.

One set of draws serves all metrics and all experiments on the same studies, so that what two experiments share
cancels in their difference. The heart is `resampled`: a table of a metric for each seed and each draw of patients.
All else is arithmetic on tables: subtract two, or average those of several sites, before asking for an interval.

The percentile interval is Efron and Tibshirani's (An Introduction to the Bootstrap, 1993, chapter 13). Drawing
whole patients is their advice for clustered data; drawing patients and seeds apart is Owen's (The pigeonhole
bootstrap, Ann. Appl. Stat. 2007). Decision 17 says what that leaves out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cxr_hvd.errors import UsageError
from cxr_hvd.stats.sample import (
    ALL_EQUAL,
    CONFIDENCE,
    NOT_RESAMPLED,
    TOLERANCE,
    UNDEFINED,
    Codes,
    Difference,
    Floats,
    Interval,
    Scores,
)
from cxr_hvd.stats.weighted import Metric, rows_at_once

NUM_RESAMPLES = 2000
DRAWN_AT_ONCE = 5_000_000


@dataclass(frozen=True)
class Draws:
    """How often each patient and each seed is drawn in each resample. Column and row 0: each once, as measured.

    Attributes:
        times_PB: (P, B) uint16, of each patient; a column sums to P.
        patients_N: the row of `times_PB` of each study.
        seeds_BS: (B, S), of each seed; a row sums to S.
    """

    times_PB: NDArray[np.uint16]
    patients_N: NDArray[np.int64]
    seeds_BS: Floats

    def measured(self) -> "Draws":
        """Return no resample, the sample as measured alone."""
        return Draws(self.times_PB[:, :1], self.patients_N, self.seeds_BS[:1])

    def weights_BN(self, rows: slice) -> Floats:
        """Return the weight of each study in some of the resamples."""
        return self.times_PB[self.patients_N, rows].astype(np.float64).T


def draw(
    patients_N: Codes, num_seeds: int, num_resamples: int = NUM_RESAMPLES, seed: int = 0, stream: int = 0
) -> Draws:
    """Draw patients, and seeds apart from them. Pure: the same arguments give the same draws.

    Args:
        patients_N: a number for each study; studies of one patient have the same.
        num_seeds: seeds of each experiment; one is never drawn anew.
        num_resamples: how many to draw besides the sample itself.
        seed: names the draws. With the same one, seeds are drawn alike whatever the patients.
        stream: names those of patients. Tables of several sites can be averaged if their draws have the same
            `seed` and streams of their own: sites see the same seeds, but other patients.
    """
    codes, patients_N = np.unique(patients_N, return_inverse=True)
    of_seeds = np.random.default_rng([seed, 0])
    of_patients = np.random.default_rng([seed, 1, stream])
    return Draws(
        times_PB=np.ascontiguousarray(_times(of_patients, len(codes), num_resamples).T),
        patients_N=patients_N.reshape(-1),
        seeds_BS=_times(of_seeds, num_seeds, num_resamples).astype(np.float64),
    )


def resampled(metric: Metric | Sequence[Metric], scores_SNL: Scores, draws: Draws) -> Floats:
    """Return the table (S, B) of a metric for each seed in each draw of patients; NaN where undefined.

    Column 0 is the metric as measured; with one patient, there is no other.

    Args:
        metric: one for all seeds, or one for each, say with thresholds of their own.
        scores_SNL: (S, N, L).
        draws: of the patients of the same studies.
    """
    num_seeds, num_studies = scores_SNL.shape[:2]
    if (num_seeds, num_studies) != (draws.seeds_BS.shape[1], len(draws.patients_N)):
        raise UsageError(
            f"expected scores of {draws.seeds_BS.shape[1]} seeds and {len(draws.patients_N)} studies, as drawn; "
            f"found {num_seeds} and {num_studies}"
        )
    metrics = list(metric) if isinstance(metric, Sequence) else [metric] * num_seeds
    table_SB = np.empty((num_seeds, draws.times_PB.shape[1]))
    num_rows = rows_at_once(num_studies)
    for start in range(0, table_SB.shape[1], num_rows):
        rows = slice(start, start + num_rows)
        weights_BN = draws.weights_BN(rows)
        for seed, (metric_of_seed, scores_NL) in enumerate(zip(metrics, scores_SNL, strict=True)):
            table_SB[seed, rows] = metric_of_seed(scores_NL, weights_BN)
    if len(draws.times_PB) < 2:
        table_SB[:, 1:] = np.nan
    return table_SB


def interval_of(table_SB: Floats, draws: Draws, note: str | None = None) -> Interval:
    """Return the mean over seeds with its 95% percentile interval over patients and seeds.

    Args:
        table_SB: of `resampled`, or arithmetic on such tables with the same draws of seeds.
        note: what to say where the value is undefined.
    """
    value, values_B, note = _drawn(table_SB, draws, note)
    if value is None or note:
        return Interval(value, None, None, None, len(values_B), note)
    low, high = _percentiles(values_B)
    return Interval(value, low, high, float(values_B.std(ddof=1)), len(values_B), None)


def difference(table_a_SB: Floats, table_b_SB: Floats, draws: Draws, note: str | None = None) -> Difference:
    """Return how much experiment a is above experiment b, of tables with the same draws and paired seeds.

    The p-value is twice the share of resamples on the rarer side of zero, and at least 1 / (B + 1).
    """
    if table_a_SB.shape != table_b_SB.shape:
        raise UsageError(f"expected tables of one shape, found {table_a_SB.shape} and {table_b_SB.shape}")
    table_SB = table_a_SB - table_b_SB
    value, values_B, note = _drawn(table_SB, draws, note)
    per_seed = () if value is None else tuple(table_SB[:, 0].tolist())
    if value is None or note:
        return Difference(value, None, None, None, None, per_seed, len(values_B), note)
    low, high = _percentiles(values_B)
    rarer = min(float(np.mean(values_B <= TOLERANCE)), float(np.mean(values_B >= -TOLERANCE)))
    p_value = min(1.0, max(2 * rarer, 1 / (len(values_B) + 1)))
    return Difference(value, low, high, float(values_B.std(ddof=1)), p_value, per_seed, len(values_B), None)


def bootstrap(metric: Metric, scores_SNL: Scores, draws: Draws) -> Interval:
    """Return a metric's mean over seeds with its interval; scores (S, N, L)."""
    return interval_of(resampled(metric, scores_SNL, draws), draws, _why_undefined(metric, scores_SNL))


def _times(rng: np.random.Generator, num: int, num_resamples: int) -> NDArray[np.uint16]:
    """Return how often each of `num` is drawn in each resample of `num`, (1 + B, num); first each once."""
    times = np.ones((1 + num_resamples, num), dtype=np.uint16)
    if num < 2:
        return times
    rows = max(1, DRAWN_AT_ONCE // num)
    for start in range(1, len(times), rows):
        part = times[start : start + rows]
        drawn = rng.integers(num, size=part.shape) + num * np.arange(len(part))[:, None]
        part[:] = np.bincount(drawn.ravel(), minlength=part.size).reshape(part.shape)
    return times


def _drawn(table_SB: Floats, draws: Draws, note: str | None) -> tuple[float | None, Floats, str | None]:
    """Return the measured mean over seeds, that of each resample where defined, and why no interval follows."""
    if not (table_SB.size and np.isfinite(table_SB[:, 0]).all()):
        return None, np.empty(0), note or UNDEFINED
    means_B = np.einsum("bs,sb->b", draws.seeds_BS, table_SB) / len(table_SB)
    values_B = means_B[1:][np.isfinite(means_B[1:])]
    if len(values_B) < 2:
        return float(means_B[0]), values_B, "one patient" if len(draws.times_PB) == 1 else NOT_RESAMPLED
    return float(means_B[0]), values_B, ALL_EQUAL if np.ptp(values_B) <= TOLERANCE else None


def _percentiles(values_B: Floats) -> tuple[float, float]:
    low, high = np.quantile(values_B, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _why_undefined(metric: Metric, scores_SNL: Scores) -> str | None:
    notes = (metric.why_undefined(scores_NL) for scores_NL in scores_SNL)
    return next((note for note in notes if note), "no seed" if not len(scores_SNL) else None)
