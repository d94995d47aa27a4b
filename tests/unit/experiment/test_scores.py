"""Scores on disk: read back as they were, refused where damaged, compared only where they are alike."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from cxr_hvd.config.file import parse_config
from cxr_hvd.config.schema import Config, config_digest
from cxr_hvd.errors import CheckpointError
from cxr_hvd.experiment.scored_runs import load_runs, name_of
from cxr_hvd.experiment.scores import NAME, read_scores, write_scores
from cxr_hvd.study.labels import LABELS
from cxr_hvd.training.validation import share_of
from tests.helpers.scores import SITES, runs_of, scores_of


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
    assert found.groups.keys() == scores.groups.keys() == {*SITES, "east"}
    for site, groups in scores.groups.items():
        pairs = zip(vars(groups).values(), vars(found.groups[site]).values(), strict=True)
        assert all(np.array_equal(one, other) for one, other in pairs)
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
        with pytest.raises(CheckpointError, match="expected scores of schema 3"):
            read_scores(path)
    path.write_bytes(whole.replace(b'schema\\": 3', b'schema\\": 4'))
    with pytest.raises(CheckpointError, match="expected scores of schema 3"):
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
    ({}, {"views_N/east/test": None}),
    ({}, {"ages_N/east/test": np.zeros(3, np.uint8)}),
    ({}, {"ages_N/east/test": np.zeros(40, np.float32)}),
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


def test_scores_of_schema_2_are_read_and_know_no_groups(tmp_path: Path) -> None:
    kinds = [f"{kind}_N/{site}/test" for kind in ("views", "sexes", "ages") for site in (*SITES, "east")]
    path = forged(tmp_path / NAME, {"schema": 2}, **dict.fromkeys(kinds))
    assert read_scores(path).groups == {} and load_runs([tmp_path]).groups("north") is None


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


def test_the_digest_of_a_config_does_not_know_where_the_data_is() -> None:
    def config(data: str, seed: int) -> Config:
        return parse_config({"experiment": "D", "seed": seed, "sites": {"a": {"data": data}}}, "test")

    assert config_digest(config("/a.h5", 1)) == config_digest(config("/b.h5", 1))
    assert config_digest(config("/a.h5", 1)) != config_digest(config("/a.h5", 2))


def test_the_digest_of_a_config_is_that_of_version_0_1_0_where_later_keys_have_their_defaults() -> None:
    def config(**model: object) -> Config:
        return parse_config({"experiment": "D", "sites": {"a": {"data": "/a.h5"}}, "model": model}, "test")

    before = "a4709329b5c343a71e6fc699569f20414053cf8161f683e7bd18974cb4cf72c6"
    assert config_digest(config()) == before
    assert config_digest(config(norm="batch", weights=None, freeze=[])) == before
    others = [config(norm="group"), config(weights="a.pt"), config(freeze=["stem"])]
    assert len({before, *map(config_digest, others)}) == 4
