"""Closed forms over patients and seeds: equal to brute force and scikit-learn, and they cover what they should."""

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, roc_auc_score

from cxr_hvd.stats.areas import area_components, columns_with_patients, mean_area
from cxr_hvd.stats.clusters import area_interval, share_interval, variance_of_mean
from cxr_hvd.stats.delong import auroc_covariance
from cxr_hvd.stats.operating_points import operating_point
from cxr_hvd.stats.recalibration import recalibrate
from cxr_hvd.stats.sample import Sample

RNG = np.random.default_rng(0)


def drawn(
    num: int, seed: int, shift: float = 1.2, per_patient: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores (1, N), targets and patients; studies of one patient share most of their score."""
    rng = np.random.default_rng(seed)
    patients_N = np.repeat(np.arange(num // per_patient), per_patient)
    targets_N = (rng.random(num // per_patient) < 0.35).astype(float)[patients_N]
    common_N = rng.standard_normal(num // per_patient)[patients_N]
    raw_N = 1.2 * targets_N + 0.9 * common_N + 0.43 * rng.standard_normal(num) - 0.7
    return expit(raw_N)[None], targets_N, patients_N


def test_rates_are_those_of_the_confusion_matrix() -> None:
    scores_SN, targets_N, patients_N = drawn(300, 1)
    point = operating_point(scores_SN, targets_N, patients_N, [0.4])
    tn, fp, fn, tp = confusion_matrix(targets_N, scores_SN[0] >= 0.4).ravel()
    rates = {
        "sensitivity": tp / (tp + fn),
        "specificity": tn / (tn + fp),
        "positive_predictive_value": tp / (tp + fp),
        "negative_predictive_value": tn / (tn + fn),
    }
    for name, expected in rates.items():
        rate = getattr(point, name)
        assert rate.interval.value == pytest.approx(expected) and rate.by_seed == (pytest.approx(expected),)
        assert rate.interval.low < expected < rate.interval.high
    # One study a patient, one seed: Wilson's interval of so many studies, but for n / (n - 1).
    from scipy.stats import binomtest

    wilson = binomtest(int(tp), int(tp + fn)).proportion_ci(method="wilson")
    interval = point.sensitivity.interval
    assert (interval.low, interval.high) == pytest.approx((wilson.low, wilson.high), abs=2e-3)


def test_copies_of_studies_leave_intervals_over_patients_as_they_are() -> None:
    scores_SN, targets_N, patients_N = drawn(200, 2)
    twice = [np.concatenate([values, values], axis=-1) for values in (scores_SN, targets_N, patients_N)]
    for one, two in ((operating_point(scores_SN, targets_N, patients_N, [0.4]), operating_point(*twice, [0.4])),):
        for name in vars(one):
            assert getattr(one, name).interval.low == pytest.approx(getattr(two, name).interval.low)
    one, two = recalibrate(scores_SN, targets_N, patients_N), recalibrate(*twice)
    assert one.slope[0].low == pytest.approx(two.slope[0].low) and one.intercept[0].high == pytest.approx(
        two.intercept[0].high
    )


def test_the_variance_of_a_rate_is_the_jackknifes() -> None:
    scores_SN, targets_N, patients_N = drawn(240, 3, per_patient=3)
    rate = operating_point(scores_SN, targets_N, patients_N, [0.4]).positive_predictive_value.interval
    called_N = scores_SN[0] >= 0.4
    left_out = []
    for patient in np.unique(patients_N):
        counted_N = called_N & (patients_N != patient)
        left_out.append(targets_N[counted_N].mean())
    num = len(left_out)
    jackknife = ((num - 1) / num * np.square(np.array(left_out) - np.mean(left_out)).sum()) ** 0.5
    assert rate.standard_error == pytest.approx(jackknife, rel=0.05)


@pytest.mark.parametrize(("per_patient", "true"), [(1, "independent"), (4, "clustered")])
def test_intervals_of_rates_cover_them(per_patient: int, true: str) -> None:
    """Also where studies of one patient are alike, which an interval over studies would miss."""
    large = drawn(200_000, 9)
    called = large[0][0] >= 0.4
    sensitivity, predictive = called[large[1] == 1].mean(), large[1][called].mean()
    hits, trials = np.zeros(2), np.zeros(2)
    for seed in range(200):
        point = operating_point(*drawn(160, 100 + seed, per_patient=per_patient), [0.4])
        for place, (rate, value) in enumerate(
            ((point.sensitivity, sensitivity), (point.positive_predictive_value, predictive))
        ):
            interval = rate.interval
            if interval.low is not None:  # ten patients or more
                trials[place] += 1
                hits[place] += interval.low <= value <= interval.high
    assert (trials > 150).all() and (hits / trials > 0.90).all(), (true, hits, trials)


def test_what_has_no_rate_or_no_interval_says_why() -> None:
    scores_SN, targets_N, patients_N = drawn(60, 4)
    none = operating_point(scores_SN, targets_N, patients_N, [None])
    assert none.sensitivity.interval.note == "no threshold from validation"
    above = operating_point(scores_SN, targets_N, patients_N, [2.0])
    assert above.positive_predictive_value.interval.note == "no study called present"
    assert above.sensitivity.interval.value == 0 and 0 < (above.sensitivity.interval.high or 0) < 0.3
    few = np.zeros(60)
    few[:4] = 1
    point = operating_point(scores_SN, few, patients_N, [0.4])
    assert point.sensitivity.interval.note == "4 patients with it, fewer than 10"
    assert point.sensitivity.interval.value is not None and point.specificity.interval.low is not None
    empty = operating_point(scores_SN[:, :0], targets_N[:0], patients_N[:0], [0.4])
    assert empty.sensitivity.interval.note == "no study"
    lost = operating_point(scores_SN * np.nan, targets_N, patients_N, [0.4])
    assert lost.sensitivity.interval.note == "scores are not finite"


def test_slope_and_intercept_are_those_of_logistic_regressions() -> None:
    scores_SN, targets_N, patients_N = drawn(400, 5)
    found = recalibrate(scores_SN, targets_N, patients_N)
    logits = logit(scores_SN[0])[:, None]
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logits, targets_N)
    assert found.slope[0].value == pytest.approx(model.coef_[0, 0], abs=1e-4)
    value = found.intercept[0].value
    assert value is not None
    # With the slope held at 1 the mean of what is expected is the share of what is there.
    assert expit(value + logits).mean() == pytest.approx(targets_N.mean(), abs=1e-6)
    # Where each patient has one study and the model holds, the sandwich is near the inverse of the information.
    expected = expit(value + logits[:, 0])
    assert found.intercept[0].standard_error == pytest.approx((expected * (1 - expected)).sum() ** -0.5, rel=0.2)


def test_known_miscalibration_is_found_and_covered() -> None:
    hits = np.zeros(2)
    for seed in range(200):
        rng = np.random.default_rng(seed)
        true_N = rng.normal(-0.5, 1.2, 300)
        targets_N = (rng.random(300) < expit(true_N)).astype(float)
        found = recalibrate(expit(2 * true_N)[None], targets_N, np.arange(300))
        hits[0] += found.slope[0].low <= 0.5 <= found.slope[0].high
        moved = recalibrate(expit(true_N + 0.4)[None], targets_N, np.arange(300))
        hits[1] += moved.intercept[0].low <= -0.4 <= moved.intercept[0].high
    assert (hits / 200 > 0.90).all(), hits


@pytest.mark.parametrize(
    ("scores", "note"),
    [
        ([0.1, 0.2, 0.8, 0.9], "the classes do not overlap"),
        ([0.9, 0.8, 0.2, 0.1], "the classes do not overlap"),
        ([0.5] * 4, "all probabilities are equal"),
        ([np.nan] * 4, "scores are not finite"),
    ],
)
def test_what_has_no_slope_says_why(scores: list[float], note: str) -> None:
    targets_N = np.repeat([0.0, 0.0, 1.0, 1.0], 20)
    found = recalibrate(np.repeat(scores, 20)[None], targets_N, np.arange(80))
    assert found.slope[0].value is None and found.slope[0].note == note
    one_class = recalibrate(np.full((1, 5), 0.3), np.zeros(5), np.arange(5))
    assert one_class.intercept[0].note == "one class only: 5 absent"
    saturated = recalibrate(np.array([[0.0, 1.0] * 40]), np.tile([0.0, 1.0, 1.0, 0.0], 20), np.arange(80))
    assert saturated.slope[0].value == pytest.approx(0, abs=1e-6)


def test_areas_are_scikit_learns_and_their_errors_delongs() -> None:
    scores_SN, targets_N, patients_N = drawn(300, 6, per_patient=2)
    areas_S, components_SN = area_components(scores_SN, targets_N)
    assert areas_S[0] == pytest.approx(roc_auc_score(targets_N, scores_SN[0]))
    sample = Sample(targets_N[:, None], np.ones((300, 1), bool), patients_N)
    interval, by_seed = mean_area(sample, scores_SN[:, :, None], (0,), np.ones(300, bool))
    _, covariance = auroc_covariance(scores_SN, targets_N, patients_N)
    assert interval.value == by_seed[0] == pytest.approx(areas_S[0])
    assert interval.standard_error == pytest.approx(covariance[0, 0] ** 0.5, rel=0.02)
    assert abs(components_SN.sum()) < 1e-9


def test_a_mean_of_areas_in_a_part_of_the_studies_is_that_of_the_part() -> None:
    rng = np.random.default_rng(7)
    targets_NL = (rng.random((200, 3)) < 0.4).astype(float)
    targets_NL[:, 2] = 0
    scores_SNL = expit(targets_NL + rng.standard_normal((2, 200, 3)))
    is_member_N = rng.random(200) < 0.5
    known_NL = rng.random((200, 3)) < 0.9
    sample = Sample(targets_NL, known_NL, np.arange(200) // 2)
    columns = columns_with_patients(sample, is_member_N)
    assert columns == (0, 1)
    interval, by_seed = mean_area(sample, scores_SNL, columns, is_member_N)
    for seed in range(2):
        areas = [
            roc_auc_score(targets_NL[rows, column], scores_SNL[seed, rows, column])
            for column in columns
            for rows in [is_member_N & known_NL[:, column]]
        ]
        assert by_seed[seed] == pytest.approx(np.mean(areas))
    assert interval.low is not None and interval.high is not None and interval.low < interval.value < interval.high
    nothing, _ = mean_area(sample, scores_SNL, (), is_member_N)
    assert nothing.note == "no label with 10 patients with it and 10 without"


def test_intervals_of_areas_cover_them_with_ten_patients_a_class() -> None:
    from scipy.stats import norm

    true, hits = norm.cdf(1.2 / 2**0.5), 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        targets_N = np.repeat([1.0, 0.0], [10, 40])
        scores_SN = (rng.standard_normal(50) + 1.2 * targets_N)[None]
        areas_S, components_SN = area_components(scores_SN, targets_N)
        interval = area_interval(areas_S, components_SN)
        hits += interval.low is not None and interval.low <= true <= interval.high
    assert hits / 200 > 0.90, hits


def test_seeds_that_differ_as_a_whole_widen_an_interval() -> None:
    influences_SP = np.tile(RNG.standard_normal(50) / 500, (3, 1))
    alike, freedom = variance_of_mean(np.full(3, 0.8), influences_SP)
    spread, few = variance_of_mean(np.array([0.7, 0.8, 0.9]), influences_SP)
    assert freedom == np.inf and few < 3 and spread > alike
    assert alike == pytest.approx(variance_of_mean(np.array([0.8]), influences_SP[:1])[0])
    wide = share_interval(np.array([0.7, 0.8, 0.9]), influences_SP, 50, 50)
    narrow = share_interval(np.full(3, 0.8), influences_SP, 50, 50)
    assert wide.low < narrow.low < 0.8 < narrow.high < wide.high <= 1
