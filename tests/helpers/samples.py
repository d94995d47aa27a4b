"""Samples and scores whose statistics are known, and how often an interval holds the truth."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from cxr_hvd.stats.bootstrap import Draws, difference, resampled
from cxr_hvd.stats.sample import Difference, Floats, Interval, Sample, Scores
from cxr_hvd.stats.weighted import Metric

AUROC = 0.8
SHIFT = 2**0.5 * float(stats.norm.ppf(AUROC))  # between two normal distributions with that AUROC

# DeLong et al. 1988, the 43 patients with all three tests: albumin, total protein, K-G score, and the outcome.


def a_sample(rng: np.random.Generator, num_studies: int = 60, num_labels: int = 3) -> tuple[Sample, Scores]:
    """A sample of awkward sizes, and scores (2, N, L) with ties in them."""
    targets = (rng.random((num_studies, num_labels)) < 0.4).astype(np.float32)
    known = rng.random(targets.shape) < 0.8
    patients = rng.integers(0, num_studies // 2, num_studies) * 7 - 3
    scores = np.round(0.3 * targets + rng.random((2, *targets.shape)), 1)
    return Sample(targets, known, patients), scores


def binormal(rng: np.random.Generator, num_studies: int, shift: float = SHIFT) -> tuple[Floats, Floats]:
    """Scores and targets, half of them present."""
    targets = (np.arange(num_studies) % 2).astype(np.float64)
    return rng.normal(size=num_studies) + shift * targets, targets


def clustered(rng: np.random.Generator, num_patients: int, each: int) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Scores and targets of patients whose studies resemble each other, and the patients."""
    patients = np.repeat(np.arange(num_patients), each)
    targets = (rng.random(num_patients) < 0.5).astype(np.float64)[patients]
    common, own = rng.normal(size=num_patients)[patients], rng.normal(size=len(patients))
    return 0.8**0.5 * common + 0.2**0.5 * own + SHIFT * targets, targets, patients


def one_label(targets: Scores, patients: NDArray[np.int64] | None = None) -> Sample:
    every = np.arange(len(targets)) if patients is None else patients
    return Sample(targets[:, None], np.ones((len(targets), 1), bool), every)


def mean_over_seeds(sd: float) -> float:
    """The mean AUROC over all seeds there could be, whose shifts differ by so much."""
    return float(np.mean(stats.norm.cdf((SHIFT + sd * stats.norm.ppf((np.arange(2000) + 0.5) / 2000)) / 2**0.5)))


def share_that_holds(
    interval: Callable[[np.random.Generator], Interval | Difference], truth: float, repetitions: int
) -> float:
    """In what share of fresh samples the interval holds the truth."""
    rng = np.random.default_rng(17)
    intervals = [interval(rng) for _ in range(repetitions)]
    return float(np.mean([one.low is not None and one.low <= truth <= (one.high or 0) for one in intervals]))


def bootstrap_difference(metric: Metric, scores_a_SNL: Scores, scores_b_SNL: Scores, draws: Draws) -> Difference:
    """How much experiment a is above experiment b in a metric, as `experiment.differences` takes it."""
    tables = [resampled(metric, scores_SNL, draws) for scores_SNL in (scores_a_SNL, scores_b_SNL)]
    notes = [
        metric.why_undefined(scores_NL) for scores_SNL in (scores_a_SNL, scores_b_SNL) for scores_NL in scores_SNL
    ]
    return difference(tables[0], tables[1], draws, next(filter(None, notes), None))
