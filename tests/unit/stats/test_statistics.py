"""Intervals cover as often as they say, differences are found as rarely by chance as they say, and sums agree."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import accuracy_score, roc_auc_score

from cxr_hvd.errors import UsageError
from cxr_hvd.stats import weighted
from cxr_hvd.stats.bootstrap import (
    bootstrap,
    bootstrap_difference,
    difference,
    draw,
    interval_of,
    resampled,
)
from cxr_hvd.stats.delong import auroc_covariance, delong_difference, delong_interval
from cxr_hvd.stats.intervals import components_difference, components_interval
from cxr_hvd.stats.sample import Difference, Floats, Interval, Sample, Scores, holm
from cxr_hvd.stats.weighted import Accuracy, Auroc, Metric, auroc_of_weights, macro_auroc, mean_accuracy

pytestmark = pytest.mark.filterwarnings("error")

AUROC = 0.8
SHIFT = 2**0.5 * float(stats.norm.ppf(AUROC))  # between two normal distributions with that AUROC

# DeLong et al. 1988, the 43 patients with all three tests: albumin, total protein, K-G score, and the outcome.
ALBUMIN = """3.0 3.2 3.9 2.8 3.2 0.9 2.5 1.6 3.8 3.7 3.2 3.8 4.1 3.6 4.3 3.6 2.3 4.2 4.0 3.5 3.8 3.0 4.5 3.7 3.1
    4.1 4.3 4.3 3.2 2.6 3.3 1.7 3.7 3.3 4.2 3.5 2.9 2.1 2.8 4.0 3.3 3.7 3.6"""
PROTEIN = """5.8 6.3 6.8 4.8 5.8 4.0 5.7 5.6 5.7 6.7 5.4 6.6 6.6 5.7 7.0 6.7 4.4 7.6 6.6 5.8 6.8 4.7 7.4 7.4 6.6
    8.2 7.0 6.5 5.1 4.7 6.8 4.0 6.1 6.3 7.7 6.2 5.7 4.8 6.2 7.0 5.7 6.9 6.6"""
KG_SCORE = "10 5 3 6 3 5 8 5 5 6 4 6 5 5 4 4 6 4 6 6 7 8 5 5 6 6 5 4 5 6 6 7 5 7 6 5 9 7 8 7 6 5 5"
OUTCOME = "0 1 1 0 1 0 0 1 1 1 1 1 1 1 1 0 1 0 0 1 1 0 1 1 1 1 1 1 1 1 0 0 1 1 1 1 0 1 0 1 1 1 1"


def numbers(text: str) -> Floats:
    return np.array(text.split(), dtype=np.float64)


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


def share_that_holds(interval: Callable[[np.random.Generator], Interval], truth: float, repetitions: int) -> float:
    """In what share of fresh samples the interval holds the truth."""
    rng = np.random.default_rng(17)
    found = [interval(rng) for _ in range(repetitions)]
    return float(np.mean([each.low is not None and each.low <= truth <= (each.high or 0) for each in found]))


# ---- metrics under weights


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 60), st.integers(1, 12), st.integers(0, 1 << 32), st.booleans())
def test_weighted_auroc_is_that_of_scikit_learn(num: int, num_scores: int, seed: int, is_whole: bool) -> None:
    rng = np.random.default_rng(seed)
    scores = (rng.integers(0, num_scores, num) / num_scores).astype(np.float32)
    targets = rng.permutation(np.arange(num) % 3 == 0).astype(np.float32)
    weights = rng.integers(0, 3, (7, num)).astype(np.float64) if is_whole else rng.random((7, num))
    for value, of_study in zip(auroc_of_weights(scores, targets, weights), weights, strict=True):
        if of_study[targets == 1].sum() and of_study[targets == 0].sum():
            assert value == pytest.approx(roc_auc_score(targets, scores, sample_weight=of_study), abs=1e-12)
        else:
            assert np.isnan(value)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sample, scores = a_sample(np.random.default_rng(0))
    draws = draw(sample.patients_N, 2, 100)
    metrics: list[Metric] = [macro_auroc(sample), mean_accuracy(sample)]
    whole = [resampled(metric, scores, draws) for metric in metrics]
    one = (scores[0, :, 0], sample.targets_NL[:, 0], draws.weights_BN(slice(0, 101)))
    aurocs = auroc_of_weights(*one)
    monkeypatch.setattr(weighted, "CHUNK_BYTES", 8 * weighted.COPIES * 60 * 7)
    for metric, expected in zip(metrics, whole, strict=True):
        np.testing.assert_array_equal(resampled(metric, scores, draws), expected)
    np.testing.assert_array_equal(auroc_of_weights(*one), aurocs)


def test_resampling_by_weights_is_resampling_by_copies() -> None:
    sample, scores = a_sample(np.random.default_rng(1))
    draws = draw(sample.patients_N, 2, 40)
    thresholds = (0.7, 0.5, 0.4)
    aurocs = resampled(macro_auroc(sample), scores, draws)
    accuracies = resampled(mean_accuracy(sample, thresholds), scores, draws)
    for resample in range(41):
        patients = np.repeat(np.unique(sample.patients_N), draws.times_PB[:, resample])
        rows = np.concatenate([np.flatnonzero(sample.patients_N == each) for each in patients])
        for seed in range(2):
            of_label = []
            for column in range(3):
                at = rows[sample.known_NL[rows, column]]
                of_label.append((sample.targets_NL[at, column], scores[seed, at, column]))
            auroc = np.mean([roc_auc_score(target, score) for target, score in of_label])
            assert aurocs[seed, resample] == pytest.approx(auroc, abs=1e-12)
            right = [
                accuracy_score(target, score >= threshold)
                for (target, score), threshold in zip(of_label, thresholds, strict=True)
            ]
            assert accuracies[seed, resample] == pytest.approx(np.mean(right), abs=1e-12)


def test_a_label_that_a_resample_leaves_one_class_of_enters_no_mean() -> None:
    sample = Sample(np.array([[0, 0], [1, 0], [0, 1]]), np.ones((3, 2), bool), np.arange(3))
    scores = np.array([[0.1, 0.9], [0.8, 0.2], [0.9, 0.1]])
    weights = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=np.float64)
    np.testing.assert_array_equal(macro_auroc(sample)(scores, weights), [0.25, 1.0, np.nan])
    np.testing.assert_array_equal(Auroc(sample, (1,))(scores, weights), [0.0, np.nan, np.nan])


def test_each_seed_may_have_thresholds_of_its_own() -> None:
    sample, scores = a_sample(np.random.default_rng(2))
    draws = draw(sample.patients_N, 2, 10)
    low, high = (Accuracy(sample, (0, 2), (each, each)) for each in (0.3, 0.9))
    table = resampled([low, high], scores, draws)
    np.testing.assert_array_equal(table[0], resampled(low, scores, draws)[0])
    np.testing.assert_array_equal(table[1], resampled(high, scores, draws)[1])


# ---- draws


def test_patients_and_seeds_are_drawn_as_often_as_there_are_and_first_once_each() -> None:
    patients = np.array([5, 9, 5, 5, 2, 9])
    draws = draw(patients, 4, 500)
    assert draws.times_PB.shape == (3, 501) and draws.seeds_BS.shape == (501, 4)
    assert (draws.times_PB.sum(axis=0) == 3).all() and (draws.seeds_BS.sum(axis=1) == 4).all()
    assert (draws.times_PB[:, 0] == 1).all() and (draws.seeds_BS[0] == 1).all()
    weights = draws.weights_BN(slice(0, 501))
    for patient in patients:
        same = weights[:, patients == patient]
        assert (same == same[:, :1]).all()
    # Each patient is drawn as in a multinomial: mean 1, variance 1 - 1 / P.
    np.testing.assert_allclose(draws.times_PB[:, 1:].mean(axis=1), 1, atol=0.12)
    np.testing.assert_allclose(draws.times_PB[:, 1:].var(axis=1), 2 / 3, atol=0.15)


def test_draws_are_a_pure_function_and_sites_share_those_of_seeds() -> None:
    north, again = draw(np.arange(30), 3, 50, seed=4), draw(np.arange(30), 3, 50, seed=4)
    south = draw(np.arange(30), 3, 50, seed=4, stream=1)
    np.testing.assert_array_equal(north.times_PB, again.times_PB)
    np.testing.assert_array_equal(north.seeds_BS, south.seeds_BS)
    assert (north.times_PB != south.times_PB).any()
    assert (north.seeds_BS != draw(np.arange(30), 3, 50, seed=5).seeds_BS).any()


def test_draws_of_other_studies_or_seeds_are_refused() -> None:
    sample, scores = a_sample(np.random.default_rng(3))
    with pytest.raises(UsageError, match="expected scores of 3 seeds and 60 studies, as drawn; found 2 and 60"):
        resampled(macro_auroc(sample), scores, draw(sample.patients_N, 3, 10))
    with pytest.raises(UsageError, match="tables of one shape"):
        difference(np.zeros((2, 5)), np.zeros((3, 5)), draw(sample.patients_N, 2, 4))
    with pytest.raises(UsageError, match="tables of one shape"):
        components_difference(np.zeros((2, 5)), np.zeros((3, 5)))
    with pytest.raises(UsageError, match="scores of one shape"):
        delong_difference(scores[:, :, 0], scores[:1, :, 0], sample.targets_NL[:, 0])


# ---- bootstrap


def test_the_interval_is_that_of_scipy() -> None:
    rng = np.random.default_rng(4)
    right = (rng.random(200) < 0.7).astype(np.float64)
    sample = one_label(np.ones(200))
    ours = bootstrap(Accuracy(sample, (0,), (0.5,)), right[None, :, None], draw(sample.patients_N, 1, 9999))
    scipys = stats.bootstrap((right,), np.mean, method="percentile", rng=np.random.default_rng(0))
    assert ours.standard_error == pytest.approx(scipys.standard_error, rel=0.03)
    assert (ours.low, ours.high) == pytest.approx(tuple(scipys.confidence_interval), abs=0.006)
    assert ours.value == pytest.approx(right.mean())
    assert (ours.num_resamples, ours.note) == (9999, None)


def test_seeds_add_their_own_share_of_the_error() -> None:
    values = np.array([0.70, 0.74, 0.76, 0.81])
    draws = draw(np.arange(50), 4, 20_000)
    alone = interval_of(np.repeat(values[:, None], 20_001, axis=1), draws)
    assert alone.value == pytest.approx(values.mean())
    assert alone.standard_error == pytest.approx(values.std() / 2, rel=0.02)
    of_patients = np.concatenate([[0.0], np.random.default_rng(0).normal(0, 0.03, 20_000)])
    both = interval_of(values[:, None] + of_patients, draws)
    assert both.standard_error == pytest.approx(np.hypot(values.std() / 2, 0.03), rel=0.02)


def test_what_two_experiments_share_cancels_in_their_difference() -> None:
    rng = np.random.default_rng(5)
    scores, targets = binormal(rng, 200)
    sample = one_label(targets)
    better, worse = (
        np.stack([scores + rng.normal(0, sd, 200) for _ in range(3)])[:, :, None] for sd in (0.1, 0.5)
    )
    draws = draw(sample.patients_N, 3, 500)
    metric = macro_auroc(sample)
    found, turned = (
        bootstrap_difference(metric, better, worse, draws),
        bootstrap_difference(metric, worse, better, draws),
    )
    one = bootstrap(metric, better, draws)
    assert found.standard_error is not None and one.standard_error is not None and found.value is not None
    assert found.standard_error < one.standard_error
    assert found.value == pytest.approx(np.mean(found.per_seed))
    aurocs = [[roc_auc_score(targets, each[:, 0]) for each in experiment] for experiment in (better, worse)]
    assert found.per_seed == pytest.approx(np.subtract(aurocs[0], aurocs[1]))
    assert (turned.value, turned.low, turned.high) == pytest.approx(
        (-found.value, -(found.high or 0), -(found.low or 0))
    )
    assert turned.p_value == found.p_value


def test_the_p_value_is_twice_the_rarer_side_and_never_zero() -> None:
    draws = draw(np.arange(10), 1, 100)
    spread = np.concatenate([[0.1], np.linspace(-0.0295, 0.0695, 100)])[None]
    assert difference(spread, np.zeros_like(spread), draws).p_value == pytest.approx(0.6)
    assert difference(spread + 1, np.zeros_like(spread), draws).p_value == pytest.approx(1 / 101)
    even = np.concatenate([[0.0], np.tile([-0.1, 0.0, 0.0, 0.1], 25)])[None]
    assert difference(even, np.zeros_like(even), draws).p_value == 1.0


def test_tables_of_two_sites_average_to_the_interval_of_their_mean() -> None:
    rng = np.random.default_rng(6)
    tables, errors = [], []
    for stream in range(2):
        scores, targets = binormal(rng, 100)
        draws = draw(np.arange(100), 1, 4000, stream=stream)
        tables.append(resampled(macro_auroc(one_label(targets)), scores[None, :, None], draws))
        errors.append(interval_of(tables[-1], draws).standard_error or 0)
    mean = interval_of((tables[0] + tables[1]) / 2, draws)
    assert mean.standard_error == pytest.approx(np.hypot(errors[0], errors[1]) / 2, rel=0.05)


def test_bootstrap_intervals_cover_as_often_as_they_say() -> None:
    def interval(rng: np.random.Generator) -> Interval:
        scores, targets = binormal(rng, 120)
        draws = draw(np.arange(120), 1, 400, seed=int(rng.integers(1 << 32)))
        return bootstrap(macro_auroc(one_label(targets)), scores[None, :, None], draws)

    assert share_that_holds(interval, AUROC, 400) == pytest.approx(0.95, abs=0.03)


def test_intervals_over_patients_and_seeds_cover_what_other_seeds_would_give() -> None:
    def interval(rng: np.random.Generator) -> Interval:
        scores, targets = binormal(rng, 300, shift=0)
        # Each seed sees the finding more or less clearly; the truth is the mean over all seeds there could be.
        shifts = SHIFT + rng.normal(0, 0.3, 10)
        scores_SN = scores + shifts[:, None] * targets
        draws = draw(np.arange(300), 10, 300, seed=int(rng.integers(1 << 32)))
        return bootstrap(macro_auroc(one_label(targets)), scores_SN[:, :, None], draws)

    assert share_that_holds(interval, mean_over_seeds(0.3), 200) == pytest.approx(0.94, abs=0.04)


def test_drawing_patients_covers_where_drawing_studies_does_not() -> None:
    def interval(rng: np.random.Generator, by_patient: bool) -> Interval:
        scores, targets, patients = clustered(rng, 60, 4)
        sample = one_label(targets, patients if by_patient else None)
        draws = draw(sample.patients_N, 1, 300, seed=int(rng.integers(1 << 32)))
        return bootstrap(macro_auroc(sample), scores[None, :, None], draws)

    assert share_that_holds(lambda rng: interval(rng, True), AUROC, 250) == pytest.approx(0.94, abs=0.04)
    assert share_that_holds(lambda rng: interval(rng, False), AUROC, 250) < 0.8


def test_bootstrap_p_values_are_uniform_where_there_is_no_difference() -> None:
    p_values = np.array([found.p_value for found, _ in without_a_difference(1, 1.0, 0.0)], dtype=np.float64)
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert np.mean(p_values < 0.05) == pytest.approx(0.05, abs=0.03)


# ---- components


@pytest.mark.parametrize(("by_study", "as_a_whole"), [(1.0, 0.0), (0.0, 0.3), (0.5, 0.15)])
def test_few_seeds_find_no_difference_where_there_is_none(by_study: float, as_a_whole: float) -> None:
    found = without_a_difference(3, by_study, as_a_whole)
    p_values = np.array([components.p_value for _, components in found], dtype=np.float64)
    assert np.mean(p_values < 0.05) == pytest.approx(0.05, abs=0.04)


def test_a_bootstrap_of_few_seeds_is_too_sure_or_too_careful() -> None:
    """Decision 17: why `components` stands beside it."""

    def share_found(by_study: float, as_a_whole: float) -> float:
        found = without_a_difference(3, by_study, as_a_whole)
        return float(np.mean([each.p_value is not None and each.p_value < 0.05 for each, _ in found]))

    assert share_found(0.0, 0.3) > 0.15
    assert share_found(1.0, 0.0) < 0.03


@cache
def without_a_difference(
    num_seeds: int, by_study: float, as_a_whole: float
) -> list[tuple[Difference, Difference]]:
    """By bootstrap and by components, of experiments that differ by their seeds alone."""
    rng = np.random.default_rng(7)
    found = []
    for _ in range(400):
        scores, targets = binormal(rng, 100)
        noise = by_study * rng.normal(size=(2, num_seeds, 100, 1))
        shifts = as_a_whole * rng.normal(size=(2, num_seeds, 1, 1)) * targets[:, None]
        draws = draw(np.arange(100), num_seeds, 300, seed=int(rng.integers(1 << 32)))
        metric = macro_auroc(one_label(targets))
        a, b = (resampled(metric, scores[:, None] + each, draws) for each in noise + shifts)
        found.append((difference(a, b, draws), components_difference(a, b)))
    return found


def test_components_of_known_size_add_up() -> None:
    rng = np.random.default_rng(13)
    patients, together = 0.03 * rng.normal(size=20_000), 0.02 * rng.normal(size=(4, 20_000))
    values = np.array([0.70, 0.74, 0.76, 0.81])
    table = np.concatenate([values[:, None], values[:, None] + patients + together], axis=1)
    found = components_interval(table)
    of_seeds = values.var(ddof=1) / 4
    variance = 0.03**2 + of_seeds
    reach = stats.t.ppf(0.975, 3 * (variance / of_seeds) ** 2) * variance**0.5
    assert found.standard_error == pytest.approx(variance**0.5, rel=0.02)
    assert (found.low, found.high) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.002)
    difference_from_zero = components_difference(table, np.zeros_like(table))
    assert (difference_from_zero.low, difference_from_zero.high) == (found.low, found.high)
    assert difference_from_zero.per_seed == tuple(values)
    one = components_interval(table[:1])
    assert one.standard_error == pytest.approx(np.hypot(0.03, 0.02), rel=0.02)
    assert one.low == pytest.approx(0.70 - 1.96 * np.hypot(0.03, 0.02), abs=0.002)


def test_components_cover_what_other_seeds_would_give() -> None:
    def interval(rng: np.random.Generator) -> Interval:
        scores, targets = binormal(rng, 300, shift=0)
        scores_SN = scores + (SHIFT + rng.normal(0, 0.3, 5))[:, None] * targets
        draws = draw(np.arange(300), 5, 200, seed=int(rng.integers(1 << 32)))
        return components_interval(resampled(macro_auroc(one_label(targets)), scores_SN[:, :, None], draws))

    assert share_that_holds(interval, mean_over_seeds(0.3), 300) == pytest.approx(0.94, abs=0.03)


# ---- DeLong


def test_a_published_example_is_met() -> None:
    targets = numbers(OUTCOME)
    albumin, protein, kg = numbers(ALBUMIN), numbers(PROTEIN), -numbers(KG_SCORE)
    aurocs, covariance = auroc_covariance(np.stack([albumin, protein, kg]), targets)
    np.testing.assert_allclose(aurocs, [0.7366, 0.6478, 0.7258], atol=5e-5)
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), [0.0927, 0.1000, 0.1028], atol=5e-5)
    found = delong_difference(protein, kg, targets)
    assert (found.value, found.standard_error) == pytest.approx((-0.0780, 0.1046), abs=5e-5)
    assert (found.low, found.high) == pytest.approx((-0.2830, 0.1271), abs=5e-5)
    assert found.z is not None and found.z**2 == pytest.approx(0.5554, abs=5e-5)
    assert found.p_value == pytest.approx(0.4561, abs=5e-5)


def test_the_covariance_is_that_of_the_definition_with_and_without_clusters() -> None:
    rng = np.random.default_rng(8)
    targets = (rng.random(40) < 0.4).astype(np.float64)
    scores = np.round(targets * 0.5 + rng.normal(size=(3, 40)), 1)
    patients = rng.integers(0, 15, 40)
    for clusters in (np.arange(40), patients):
        aurocs, covariance = auroc_covariance(scores, targets, clusters)
        expected_aurocs, expected = by_definition(scores, targets, clusters)
        np.testing.assert_allclose(aurocs, expected_aurocs, atol=1e-12)
        np.testing.assert_allclose(covariance, expected, atol=1e-12)
    np.testing.assert_array_equal(
        auroc_covariance(scores, targets)[1], auroc_covariance(scores, targets, np.arange(40))[1]
    )


def by_definition(scores_KN: Floats, targets_N: Floats, patients_N: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Obuchowski's equations written out, all pairs compared; with single studies they are DeLong's."""
    present, absent = np.flatnonzero(targets_N == 1), np.flatnonzero(targets_N == 0)
    num_present, num_absent, patients = len(present), len(absent), np.unique(patients_N)
    above = scores_KN[:, present, None] - scores_KN[:, None, absent]
    wins = (above > 0) + 0.5 * (above == 0)
    aurocs = wins.mean(axis=(1, 2))
    x, y = np.zeros((3, len(patients))), np.zeros((3, len(patients)))
    for row, patient in enumerate(patients):
        mine, others = patients_N[present] == patient, patients_N[absent] == patient
        x[:, row] = wins.mean(axis=2)[:, mine].sum(axis=1) - mine.sum() * aurocs
        y[:, row] = wins.mean(axis=1)[:, others].sum(axis=1) - others.sum() * aurocs
    num_x, num_y, num = len(set(patients_N[present])), len(set(patients_N[absent])), len(patients)
    s10 = num_x / ((num_x - 1) * num_present) * x @ x.T
    s01 = num_y / ((num_y - 1) * num_absent) * y @ y.T
    s11 = num / (num - 1) * x @ y.T
    return aurocs, s10 / num_present + s01 / num_absent + (s11 + s11.T) / (num_present * num_absent)


def test_copies_of_a_patients_studies_add_nothing_by_patient() -> None:
    rng = np.random.default_rng(9)
    scores, targets = binormal(rng, 50)
    thrice = np.repeat(np.arange(50), 3)
    one, copied = delong_interval(scores, targets), delong_interval(scores[thrice], targets[thrice], thrice)
    assert (copied.low, copied.high) == pytest.approx((one.low, one.high))
    naive = delong_interval(scores[thrice], targets[thrice])
    assert naive.standard_error == pytest.approx((one.standard_error or 0) / 3**0.5, rel=0.02)
    draws = [draw(patients, 1, 200) for patients in (np.arange(50), thrice)]
    samples = [one_label(targets), one_label(targets[thrice], thrice)]
    assert bootstrap(macro_auroc(samples[0]), scores[None, :, None], draws[0]) == bootstrap(
        macro_auroc(samples[1]), scores[None, thrice, None], draws[1]
    )


def test_only_the_order_of_scores_counts_and_seeds_are_averaged() -> None:
    rng = np.random.default_rng(10)
    scores, targets = binormal(rng, 80)
    seeds = scores + rng.normal(size=(3, 80))
    assert delong_interval(np.exp(seeds), targets) == delong_interval(seeds, targets)
    assert delong_interval(seeds[::-1], targets).low == pytest.approx(delong_interval(seeds, targets).low)
    one, twice = delong_interval(seeds[0], targets), delong_interval(seeds[[0, 0]], targets)
    assert (twice.value, twice.low) == pytest.approx((one.value, one.low))
    a, b = seeds[:2], np.stack([seeds[2], scores])
    found, turned = delong_difference(a, b, targets), delong_difference(b, a, targets)
    assert (found.value, found.p_value) == pytest.approx((-(turned.value or 0), turned.p_value))
    assert found.value == pytest.approx(np.mean(found.per_seed))


def test_delong_and_bootstrap_agree_on_the_error() -> None:
    scores, targets, patients = clustered(np.random.default_rng(11), 100, 3)
    draws = draw(patients, 1, 3000)
    by_draws = bootstrap(macro_auroc(one_label(targets, patients)), scores[None, :, None], draws)
    by_form = delong_interval(scores, targets, patients)
    assert by_draws.value == pytest.approx(by_form.value)
    assert by_draws.standard_error == pytest.approx(by_form.standard_error, rel=0.06)


def test_delong_intervals_cover_as_often_as_they_say() -> None:
    assert share_that_holds(lambda rng: delong_interval(*binormal(rng, 120)), AUROC, 1500) == pytest.approx(
        0.95, abs=0.018
    )

    def by_patient(rng: np.random.Generator) -> Interval:
        return delong_interval(*clustered(rng, 60, 4))

    def by_study(rng: np.random.Generator) -> Interval:
        return delong_interval(*clustered(rng, 60, 4)[:2])

    assert share_that_holds(by_patient, AUROC, 1000) == pytest.approx(0.95, abs=0.025)
    assert share_that_holds(by_study, AUROC, 500) < 0.8


def test_delong_p_values_are_uniform_where_there_is_no_difference() -> None:
    rng = np.random.default_rng(12)
    found = []
    for _ in range(1000):
        scores, targets = binormal(rng, 100)
        a, b = scores + rng.normal(size=(2, 100)), scores + rng.normal(size=(2, 100))
        found.append(delong_difference(a, b, targets).p_value)
    assert stats.kstest(np.array(found, dtype=np.float64), "uniform").pvalue > 0.01


def test_an_interval_stays_inside_zero_to_one() -> None:
    scores = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.45, 0.6, 0.7])
    found = delong_interval(scores, np.array([0, 0, 0, 0, 0, 1, 1, 1]))
    assert found.value is not None and found.low is not None and found.high is not None
    assert 0 < found.low < found.value < found.high < 1


# ---- what has no interval

ENDS = ("value", "low", "high", "standard_error")


def degenerate(targets: list[int], scores: list[float], patients: list[int]) -> list[Interval | Difference]:
    """All intervals and differences of one label and one seed: by draws first, in closed form behind."""
    targets_N, scores_N = np.array(targets, dtype=np.float64), np.array(scores, dtype=np.float64)
    patients_N = np.array(patients, dtype=np.int64)
    metric, draws = macro_auroc(one_label(targets_N, patients_N)), draw(patients_N, 1, 50)
    other = scores_N[::-1]
    a, b = (resampled(metric, each[None, :, None], draws) for each in (scores_N, other))
    note = metric.why_undefined(scores_N[:, None])
    return [
        bootstrap(metric, scores_N[None, :, None], draws),
        bootstrap_difference(metric, scores_N[None, :, None], other[None, :, None], draws),
        components_interval(a, note),
        components_difference(a, b, note),
        delong_interval(scores_N, targets_N, patients_N),
        delong_difference(scores_N, other, targets_N, patients_N),
    ]


@pytest.mark.parametrize(
    ("targets", "scores", "patients", "note"),
    [
        ([], [], [], "no study"),
        ([0, 0, 0], [0.1, 0.2, 0.3], [0, 1, 2], "one class only: 3 absent"),
        ([1, 1, 1], [0.1, 0.2, 0.3], [0, 1, 2], "one class only: 3 present"),
        ([0, 1, 0, 1], [0.1, np.nan, 0.3, 0.2], [0, 1, 2, 3], "scores are not finite"),
        ([0, 1, 0, 1], [0.1, 0.3, -np.inf, 0.2], [0, 1, 2, 3], "scores are not finite"),
    ],
)
def test_what_is_undefined_is_none_and_says_why(
    targets: list[int], scores: list[float], patients: list[int], note: str
) -> None:
    for found in degenerate(targets, scores, patients):
        assert [getattr(found, end) for end in ENDS] == [None] * 4
        assert (found.note, found.num_resamples) == (note, 0)
        if isinstance(found, Difference):
            assert (found.p_value, found.per_seed, found.z) == (None, (), None)


@pytest.mark.parametrize(
    ("targets", "scores", "patients", "notes"),
    [
        (
            [0, 1, 0, 1],
            [0.1, 0.2, 0.3, 0.4],
            [7, 7, 7, 7],
            ("one patient", "undefined in the resamples", "fewer than two patients in a class"),
        ),
        (
            [0, 1, 0, 1],
            [0.5, 0.5, 0.5, 0.5],
            [0, 1, 2, 3],
            ("no spread over the resamples", "no spread over the resamples", "variance is 0"),
        ),
    ],
)
def test_a_value_without_an_interval_says_why(
    targets: list[int], scores: list[float], patients: list[int], notes: tuple[str, str, str]
) -> None:
    found = degenerate(targets, scores, patients)
    for each, note in zip(found, np.repeat(notes, 2), strict=True):
        assert each.value is not None
        assert (each.low, each.high, each.standard_error, each.note) == (None, None, None, note)
        if isinstance(each, Difference):
            assert each.p_value is None and each.z is None and each.per_seed == (each.value,)


def test_perfect_scores_have_no_interval_and_an_experiment_does_not_differ_from_itself() -> None:
    targets = np.arange(20) % 2.0
    sample, draws = one_label(targets), draw(np.arange(20), 2, 200)
    perfect, noisy = np.stack([targets, targets])[:, :, None], np.random.default_rng(0).random((2, 20, 1))
    metric = macro_auroc(sample)
    assert bootstrap(metric, perfect, draws).note == "no spread over the resamples"
    assert delong_interval(perfect[:, :, 0], targets).note == "variance is 0"
    itself = bootstrap_difference(metric, noisy, noisy, draws)
    assert (itself.value, itself.low, itself.p_value, itself.note) == (
        0.0,
        None,
        None,
        "no spread over the resamples",
    )
    assert delong_difference(noisy[:, :, 0], noisy[:, :, 0], targets).note == "variance is 0"
    table = resampled(metric, noisy, draws)
    assert components_difference(table, table).note == "no spread over the resamples"
    flat = np.array([[0.1, 0.0, 0.2], [0.1, 0.2, 0.0]])  # two seeds that measure the same and move apart
    assert components_interval(flat).note == "variance is 0"


def test_resamples_without_a_class_are_left_out_and_counted() -> None:
    targets = np.array([1.0] + [0.0] * 9)
    found = bootstrap(
        macro_auroc(one_label(targets)), np.arange(10.0)[None, ::2, None].repeat(2, 1), draw(np.arange(10), 1)
    )
    assert found.low is not None and found.note is None
    assert found.num_resamples == pytest.approx(2000 * (1 - 0.9**10), abs=90)  # drawn at least once


def test_several_labels_say_what_they_lack_together() -> None:
    sample = Sample(np.array([[0, 1], [0, 1]]), np.ones((2, 2), bool), np.arange(2))
    draws, scores = draw(np.arange(2), 1, 10), np.full((1, 2, 2), 0.7)
    assert bootstrap(macro_auroc(sample), scores, draws).note == "no label with both classes"
    assert bootstrap(mean_accuracy(sample), scores, draws).note == "no label with both classes"
    frequent = "no label with 10 present and 10 absent studies"
    assert bootstrap(macro_auroc(sample, at_least=10), scores, draws).note == frequent
    both = Sample(np.array([[0, 1], [1, 0]]), np.ones((2, 2), bool), np.arange(2))
    assert bootstrap(mean_accuracy(both, (0.5, None)), scores, draws).note == "no threshold from validation"
    assert bootstrap(mean_accuracy(both), scores * np.nan, draws).note == "scores are not finite"
    unknown = Sample(sample.targets_NL, np.zeros((2, 2), bool), np.arange(2))
    assert bootstrap(mean_accuracy(unknown), scores, draws).note == "no study"
    assert bootstrap(macro_auroc(unknown), scores, draws).note == "no study"
    assert interval_of(np.full((1, 11), np.nan), draws).note == "undefined on these studies"
    assert bootstrap(macro_auroc(sample), scores[:0], draw(np.arange(2), 0, 10)).note == "no seed"


# ---- families


def test_holm_is_that_of_a_worked_example_and_leaves_out_what_is_undefined() -> None:
    assert holm([0.01, None, 0.04, 0.03, 0.005]) == pytest.approx((0.03, None, 0.06, 0.06, 0.02))
    assert holm([0.9, 0.8]) == (1.0, 1.0)
    assert holm([]) == ()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_lies_between_plain_and_bonferroni(p_values: list[float]) -> None:
    corrected = [each for each in holm(p_values) if each is not None]
    for plain, after in zip(p_values, corrected, strict=True):
        assert plain <= after <= min(1.0, plain * len(p_values))
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()
