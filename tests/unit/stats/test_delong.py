"""DeLong's covariance is that of the definition and of the published example; intervals cover by patients."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from cxr_hvd.stats.bootstrap import bootstrap, draw
from cxr_hvd.stats.delong import auroc_covariance, delong_difference
from cxr_hvd.stats.sample import Difference, Floats
from cxr_hvd.stats.weighted import macro_auroc
from tests.helpers.samples import (
    SHIFT,
    binormal,
    bootstrap_difference,
    clustered,
    one_label,
    share_that_holds,
)

pytestmark = pytest.mark.filterwarnings("error")


# DeLong et al. 1988, the 43 patients with all three tests: albumin, total protein, K-G score, and the outcome.
ALBUMIN = """3.0 3.2 3.9 2.8 3.2 0.9 2.5 1.6 3.8 3.7 3.2 3.8 4.1 3.6 4.3 3.6 2.3 4.2 4.0 3.5 3.8 3.0 4.5 3.7 3.1
    4.1 4.3 4.3 3.2 2.6 3.3 1.7 3.7 3.3 4.2 3.5 2.9 2.1 2.8 4.0 3.3 3.7 3.6"""
PROTEIN = """5.8 6.3 6.8 4.8 5.8 4.0 5.7 5.6 5.7 6.7 5.4 6.6 6.6 5.7 7.0 6.7 4.4 7.6 6.6 5.8 6.8 4.7 7.4 7.4 6.6
    8.2 7.0 6.5 5.1 4.7 6.8 4.0 6.1 6.3 7.7 6.2 5.7 4.8 6.2 7.0 5.7 6.9 6.6"""
KG_SCORE = "10 5 3 6 3 5 8 5 5 6 4 6 5 5 4 4 6 4 6 6 7 8 5 5 6 6 5 4 5 6 6 7 5 7 6 5 9 7 8 7 6 5 5"
OUTCOME = "0 1 1 0 1 0 0 1 1 1 1 1 1 1 1 0 1 0 0 1 1 0 1 1 1 1 1 1 1 1 0 0 1 1 1 1 0 1 0 1 1 1 1"


def numbers(text: str) -> Floats:
    return np.array(text.split(), dtype=np.float64)


def test_a_published_example_is_met() -> None:
    targets = numbers(OUTCOME)
    albumin, protein, kg = numbers(ALBUMIN), numbers(PROTEIN), -numbers(KG_SCORE)
    aurocs, covariance = auroc_covariance(np.stack([albumin, protein, kg]), targets)
    np.testing.assert_allclose(aurocs, [0.7366, 0.6478, 0.7258], atol=5e-5)
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), [0.0927, 0.1000, 0.1028], atol=5e-5)
    found = delong_difference(protein, kg, targets)
    assert (found.value, found.standard_error) == pytest.approx((-0.0780, 0.1046), abs=5e-5)
    assert (found.low, found.high) == pytest.approx((-0.2830, 0.1271), abs=5e-5)
    assert found.value is not None and found.standard_error is not None
    assert (found.value / found.standard_error) ** 2 == pytest.approx(0.5554, abs=5e-5)
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
    other = scores + rng.normal(size=50)
    thrice = np.repeat(np.arange(50), 3)
    one = delong_difference(scores, other, targets)
    copied = delong_difference(scores[thrice], other[thrice], targets[thrice], thrice)
    assert (copied.low, copied.high) == pytest.approx((one.low, one.high))
    naive = delong_difference(scores[thrice], other[thrice], targets[thrice])
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
    a, b = seeds[:2], np.stack([seeds[2], scores])
    found, turned = delong_difference(a, b, targets), delong_difference(b, a, targets)
    assert delong_difference(np.exp(a), np.exp(b), targets) == found
    assert delong_difference(a[::-1], b[::-1], targets).low == pytest.approx(found.low)
    one, twice = delong_difference(a[0], b[0], targets), delong_difference(a[[0, 0]], b[[0, 0]], targets)
    assert (twice.value, twice.low) == pytest.approx((one.value, one.low))
    assert (found.value, found.p_value) == pytest.approx((-(turned.value or 0), turned.p_value))
    assert found.value == pytest.approx(np.mean(found.per_seed))


def test_delong_and_bootstrap_agree_on_the_error() -> None:
    rng = np.random.default_rng(11)
    scores, targets, patients = clustered(rng, 100, 3)
    draws = draw(patients, 1, 3000)
    by_draws = bootstrap(macro_auroc(one_label(targets, patients)), scores[None, :, None], draws)
    aurocs, covariance = auroc_covariance(scores[None], targets, patients)
    assert by_draws.value == pytest.approx(aurocs[0])
    assert by_draws.standard_error == pytest.approx(covariance[0, 0] ** 0.5, rel=0.06)
    other = scores + 0.5 * rng.normal(size=len(scores))
    by_form = delong_difference(scores, other, targets, patients)
    drawn = bootstrap_difference(
        macro_auroc(one_label(targets, patients)), scores[None, :, None], other[None, :, None], draws
    )
    assert drawn.value == pytest.approx(by_form.value)
    assert drawn.standard_error == pytest.approx(by_form.standard_error, rel=0.06)


def test_delong_intervals_cover_as_often_as_they_say() -> None:
    """By patients where studies of one resemble each other; by studies they are too short."""

    def interval(rng: np.random.Generator, by_patient: bool) -> Difference:
        scores, targets, patients = clustered(rng, 60, 4)
        common, single = rng.normal(size=60)[patients], rng.normal(size=len(patients))
        other = 0.8**0.5 * common + 0.2**0.5 * single + SHIFT * targets
        return delong_difference(scores, other, targets, patients if by_patient else None)

    assert share_that_holds(lambda rng: interval(rng, True), 0.0, 1000) == pytest.approx(0.95, abs=0.025)
    assert share_that_holds(lambda rng: interval(rng, False), 0.0, 500) < 0.8


def test_delong_p_values_are_uniform_where_there_is_no_difference() -> None:
    rng = np.random.default_rng(12)
    found = []
    for _ in range(1000):
        scores, targets = binormal(rng, 100)
        a, b = scores + rng.normal(size=(2, 100)), scores + rng.normal(size=(2, 100))
        found.append(delong_difference(a, b, targets).p_value)
    assert stats.kstest(np.array(found, dtype=np.float64), "uniform").pvalue > 0.01
