"""Draws are pure and fair, and bootstrap intervals cover as often as they say."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from cxr_hvd.errors import UsageError
from cxr_hvd.stats.bootstrap import bootstrap, difference, draw, interval_of, resampled
from cxr_hvd.stats.delong import delong_difference
from cxr_hvd.stats.intervals import components_difference
from cxr_hvd.stats.sample import Interval
from cxr_hvd.stats.weighted import Accuracy, macro_auroc
from tests.helpers.samples import (
    AUROC,
    SHIFT,
    a_sample,
    binormal,
    bootstrap_difference,
    clustered,
    mean_over_seeds,
    one_label,
    share_that_holds,
)

pytestmark = pytest.mark.filterwarnings("error")


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


def test_resamples_without_a_class_are_left_out_and_counted() -> None:
    targets = np.array([1.0] + [0.0] * 9)
    found = bootstrap(
        macro_auroc(one_label(targets)), np.arange(10.0)[None, ::2, None].repeat(2, 1), draw(np.arange(10), 1)
    )
    assert found.low is not None and found.note is None
    assert found.num_resamples == pytest.approx(2000 * (1 - 0.9**10), abs=90)  # drawn at least once
