"""Scores on disk, the runs that are compared, and what is said of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from cxr_hvd.config.file import parse_config
from cxr_hvd.config.schema import Config
from cxr_hvd.errors import CheckpointError, ConfigError, CxrHvdError, UsageError
from cxr_hvd.experiment.compare import (
    MEAN_OF_SITES,
    differences_of,
    matrix_of,
    notes_of,
    pairs_of,
    policies_of,
    tables_of,
)
from cxr_hvd.experiment.judge import draws_of, judge
from cxr_hvd.experiment.scored_runs import ScoredRun, ScoredRuns, check_alike, load_runs, name_of
from cxr_hvd.experiment.scores import NAME, Origin, Scores, Truth, config_digest, read_scores, write_scores
from cxr_hvd.experiment.variants import choose_variants, configure, private_of
from cxr_hvd.stats.sample import Sample
from cxr_hvd.study.labels import LABELS
from cxr_hvd.training.validation import share_of
from lab.launch import PROJECT

SITES = ("north", "south")
NUM_RESAMPLES = 100


def truth_of(num_studies: int, seed: int) -> Truth:
    rng = np.random.default_rng(seed)
    known_NL = np.ones((num_studies, len(LABELS)), dtype=bool)
    known_NL[:, 5] = False
    targets_NL = (rng.random(known_NL.shape) < 0.3).astype(np.float32) * known_NL
    targets_NL[:, 7] = 0  # never present
    return Truth(targets_NL, known_NL, np.arange(num_studies) // 2)


def scores_of(
    seed: int, skill: float, networks: tuple[str, ...] = (*SITES, "averaged"), num_test: int = 40
) -> Scores:
    """Scores that follow the truth by so much, at two sites and one outside."""
    rng = np.random.default_rng(seed)
    names = (*SITES, "east")
    truth = {
        (name, split): truth_of(num, number)
        for number, name in enumerate(names)
        for split, num in (("test", num_test), ("validate", 20))
    }
    probabilities = {}
    for network in networks:
        for place, known in truth.items():
            noise_NL = rng.random(known.targets_NL.shape)
            probabilities[network, *place] = (skill * known.targets_NL + (1 - skill) * noise_NL).astype(np.float32)
    digests = dict.fromkeys(names, "0" * 64)
    origin = Origin("D", seed, 10, "latest", LABELS, SITES, ("east",), networks, "1" * 64, digests)
    return Scores(origin, truth, probabilities)


def runs_of(**scores: list[Scores]) -> ScoredRuns:
    of_name = {name: [ScoredRun(name, Path(name), each) for each in own] for name, own in scores.items()}
    check_alike(of_name)
    first = next(iter(of_name.values()))[0].scores
    samples = {
        place: Sample(each.targets_NL, each.known_NL, each.patients_N) for place, each in first.truth.items()
    }
    return ScoredRuns(of_name, samples)


def differences_between(runs: ScoredRuns, a: str, b: str) -> list[dict[str, Any]]:
    return differences_of(runs, a, b, "test", NUM_RESAMPLES, tables_of(runs, NUM_RESAMPLES))


# ---- scores on disk


def test_scores_are_read_back_as_they_were(tmp_path: Path) -> None:
    scores = scores_of(1, 0.25)
    write_scores(tmp_path / NAME, scores)
    found = read_scores(tmp_path / NAME)
    assert found.origin == scores.origin
    assert found.truth.keys() == scores.truth.keys() and found.probabilities.keys() == scores.probabilities.keys()
    for place, truth in scores.truth.items():
        pairs = zip(vars(truth).values(), vars(found.truth[place]).values(), strict=True)
        assert all(np.array_equal(one, other) for one, other in pairs)
    assert all(np.array_equal(found.probabilities[place], each) for place, each in scores.probabilities.items())
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_damaged_scores_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / NAME
    write_scores(path, scores_of(1, 0.25))
    whole = path.read_bytes()
    for damaged in (
        b"",
        whole[:100],
        whole[: len(whole) // 2],
        b"x" * 1000,
        whole.replace(b'"schema', b'"schemb'),
    ):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="expected scores of schema 2"):
            read_scores(path)
    path.write_bytes(whole.replace(b'schema\\": 2', b'schema\\": 3'))
    with pytest.raises(CheckpointError, match="expected scores of schema 2"):
        read_scores(path)
    with pytest.raises(CheckpointError, match="found none"):
        load_runs([tmp_path / "nowhere"])


def forged(path: Path, changes: dict[str, Any], **tensors: Any) -> Path:
    """Write scores whose header or tensors say something else."""
    write_scores(path, scores_of(1, 0.25))
    with safe_open(path, "numpy") as file:
        said = json.loads(file.metadata()["origin"]) | changes
        held = {name: file.get_tensor(name) for name in list(file.keys())} | tensors
    origin = changes.get("all", json.dumps(said))
    save_file({name: each for name, each in held.items() if each is not None}, path, metadata={"origin": origin})
    return path


FORGERIES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"sites": []}, {}),
    ({"sites": ["north", "../south"]}, {}),
    ({"sites": [*SITES, SITES[0]]}, {}),
    ({"label_names": []}, {}),
    ({"label_names": "Edema"}, {}),
    ({"label_names": ["\x1b[2J"]}, {}),
    ({"step": float("inf")}, {}),
    ({"seed": "one"}, {}),
    ({"networks": ["west"]}, {}),
    ({"networks": [SITES[0]]}, {}),
    ({"data_sha256": {}}, {}),
    ({"all": "[" * 100_000}, {}),
    ({"all": "null"}, {}),
    ({}, {"patients_N/east/test": None}),
    ({}, {"probabilities/averaged/east/test": None}),
    ({}, {"targets_NL/east/test": np.full((40, len(LABELS)), 7, np.float32)}),
    ({}, {"patients_N/east/test": np.zeros(40, np.float32)}),
    ({}, {"probabilities/averaged/east/test": np.full((40, len(LABELS)), 7, np.float32)}),
    ({}, {"probabilities/averaged/east/test": np.zeros((40, 1), np.float32)}),
]


@pytest.mark.parametrize(("changes", "tensors"), FORGERIES)
def test_scores_of_strange_content_are_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any], tensors: dict[str, Any]
) -> None:
    path = forged(tmp_path / NAME, changes, **tensors)
    with pytest.raises(CheckpointError) as caught:
        load_runs([tmp_path])
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_runs_of_other_studies_labels_or_seeds_are_not_compared() -> None:
    with pytest.raises(CheckpointError, match="expected one run of D for each seed, found \\[1, 1\\]"):
        runs_of(D=[scores_of(1, 0.25), scores_of(1, 0.3)])
    with pytest.raises(CheckpointError, match="found others"):
        runs_of(C=[scores_of(1, 0.25)], D=[scores_of(1, 0.25, num_test=30)])
    with pytest.raises(CheckpointError, match="two set-ups"):
        runs_of(D=[scores_of(1, 0.25), scores_of(2, 0.25, networks=("common",))])


def test_a_run_is_named_by_its_set_up() -> None:
    assert name_of(Path("/runs/real/D-head/seed-3")) == "D-head"
    assert name_of(Path("/runs/D")) == "D"


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
def test_ranks_judge_each_study_once_in_the_batches_of_one_rank(num_ranks: int) -> None:
    num_images = np.random.default_rng(0).integers(1, 12, size=50).astype(np.uint8)
    shares = [share_of(num_images, 4, rank, num_ranks) for rank in range(num_ranks)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(50))
    whole = share_of(num_images, 4, 0, 1)
    batches = {tuple(whole[start : start + 4]) for start in range(0, 50, 4)}
    for own in shares:
        # A rank orders its share once more, as `predict` does, and finds the same batches.
        again = own[share_of(num_images[own], 4, 0, 1)]
        assert {tuple(again[start : start + 4]) for start in range(0, len(again), 4)} <= batches


# ---- what is said


def test_better_scores_are_said_to_be_better_and_equal_ones_the_same() -> None:
    runs = runs_of(
        C=[scores_of(seed, 0.1) for seed in (1, 2, 3)], D=[scores_of(seed, 0.3) for seed in (1, 2, 3, 4)]
    )
    found = differences_between(runs, "D", "C")
    assert [each["site"] for each in found] == [*SITES, MEAN_OF_SITES]
    for each in found:
        told = each["macro_auroc"]
        assert told["value"] > 0.05 and told["low"] > 0 and len(told["by_seed"]) == 3
    values = [each["macro_auroc"]["value"] for each in found]
    assert values[2] == pytest.approx(np.mean(values[:2]))
    label = found[0]["labels"][0]["auroc"]
    assert label["value"] > 0 and label["p_value"] is not None
    never = found[0]["labels"][7]["auroc"]
    assert never["value"] is None and "one class only" in never["note"]
    assert found[0]["labels"][5]["auroc"]["note"] == "no study"
    same = differences_between(runs_of(C=[scores_of(1, 0.1)], D=[scores_of(1, 0.1)]), "D", "C")
    assert same[0]["macro_auroc"]["value"] == 0
    assert notes_of(runs) == ["C has no run with seed 4; differences are over common seeds."]


def test_a_set_up_is_judged_with_words_where_nothing_is_defined() -> None:
    runs = runs_of(D=[scores_of(seed, 0.25) for seed in (1, 2)])
    draws = draws_of(runs, "north", 2, NUM_RESAMPLES)
    told = judge(runs, "D", "north", draws)
    assert told["num_patients"] == 20 and told["num_studies"] == 40
    assert told["macro_auroc"]["low"] < told["macro_auroc"]["value"] < told["macro_auroc"]["high"]
    assert np.mean(told["macro_auroc"]["by_seed"]) == pytest.approx(told["macro_auroc"]["value"])
    assert told["labels"][0]["roc"]["true_positive"][-1] == 1
    assert sum(point[2] for point in told["labels"][0]["calibration"]) == 2 * 40
    for column, word in ((5, "no study"), (7, "one class only")):
        assert told["labels"][column]["auroc"]["value"] is None and word in told["labels"][column]["note"]
        assert told["labels"][column]["roc"] is None

    empty = runs_of(D=[scores_of(1, 0.25, num_test=0)])
    told = judge(empty, "D", "north", draws_of(empty, "north", 1, NUM_RESAMPLES))
    assert told["macro_auroc"]["value"] is None and told["macro_auroc"]["note"] == "no study"
    assert notes_of(empty)[0] == "north has no test studies: nothing can be said of it."
    differences_between(empty, "D", "D")
    policies_of(empty, "D", "north", draws_of(empty, "north", 1, NUM_RESAMPLES))

    lost = scores_of(1, 0.25)
    lost.probabilities["north", "north", "test"][:] = np.nan
    broken = runs_of(D=[lost])
    told = judge(broken, "D", "north", draws_of(broken, "north", 1, NUM_RESAMPLES))
    assert told["macro_auroc"]["value"] is None and told["macro_auroc"]["note"] == "scores are not finite"


def test_labels_with_few_studies_of_a_class_have_counts_and_no_interval() -> None:
    """Neither do their differences, which have no p-value; means are said with and without them."""
    runs = runs_of(C=[scores_of(seed, 0.1) for seed in (1, 2)], D=[scores_of(seed, 0.25) for seed in (1, 2)])
    told = judge(runs, "D", "north", draws_of(runs, "north", 2, NUM_RESAMPLES))
    found = differences_between(runs, "D", "C")[0]
    enough, both = [], []
    for label, pair in zip(told["labels"], found["labels"], strict=True):
        num_present, num_absent = label["num_present"], label["num_studies"] - label["num_present"]
        bounds = [label["auroc"]["low"], label["auroc"]["high"], pair["auroc"]["low"], pair["auroc"]["p_value"]]
        if min(num_present, num_absent) >= 10:
            enough.append(label["label"])
            assert None not in bounds
        else:
            assert bounds == [None] * 4
        if min(num_present, num_absent) > 0:
            both.append(label["label"])
            assert label["auroc"]["value"] is not None and pair["auroc"]["value"] is not None
        if 0 < num_present < 10:
            assert label["auroc"]["note"] == pair["auroc"]["note"] == f"{num_present} present, fewer than 10"
    assert 0 < len(enough) < len(both) < len(LABELS)
    for one in (told, found):
        assert one["mean_over"] == both and one["frequent"]["mean_over"] == enough
    for name in ("macro_auroc", "mean_accuracy"):
        per_label = {each["label"]: each[name.split("_")[1]]["value"] for each in told["labels"]}
        assert told[name]["value"] == pytest.approx(np.mean([per_label[label] for label in both]))
        assert told["frequent"][name]["value"] == pytest.approx(np.mean([per_label[label] for label in enough]))
    assert found["frequent"]["macro_auroc"]["p_value"] is not None
    across = differences_between(runs, "D", "C")[-1]
    assert across["site"] == MEAN_OF_SITES and across["frequent"]["macro_auroc"]["low"] is not None


def test_policies_and_matrix_name_every_network_and_the_one_outside() -> None:
    runs = runs_of(C=[scores_of(1, 0.1, networks=("common",))], D=[scores_of(1, 0.25)])
    draws = draws_of(runs, "north", 1, NUM_RESAMPLES)
    own = policies_of(runs, "D", "north", draws)
    assert [each["policy"] for each in own] == ["own", "of south", "averaged weights", "ensemble"]
    outside = policies_of(runs, "D", "east", draws_of(runs, "east", 1, NUM_RESAMPLES))
    assert [each["policy"] for each in outside] == ["of north", "of south", "averaged weights", "ensemble"]
    assert policies_of(runs, "C", "north", draws) == []
    common = policies_of(runs, "C", "east", draws_of(runs, "east", 1, NUM_RESAMPLES))
    assert [each["policy"] for each in common] == ["common"]
    # Two independent guessers together guess better than each of them.
    values = {each["policy"]: each["macro_auroc"]["value"] for each in own}
    assert values["ensemble"] > max(values["own"], values["of south"])
    assert [(each["network"], each["site"]) for each in matrix_of(runs, "C")] == [
        ("common", name) for name in (*SITES, "east")
    ]
    assert len(matrix_of(runs, "D")) == 9


def test_the_studys_pairs_come_first_and_variants_meet_each_of_the_four() -> None:
    assert pairs_of(["A", "B", "C", "D"]) == [("D", "C"), ("D", "B"), ("D", "A"), ("C", "A"), ("B", "A")]
    assert pairs_of(["C", "D", "D-head"]) == [("D", "C"), ("D-head", "C"), ("D-head", "D")]
    assert pairs_of(["one", "two"]) == [("two", "one")]
    assert pairs_of(["D"]) == []


# ---- variants


@pytest.fixture
def common(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(
        "experiment: D\nsites: {north: {data: n.h5}, south: {data: s.h5}}\nsharing: {private: stem+head}\n"
    )
    return path


def test_the_private_set_of_the_common_config_is_that_of_d_alone(common: Path, tmp_path: Path) -> None:
    file = tmp_path / "variants.yaml"
    file.write_text("D-head: {experiment: D, sharing.private: head}\nfast: {experiment: C, sharing.every: 4}\n")
    chosen = choose_variants([], file)
    assert [each.name for each in chosen] == ["A", "B", "C", "D", "D-head", "fast"]
    configs = {each.name: configure(common, [], each, steps_per_epoch=7) for each in chosen}
    private = {name: private_of(config) for name, config in configs.items()}
    assert private == {
        "A": "all",
        "B": "none",
        "C": "none",
        "D": "stem+head",
        "D-head": "head",
        "fast": "none",
    }
    assert {config.training.steps_per_epoch for config in configs.values()} == {7}
    assert configs["fast"].sharing.every == 4
    assert len({config_digest(config) for config in configs.values()}) == 6


def test_every_variant_that_we_ship_fits_its_config() -> None:
    for path in sorted((PROJECT / "jobs" / "variants").glob("*.yaml")):
        chosen = choose_variants([], path)
        assert len(chosen) > 4
        for variant in chosen:
            configure(PROJECT / "jobs" / "configs" / path.name, [], variant, steps_per_epoch=5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A: {experiment: A}", "not A to D"),
        ("../x: {experiment: A}", "expected a name of letters"),
        ("x: [1]", "expected {experiment: D"),
        ("x: {sharing.private: head}", "expected {experiment: D"),
        ("- x", "expected a mapping"),
    ],
)
def test_what_is_no_variant_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "variants.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        choose_variants([], tmp_path / "variants.yaml")


def test_a_variant_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "variants.yaml").write_text("D-head: {experiment: D}")
    with pytest.raises(UsageError, match=r"no variant 'D-haed'.*did you mean 'D-head'"):
        choose_variants(["D-haed"], tmp_path / "variants.yaml")


def test_a_variant_that_does_not_fit_its_experiment_is_refused(common: Path, tmp_path: Path) -> None:
    (tmp_path / "variants.yaml").write_text("x: {experiment: C, sharing.private: head}\ny: {experiment: Z}")
    for variant in choose_variants(["x", "y"], tmp_path / "variants.yaml"):
        with pytest.raises(CxrHvdError):
            configure(common, [], variant)


def test_the_digest_of_a_config_does_not_know_where_the_data_is() -> None:
    def config(data: str, seed: int) -> Config:
        return parse_config({"experiment": "D", "seed": seed, "sites": {"a": {"data": data}}}, "test")

    assert config_digest(config("/a.h5", 1)) == config_digest(config("/b.h5", 1))
    assert config_digest(config("/a.h5", 1)) != config_digest(config("/a.h5", 2))
