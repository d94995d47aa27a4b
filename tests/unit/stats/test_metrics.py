"""Metrics are scikit-learn's where they are defined; where they are not they are None and say why."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve as curve_of_sklearn
from sklearn.metrics import average_precision_score, brier_score_loss, confusion_matrix, roc_auc_score

from cxr_hvd.stats.metrics import (
    SPECIFICITY,
    LabelMeans,
    LabelMetrics,
    calibration_curve,
    choose_thresholds,
    compute_metrics,
    is_present,
    why_no_interval,
)

pytestmark = pytest.mark.filterwarnings("error")

coarse_scores = st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=40)


def judged(
    scores: list[float], targets: list[int], thresholds: tuple[float | None, ...] | None = None
) -> LabelMetrics:
    """The metrics of one label that is known everywhere."""
    scores_NL = np.array(scores, dtype=np.float32)[:, None]
    targets_NL = np.array(targets, dtype=np.float32)[:, None]
    return compute_metrics(scores_NL, targets_NL, np.ones(scores_NL.shape, bool), ("a",), thresholds).labels[0]


def columns_of(pairs: list[tuple[int, bool]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scores in eighths, many of them equal, and targets."""
    scores, targets = zip(*pairs, strict=True)
    return np.array([score / 8 for score in scores], dtype=np.float32), np.array(targets, dtype=np.float32)


# ---- where defined


def test_metrics_are_those_of_scikit_learn_over_known_labels() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((50, 3)).astype(np.float32)
    targets = (rng.random((50, 3)) < 0.4).astype(np.float32)
    known = rng.random((50, 3)) < 0.7
    metrics = compute_metrics(scores, targets, known, ("a", "b", "c"))
    for column, label in enumerate(metrics.labels):
        at = known[:, column]
        assert label.auroc == roc_auc_score(targets[at, column], scores[at, column])
        assert label.average_precision == average_precision_score(targets[at, column], scores[at, column])
        assert label.brier == brier_score_loss(targets[at, column], scores[at, column])
        assert label.num_studies == at.sum()
        assert label.all_negative_accuracy == pytest.approx(1 - targets[at, column].mean())
        assert label.note is None
    for mean, name in {
        "macro_auroc": "auroc",
        "mean_accuracy": "accuracy",
        "mean_all_negative_accuracy": "all_negative_accuracy",
        "macro_average_precision": "average_precision",
        "mean_brier": "brier",
        "mean_sensitivity": "sensitivity_at_specificity",
    }.items():
        assert getattr(metrics, mean) == pytest.approx(np.mean([getattr(each, name) for each in metrics.labels]))
    assert metrics.note is None


@settings(deadline=None)
@given(coarse_scores)
def test_sensitivity_is_the_highest_that_enough_specificity_leaves(pairs: list[tuple[int, bool]]) -> None:
    scores, targets = columns_of(pairs)
    label = judged(scores.tolist(), targets.astype(int).tolist())
    if not 0 < targets.sum() < len(targets):
        assert label.sensitivity_at_specificity is None
        return
    reached = []
    for threshold in (*np.unique(scores).tolist(), 2.0):
        (true_absent, false_alarms), (missed, found) = confusion_matrix(targets == 1, scores >= threshold)
        if true_absent / (true_absent + false_alarms) >= SPECIFICITY:
            reached.append(found / (found + missed))
    assert label.sensitivity_at_specificity == pytest.approx(max(reached))


def test_a_specificity_that_is_met_exactly_is_enough() -> None:
    scores = [0.8, *(0.1 for _ in range(9)), 0.7, 0.05]  # one false alarm among ten
    assert judged(scores, [0] * 10 + [1, 1]).sensitivity_at_specificity == 0.5


def test_metrics_become_json_and_hold_no_nan() -> None:
    scores = np.array([[0.1, np.nan], [0.9, 0.5]], dtype=np.float32)
    metrics = compute_metrics(scores, np.eye(2, dtype=np.float32), np.ones((2, 2), bool), ("a", "b"))
    assert json.loads(json.dumps(asdict(metrics), allow_nan=False))["labels"][0]["auroc"] == 0.0


# ---- where undefined


def test_what_is_undefined_is_none_and_enters_no_mean() -> None:
    scores = np.array([[0.1, 0.2, 0.3], [0.9, 0.8, 0.7]], dtype=np.float32)
    targets = np.array([[0, 0, 0], [1, 0, 0]], dtype=np.float32)
    known = np.array([[True, True, False], [True, True, False]])
    metrics = compute_metrics(scores, targets, known, ("both", "one class", "unknown"))
    both, one_class, unknown = metrics.labels
    assert (both.auroc, both.accuracy, both.note) == (1.0, 1.0, None)
    assert (one_class.auroc, one_class.accuracy, one_class.note) == (None, 0.5, "one class only: 2 absent")
    assert (one_class.average_precision, one_class.sensitivity_at_specificity) == (None, None)
    assert one_class.brier == pytest.approx((0.2**2 + 0.8**2) / 2)
    assert (unknown.auroc, unknown.accuracy, unknown.all_negative_accuracy) == (None, None, None)
    assert (unknown.brier, unknown.expected_calibration_error, unknown.note) == (None, None, "no study")
    assert (metrics.macro_auroc, metrics.mean_accuracy, metrics.note) == (1.0, 1.0, None)
    assert metrics.mean_over == ("both",)


def test_one_class_alone_may_be_present() -> None:
    label = judged([0.5, 0.75], [1, 1])
    assert (label.auroc, label.accuracy, label.note) == (None, 1.0, "one class only: 2 present")
    assert label.brier == pytest.approx((0.5**2 + 0.25**2) / 2)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_worth_nothing(broken: float) -> None:
    scores = np.array([[0.1, broken], [0.9, 0.7], [0.2, 0.3]], dtype=np.float32)
    targets = np.array([[0, 0], [1, 1], [0, 0]], dtype=np.float32)
    known = np.ones((3, 2), bool)
    metrics = compute_metrics(scores, targets, known, ("good", "bad"), (0.5, 0.5))
    bad = metrics.labels[1]
    assert (bad.num_studies, bad.num_present, bad.threshold) == (3, 1, 0.5)
    assert bad.auroc is bad.accuracy is bad.all_negative_accuracy is bad.brier is bad.average_precision is None
    assert bad.expected_calibration_error is bad.sensitivity_at_specificity is bad.accuracy_at_threshold is None
    assert bad.note == "scores are not finite"
    assert metrics.mean_over == ("good", "bad")
    assert (metrics.macro_auroc, metrics.mean_accuracy) == (None, None), "over good alone it is another number"
    assert metrics.note == "scores are not finite: bad"
    assert choose_thresholds(scores, targets, known)[1] is None
    known[0, 1] = False  # then nobody asks for that score
    assert compute_metrics(scores, targets, known, ("good", "bad")).labels[1].auroc == 1.0


@settings(deadline=None)
@given(st.integers(0, 6), st.integers(0, 3), st.integers(0, 1 << 32), st.booleans())
def test_nothing_is_none_without_a_reason(num: int, num_labels: int, seed: int, with_thresholds: bool) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.choice([0.0, 0.25, 0.5, 1.0, np.nan], (num, num_labels), p=[0.3, 0.2, 0.2, 0.2, 0.1])
    targets = rng.integers(0, 2, (num, num_labels)).astype(np.float32)
    known = rng.random((num, num_labels)) < 0.8
    names = tuple("abc"[:num_labels])
    thresholds = choose_thresholds(scores, targets, known) if with_thresholds else None
    metrics = compute_metrics(scores, targets, known, names, thresholds)
    unasked = () if with_thresholds else ("threshold", "accuracy_at_threshold", "mean_accuracy_at_threshold")
    said: tuple[LabelMetrics | LabelMeans, ...] = (*metrics.labels, metrics, metrics.frequent)
    for each in said:
        values = {name: value for name, value in vars(each).items() if name not in ("note", *unasked)}
        if None in values.values():
            assert each.note
        elif isinstance(each, LabelMetrics):
            assert each.note is None


def test_a_set_without_a_study_or_without_a_label_has_no_metric() -> None:
    for shape, names in (((0, 2), ("a", "b")), ((3, 0), ())):
        metrics = compute_metrics(np.zeros(shape), np.zeros(shape, np.float32), np.ones(shape, bool), names)
        assert (metrics.num_studies, metrics.macro_auroc, metrics.note) == (shape[0], None, "no study")
        assert all(label.note == "no study" for label in metrics.labels)


MEANS = {
    "macro_auroc": "auroc",
    "mean_accuracy": "accuracy",
    "mean_all_negative_accuracy": "all_negative_accuracy",
    "macro_average_precision": "average_precision",
    "mean_brier": "brier",
    "mean_sensitivity": "sensitivity_at_specificity",
    "mean_accuracy_at_threshold": "accuracy_at_threshold",
}


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=5), st.integers(0, 1 << 32))
def test_all_means_of_a_row_are_over_one_set_of_labels(nums_present: list[int], seed: int) -> None:
    """Those with both classes; and, of these, those with ten studies of each class."""
    rng, num_labels = np.random.default_rng(seed), len(nums_present)
    scores = rng.random((40, num_labels)).astype(np.float32)
    targets = (np.arange(40)[:, None] < np.array(nums_present)).astype(np.float32)
    names = tuple("abcde"[:num_labels])
    metrics = compute_metrics(scores, targets, np.ones(scores.shape, bool), names, (0.4,) * num_labels)
    for means, least in ((metrics, 1), (metrics.frequent, 10)):
        chosen = [each for each in metrics.labels if least <= each.num_present <= 40 - least]
        assert means.mean_over == tuple(each.label for each in chosen)
        for mean, name in MEANS.items():
            values = [getattr(each, name) for each in chosen]
            assert getattr(means, mean) == (pytest.approx(np.mean(values)) if values else None)


@pytest.mark.parametrize(
    ("num_studies", "num_present", "why"),
    [
        (20, 10, None),
        (100, 9, "9 present, fewer than 10"),
        (100, 91, "9 absent, fewer than 10"),
        (100, 0, "0 present, fewer than 10"),
    ],
)
def test_a_label_with_few_studies_of_a_class_has_no_interval(num_studies: int, num_present: int, why: str) -> None:
    assert why_no_interval(num_studies, num_present) == why


# ---- thresholds


@settings(deadline=None)
@given(coarse_scores)
def test_no_threshold_has_more_right_answers_and_none_as_many_nearer_to_a_half(
    pairs: list[tuple[int, bool]],
) -> None:
    scores, targets = columns_of(pairs)
    (chosen,) = choose_thresholds(scores[:, None], targets[:, None], np.ones((len(scores), 1), bool))
    if not 0 < targets.sum() < len(targets):
        assert chosen is None
        return
    assert chosen is not None
    distinct = np.unique(scores.astype(np.float64))
    between = (distinct[:-1] + distinct[1:]) / 2
    accuracies = {each: np.mean(is_present(scores, each) == targets) for each in (-1.0, *between.tolist(), 2.0)}
    accuracy = np.mean(is_present(scores, chosen) == targets)
    assert accuracy == max(accuracies.values())
    assert chosen not in distinct or chosen == 0.0
    assert all(abs(chosen - 0.5) <= abs(each - 0.5) for each in accuracies if accuracies[each] == accuracy)


def test_thresholds_are_chosen_on_some_studies_and_judged_on_others() -> None:
    validation, truth = (
        np.array([[0.1], [0.2], [0.3], [0.4]], np.float32),
        np.array([[0], [0], [1], [1]], np.float32),
    )
    thresholds = choose_thresholds(validation, truth, np.ones((4, 1), bool))
    assert thresholds[0] == pytest.approx(0.25)
    label = judged([0.1, 0.26, 0.3, 0.2], [0, 0, 1, 1], thresholds)
    assert (label.threshold, label.accuracy, label.accuracy_at_threshold) == (thresholds[0], 0.5, 0.5)
    assert judged([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1], thresholds).accuracy_at_threshold == 1.0


def test_a_label_without_a_threshold_says_so_and_leaves_no_mean_over_the_others() -> None:
    scores, targets = np.array([[0.1, 0.1], [0.9, 0.9]], np.float32), np.array([[0, 0], [1, 1]], np.float32)
    metrics = compute_metrics(scores, targets, np.ones((2, 2), bool), ("a", "b"), (0.95, None))
    assert metrics.labels[1].note == "no threshold from validation"
    assert (metrics.mean_accuracy_at_threshold, metrics.mean_accuracy) == (None, 1.0)
    assert metrics.note == "no threshold from validation: b"
    none = compute_metrics(scores, targets, np.ones((2, 2), bool), ("a", "b"), (None, None))
    assert (none.mean_accuracy_at_threshold, none.note) == (None, "no threshold from validation: a, b")


def test_a_threshold_between_neighbours_in_float32_tells_them_apart() -> None:
    low = np.float32(0.3)
    high = np.nextafter(low, np.float32(1))
    scores, targets = np.array([low, high], np.float32), np.array([0, 1], np.float32)
    (threshold,) = choose_thresholds(scores[:, None], targets[:, None], np.ones((2, 1), bool))
    assert threshold is not None
    assert is_present(scores, threshold).tolist() == [False, True]
    assert judged(scores.tolist(), [0, 1], (threshold,)).accuracy_at_threshold == 1.0


# ---- calibration


def test_bins_are_those_of_scikit_learn_with_their_sizes() -> None:
    rng = np.random.default_rng(1)
    probabilities = rng.beta(0.5, 2, 300)
    targets = (rng.random(300) < probabilities).astype(np.float64)
    shares, means = curve_of_sklearn(targets, probabilities, n_bins=10)
    bins = calibration_curve(probabilities, targets)
    np.testing.assert_allclose([each[:2] for each in bins], np.stack([means, shares], axis=1))
    assert sum(count for _, _, count in bins) == 300


def test_calibration_error_is_the_mean_distance_over_studies() -> None:
    bins = calibration_curve(np.array([0.0, 0.05, 0.95, 1.0]), np.array([0.0, 1.0, 1.0, 1.0]))
    assert np.array(bins) == pytest.approx(np.array([(0.025, 0.5, 2), (0.975, 1.0, 2)]))
    assert judged([0.0, 0.05, 0.95, 1.0], [0, 1, 1, 1]).expected_calibration_error == pytest.approx(0.25)
    assert calibration_curve(np.empty(0), np.empty(0)) == []
