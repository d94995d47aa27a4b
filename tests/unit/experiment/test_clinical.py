"""What a journal asks of a set-up: operating points, recalibration, precision curves and subgroups of scores."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from cxr_hvd.experiment.clinical import average_precision_curve
from cxr_hvd.experiment.comparison import JudgedSetUp
from cxr_hvd.experiment.differences import compare_pair, resample_all
from cxr_hvd.experiment.judge import choose_site_thresholds, judge
from tests.helpers.scores import groups_of, runs_of, scores_of

NUM_RESAMPLES = 50


@pytest.fixture(scope="module")
def result() -> JudgedSetUp:
    runs = runs_of(D=[scores_of(seed, 0.25, num_test=400) for seed in (1, 2)])
    return judge(runs, "D", "north", runs.draw("north", 2, NUM_RESAMPLES))


def test_rates_are_at_the_thresholds_that_validation_chose(result: JudgedSetUp) -> None:
    scores = [scores_of(seed, 0.25, num_test=400) for seed in (1, 2)]
    runs = runs_of(D=scores)
    thresholds = choose_site_thresholds(runs, "D", "north")
    truth = scores[0].truth["north", "test"]
    for column, label in enumerate(result.labels):
        point = label.at_threshold
        assert point is not None
        assert point.thresholds == tuple(chosen[column] for chosen in thresholds)
        if None in point.thresholds or not label.num_studies:
            assert point.sensitivity.value is None and point.sensitivity.note
            continue
        for seed, threshold in enumerate(point.thresholds):
            called = scores[seed].probabilities["north", "north", "test"][:, column] >= threshold
            present = truth.targets_NL[:, column] == 1
            assert point.sensitivity.by_seed[seed] == pytest.approx(called[present].mean())
            assert point.specificity.by_seed[seed] == pytest.approx((~called)[~present].mean())
            if called.any():
                assert point.positive_predictive_value.by_seed[seed] == pytest.approx(present[called].mean())


def test_probabilities_of_noise_and_truth_are_not_calibrated(result: JudgedSetUp) -> None:
    label = result.labels[0]
    assert label.calibration_slope is not None and label.calibration_intercept is not None
    assert label.calibration_slope.low is not None and label.calibration_intercept.high is not None
    assert label.calibration_intercept.high < 0  # half of all probabilities, a third present
    assert result.labels[5].calibration_slope is not None and result.labels[5].calibration_slope.note == "no study"


def test_the_steps_of_a_precision_curve_have_the_average_precision_as_their_area() -> None:
    rng = np.random.default_rng(0)
    targets_N = (rng.random(3000) < 0.2).astype(np.float32)
    scores_SN = (0.3 * targets_N + 0.7 * rng.random((2, 3000))).astype(np.float32)
    curve = average_precision_curve(scores_SN, targets_N)
    expected = np.mean([average_precision_score(targets_N, scores_N) for scores_N in scores_SN])
    assert np.mean(curve.precision) == pytest.approx(expected, abs=0.01)
    assert curve.recall[0] == 0 and curve.recall[-1] == 1
    assert all(low <= mean <= high for low, mean, high in zip(curve.low, curve.precision, curve.high, strict=True))


def test_subgroups_are_judged_by_the_labels_with_enough_patients(result: JudgedSetUp) -> None:
    by_name = {(part.kind, part.name): part for part in result.subgroups}
    assert list(by_name) == [
        ("view", "frontal, PA"), ("view", "frontal, AP"), ("sex", "female"), ("sex", "male"),
        ("age", "0 to 17 years"), ("age", "18 to 39 years"), ("age", "40 to 64 years"),
    ]  # fmt: skip
    scores = scores_of(1, 0.25, num_test=400)
    truth, groups = scores.truth["north", "test"], groups_of(400)
    female = groups.sexes_N == 1
    part = by_name["sex", "female"]
    assert part.num_studies == female.sum() and part.num_patients == len(np.unique(truth.patients_N[female]))
    assert "No Finding" in [label.label for label in part.labels]
    areas = []
    for label in part.labels:
        column = [one.label for one in result.labels].index(label.label)
        expected = roc_auc_score(
            truth.targets_NL[female, column], scores.probabilities["north", "north", "test"][female, column]
        )
        assert label.auroc.by_seed[0] == pytest.approx(expected)
        assert label.auroc.low is not None and label.num_present == truth.targets_NL[female, column].sum()
        areas.append(expected)
    assert part.macro_auroc.by_seed[0] == pytest.approx(np.mean(areas))
    aurocs = {label.label: label.auroc.value for label in result.labels}
    assert part.all_studies_auroc == pytest.approx(np.mean([aurocs[label.label] or 0 for label in part.labels]))
    few = by_name["age", "0 to 17 years"]
    assert few.num_studies == 2 and not few.labels and few.macro_auroc.value is None
    assert few.macro_auroc.note == "no label with 10 patients with it and 10 without"


@pytest.mark.parametrize("num_seeds", [1, 2, 3])
def test_fewer_than_three_seeds_have_no_p_value_and_keep_their_interval(num_seeds: int) -> None:
    seeds = range(1, num_seeds + 1)
    runs = runs_of(C=[scores_of(seed, 0.1) for seed in seeds], D=[scores_of(seed, 0.3) for seed in seeds])
    pair, *_ = compare_pair(runs, "D", "C", "test", NUM_RESAMPLES, resample_all(runs, NUM_RESAMPLES))
    for difference in (pair.macro_auroc, pair.macro_auroc_bootstrap, pair.mean_accuracy, pair.labels[0].auroc):
        assert difference is not None and difference.low is not None
        assert (difference.p_value is None) == (num_seeds < 3)
