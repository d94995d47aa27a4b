"""Metrics under weights are scikit-learn's, and those of copies."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, roc_auc_score

from cxr_hvd.stats import weighted
from cxr_hvd.stats.bootstrap import draw, resampled
from cxr_hvd.stats.sample import Sample
from cxr_hvd.stats.weighted import Accuracy, Auroc, Metric, auroc_of_weights, macro_auroc, mean_accuracy
from tests.helpers.samples import (
    a_sample,
)

pytestmark = pytest.mark.filterwarnings("error")


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
