"""What is undefined is None and says why, in every kind of interval."""

import numpy as np
import pytest

from cxr_hvd.stats.bootstrap import bootstrap, draw, interval_of, resampled
from cxr_hvd.stats.delong import delong_difference
from cxr_hvd.stats.intervals import components_difference
from cxr_hvd.stats.sample import Difference, Interval, Sample
from cxr_hvd.stats.weighted import macro_auroc, mean_accuracy
from tests.helpers.samples import (
    bootstrap_difference,
    one_label,
)

pytestmark = pytest.mark.filterwarnings("error")


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
        components_difference(a, b, note),
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
            assert (found.p_value, found.per_seed) == (None, ())


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
    for each, note in zip(found, (notes[0], *notes), strict=True):
        assert each.value is not None
        assert (each.low, each.high, each.standard_error, each.note) == (None, None, None, note)
        if isinstance(each, Difference):
            assert each.p_value is None and each.per_seed == (each.value,)


def test_perfect_scores_have_no_interval_and_an_experiment_does_not_differ_from_itself() -> None:
    targets = np.arange(20) % 2.0
    sample, draws = one_label(targets), draw(np.arange(20), 2, 200)
    perfect, noisy = np.stack([targets, targets])[:, :, None], np.random.default_rng(0).random((2, 20, 1))
    metric = macro_auroc(sample)
    assert bootstrap(metric, perfect, draws).note == "no spread over the resamples"
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
    assert components_difference(flat, np.zeros_like(flat)).note == "variance is 0"


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
