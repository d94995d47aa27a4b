"""Estimates of many networks in closed form: those of the definition, of one label, and of the bootstrap."""

import numpy as np
import pytest
from numpy.typing import NDArray

from cxr_hvd.stats.bootstrap import draw, resampled
from cxr_hvd.stats.clustered import (
    columns_with_patients,
    joint_accuracy,
    joint_auroc,
    joint_brier,
    merged_histogram,
)
from cxr_hvd.stats.delong import auroc_covariance
from cxr_hvd.stats.intervals import components_difference, covariance_difference
from cxr_hvd.stats.metrics import compute_metrics
from cxr_hvd.stats.sample import Floats, Sample, Scores
from cxr_hvd.stats.weighted import Metric, auroc_of_weights, macro_auroc, mean_accuracy

pytestmark = pytest.mark.filterwarnings("error")


def networks(num_networks: int = 4, num_studies: int = 300, num_labels: int = 3) -> tuple[Sample, Scores]:
    """Scores (K, N, L) of networks that agree on much, with ties, of patients with several studies."""
    rng = np.random.default_rng(4)
    patients = rng.integers(0, num_studies // 3, num_studies) * 7 - 3
    targets = (rng.random((num_studies, num_labels)) < 0.3).astype(np.float32)
    known = rng.random(targets.shape) < 0.8
    common = rng.random(targets.shape) + 0.5 * rng.random(num_studies)[:, None]
    scores = 0.3 * targets + common + 0.3 * rng.random((num_networks, *targets.shape))
    return Sample(targets, known, patients), np.round(scores / scores.max(), 2).astype(np.float32)


def test_one_label_is_delongs_covariance_by_patients() -> None:
    sample, scores = networks()
    known = sample.known_NL[:, 1]
    aurocs, covariance = auroc_covariance(
        scores[:, known, 1], sample.targets_NL[known, 1], sample.patients_N[known]
    )
    found = joint_auroc(scores, sample, (1,))
    np.testing.assert_allclose(found.values_K, aurocs, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.covariance_KK, covariance, rtol=1e-10, atol=1e-16)


def slopes(metric: Metric, scores: Scores, patients: NDArray[np.int64], where: NDArray[np.bool_]) -> Floats:
    """How the metric moves with the weight of each patient's studies: (K, C), by trying it."""
    codes, step = np.unique(patients, return_inverse=True)[1], 1e-6
    is_moved = (np.arange(codes.max() + 1)[:, None] == codes) & where
    weights = np.concatenate([1 + step * is_moved, 1 - step * is_moved])
    values = np.stack([metric(scores_NL, weights) for scores_NL in scores])
    above, below = np.split(values, 2, axis=1)
    return (above - below) / (2 * step)


def test_means_over_labels_are_those_of_the_definition() -> None:
    """What a patient adds is what the metric gains with its weight; each class has the factor of its patients."""
    sample, scores = networks()
    metric = macro_auroc(sample)
    num_patients = len(np.unique(sample.patients_N))

    def factor(num: int) -> float:
        return num / (num - 1)

    total = slopes(metric, scores, sample.patients_N, np.ones(len(sample.patients_N), bool))
    expected = factor(num_patients) * total @ total.T
    for target in (0, 1):
        above_K = np.zeros_like(total)
        for column in range(3):
            known = sample.known_NL[:, column]
            in_class = known & (sample.targets_NL[:, column] == target)
            more = factor(len(np.unique(sample.patients_N[in_class]))) - factor(num_patients)

            def one_label(scores_NL: Scores, weights: Floats, column: int = column) -> Floats:
                known = sample.known_NL[:, column]
                return auroc_of_weights(
                    scores_NL[known, column], sample.targets_NL[known, column], weights[:, known]
                )

            above_K += more**0.5 * slopes(one_label, scores, sample.patients_N, in_class) / 3  # type: ignore[arg-type]
        expected += above_K @ above_K.T
    found = joint_auroc(scores, sample, (0, 1, 2))
    np.testing.assert_allclose(found.values_K, [metric(one, np.ones((1, 300)))[0] for one in scores], atol=1e-12)
    np.testing.assert_allclose(found.covariance_KK, expected, rtol=1e-5)
    assert np.linalg.eigvalsh(found.covariance_KK).min() >= -1e-15


def test_accuracy_and_brier_are_those_of_the_definition() -> None:
    sample, scores = networks()
    num_patients = len(np.unique(sample.patients_N))
    accuracy = joint_accuracy(scores, sample, (0, 1, 2))
    parts = slopes(mean_accuracy(sample), scores, sample.patients_N, np.ones(300, bool))
    np.testing.assert_allclose(
        accuracy.covariance_KK, num_patients / (num_patients - 1) * parts @ parts.T, rtol=1e-5
    )
    names = ("a", "b", "c")
    metrics = [compute_metrics(one, sample.targets_NL, sample.known_NL, names) for one in scores]
    brier = joint_brier(scores, sample, (0, 1, 2))
    np.testing.assert_allclose(accuracy.values_K, [one.mean_accuracy for one in metrics], atol=1e-12)
    np.testing.assert_allclose(brier.values_K, [one.mean_brier for one in metrics], atol=1e-7)
    single = Sample(sample.targets_NL, np.ones_like(sample.known_NL), np.arange(300))
    errors_KN = ((scores.astype(float) - sample.targets_NL) ** 2).mean(axis=2)
    np.testing.assert_allclose(joint_brier(scores, single, (0, 1, 2)).covariance_KK, np.cov(errors_KN) / 300)


def test_differences_have_the_bootstraps_standard_errors_without_its_draws() -> None:
    sample, scores = networks(num_networks=6)
    draws = draw(sample.patients_N, 3, num_resamples=6000)
    for metric, joint in (
        (macro_auroc(sample), joint_auroc(scores, sample, (0, 1, 2))),
        (mean_accuracy(sample), joint_accuracy(scores, sample, (0, 1, 2))),
    ):
        one, other = (resampled(metric, part, draws) for part in (scores[:3], scores[3:]))
        by_draws = components_difference(one, other)
        contrast = np.concatenate([np.eye(3), -np.eye(3)], axis=1)
        found = covariance_difference(contrast @ joint.values_K, contrast @ joint.covariance_KK @ contrast.T)
        assert found.value == pytest.approx(by_draws.value, abs=1e-12)
        assert found.standard_error == pytest.approx(by_draws.standard_error, rel=0.05)
        table = np.cov(np.concatenate([one, other])[:, 1:])
        np.testing.assert_allclose(np.diag(joint.covariance_KK), np.diag(table), rtol=0.1)


def test_labels_of_few_patients_are_none() -> None:
    """Twenty present studies of nine patients are too few; of ten they are not."""
    targets = np.zeros((60, 1), dtype=np.float32)
    targets[:20] = 1
    known = np.ones_like(targets, bool)
    for num_patients, expected in ((9, ()), (10, (0,))):
        patients = np.concatenate([np.arange(20) % num_patients, np.arange(40) + 100])
        assert columns_with_patients(Sample(targets, known, patients)) == expected
    known[25:] = False
    assert columns_with_patients(Sample(targets, known, np.arange(60))) == ()


def test_no_cell_of_a_histogram_holds_few_patients() -> None:
    rng = np.random.default_rng(2)
    scores, patients = np.append(rng.beta(1, 6, 400), 1.0), np.append(np.repeat(np.arange(100), 4), 7)
    counts = merged_histogram(scores, patients)
    assert counts.sum() == 401 and len(counts) == 20 and counts[-1] >= 10
    start = 0
    for end in np.flatnonzero(counts):
        in_cell = (scores * 20 >= start) & ((scores * 20 < end + 1) | (end == 19))
        assert counts[end] == in_cell.sum() and len(np.unique(patients[in_cell])) >= 10
        start = end + 1
    assert not merged_histogram(scores[:36], patients[:36]).any()  # nine patients
