"""What a comparison says of runs: how good each set-up is, how set-ups differ, and what is undefined."""

import numpy as np
import pytest

from cxr_hvd.experiment.compare import judge_networks, judge_policies, list_notes
from cxr_hvd.experiment.comparison import SetUpDifference
from cxr_hvd.experiment.differences import MEAN_OF_SITES, choose_pairs, compare_pair, resample_all
from cxr_hvd.experiment.judge import judge
from cxr_hvd.experiment.scored_runs import ScoredRuns
from cxr_hvd.study.labels import LABELS
from tests.helpers.scores import SITES, runs_of, scores_of

NUM_RESAMPLES = 100


def differences_between(runs: ScoredRuns, a: str, b: str) -> list[SetUpDifference]:
    return compare_pair(runs, a, b, "test", NUM_RESAMPLES, resample_all(runs, NUM_RESAMPLES))


def test_better_scores_are_said_to_be_better_and_equal_ones_the_same() -> None:
    runs = runs_of(
        C=[scores_of(seed, 0.1) for seed in (1, 2, 3)], D=[scores_of(seed, 0.3) for seed in (1, 2, 3, 4)]
    )
    pairs = differences_between(runs, "D", "C")
    assert [pair.site for pair in pairs] == [*SITES, MEAN_OF_SITES]
    values = []
    for pair in pairs:
        auroc = pair.macro_auroc
        assert auroc.value is not None and auroc.low is not None
        assert auroc.value > 0.05 and auroc.low > 0 and len(auroc.by_seed) == 3
        values.append(auroc.value)
    assert values[2] == pytest.approx(np.mean(values[:2]))
    label = pairs[0].labels[0].auroc
    assert label.value is not None and label.value > 0 and label.p_value is not None
    never = pairs[0].labels[7].auroc
    assert never.value is None and "one class only" in (never.note or "")
    assert pairs[0].labels[5].auroc.note == "no study"
    same = differences_between(runs_of(C=[scores_of(1, 0.1)], D=[scores_of(1, 0.1)]), "D", "C")
    assert same[0].macro_auroc.value == 0
    assert list_notes(runs) == ["C has no run with seed 4; differences are over common seeds."]


def test_a_set_up_is_judged_with_words_where_nothing_is_defined() -> None:
    runs = runs_of(D=[scores_of(seed, 0.25) for seed in (1, 2)])
    draws = runs.draw("north", 2, NUM_RESAMPLES)
    result = judge(runs, "D", "north", draws)
    auroc, label = result.macro_auroc, result.labels[0]
    assert result.num_patients == 20 and result.num_studies == 40
    assert auroc.low is not None and auroc.value is not None and auroc.high is not None
    assert auroc.low < auroc.value < auroc.high
    assert np.mean(np.array(auroc.by_seed, dtype=float)) == pytest.approx(auroc.value)
    assert label.roc is not None and label.roc.true_positive[-1] == 1
    assert sum(num_studies for _, _, num_studies in label.calibration) == 2 * 40
    for column, word in ((5, "no study"), (7, "one class only")):
        label = result.labels[column]
        assert label.auroc.value is None and word in (label.note or "")
        assert label.roc is None

    empty = runs_of(D=[scores_of(1, 0.25, num_test=0)])
    result = judge(empty, "D", "north", empty.draw("north", 1, NUM_RESAMPLES))
    assert result.macro_auroc.value is None and result.macro_auroc.note == "no study"
    assert list_notes(empty)[0] == "north has no test studies: nothing can be said of it."
    differences_between(empty, "D", "D")
    judge_policies(empty, "D", "north", empty.draw("north", 1, NUM_RESAMPLES))

    lost = scores_of(1, 0.25)
    lost.probabilities["north", "north", "test"][:] = np.nan
    broken = runs_of(D=[lost])
    result = judge(broken, "D", "north", broken.draw("north", 1, NUM_RESAMPLES))
    assert result.macro_auroc.value is None and result.macro_auroc.note == "scores are not finite"


def test_labels_with_few_studies_of_a_class_have_counts_and_no_interval() -> None:
    """Neither do their differences, which have no p-value; means are said with and without them."""
    seeds = (1, 2, 3)
    runs = runs_of(C=[scores_of(seed, 0.1) for seed in seeds], D=[scores_of(seed, 0.25) for seed in seeds])
    result = judge(runs, "D", "north", runs.draw("north", 3, NUM_RESAMPLES))
    pair, *_, across = differences_between(runs, "D", "C")
    enough, both = [], []
    for label, row in zip(result.labels, pair.labels, strict=True):
        num_present, num_absent = label.num_present, label.num_studies - label.num_present
        bounds = [label.auroc.low, label.auroc.high, row.auroc.low, row.auroc.p_value]
        if min(num_present, num_absent) >= 10:
            enough.append(label.label)
            assert None not in bounds
        else:
            assert bounds == [None] * 4
        if min(num_present, num_absent) > 0:
            both.append(label.label)
            assert label.auroc.value is not None and row.auroc.value is not None
        if 0 < num_present < 10:
            assert label.auroc.note == row.auroc.note == f"{num_present} present, fewer than 10"
    assert 0 < len(enough) < len(both) < len(LABELS)
    assert result.mean_over == pair.mean_over == tuple(both)
    assert result.frequent.mean_over == pair.frequent.mean_over == tuple(enough)
    aurocs = {label.label: label.auroc.value for label in result.labels}
    accuracies = {label.label: label.accuracy.value for label in result.labels}
    for means, names in ((result, both), (result.frequent, enough)):
        for mean, of_label in ((means.macro_auroc, aurocs), (means.mean_accuracy, accuracies)):
            assert mean.value == pytest.approx(np.mean([of_label[name] or 0.0 for name in names]))
    assert pair.frequent.macro_auroc.p_value is not None
    assert across.site == MEAN_OF_SITES and across.frequent.macro_auroc.low is not None


def test_policies_and_matrix_name_every_network_and_the_one_outside() -> None:
    runs = runs_of(C=[scores_of(1, 0.1, networks=("common",))], D=[scores_of(1, 0.25)])
    draws = runs.draw("north", 1, NUM_RESAMPLES)
    at_site = judge_policies(runs, "D", "north", draws)
    assert [row.policy for row in at_site] == ["own", "of south", "averaged weights", "ensemble"]
    outside = judge_policies(runs, "D", "east", runs.draw("east", 1, NUM_RESAMPLES))
    assert [row.policy for row in outside] == ["of north", "of south", "averaged weights", "ensemble"]
    assert judge_policies(runs, "C", "north", draws) == []
    common = judge_policies(runs, "C", "east", runs.draw("east", 1, NUM_RESAMPLES))
    assert [row.policy for row in common] == ["common"]
    # Two independent guessers together guess better than each of them.
    values = {row.policy: row.macro_auroc.value or 0.0 for row in at_site}
    assert values["ensemble"] > max(values["own"], values["of south"])
    assert [(row.network, row.site) for row in judge_networks(runs, "C")] == [
        ("common", name) for name in (*SITES, "east")
    ]
    assert len(judge_networks(runs, "D")) == 9


def test_the_studys_pairs_come_first_and_variants_meet_each_of_the_four() -> None:
    assert choose_pairs(["A", "B", "C", "D"]) == [("D", "C"), ("D", "B"), ("D", "A"), ("C", "A"), ("B", "A")]
    assert choose_pairs(["C", "D", "D-head"]) == [("D", "C"), ("D-head", "C"), ("D-head", "D")]
    assert choose_pairs(["one", "two"]) == [("two", "one")]
    assert choose_pairs(["D"]) == []
