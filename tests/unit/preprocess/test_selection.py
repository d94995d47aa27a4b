"""Selection: disjoint by patient, exact counts, and independent of the order of rows."""

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_hvd.errors import DataError, UsageError
from cxr_hvd.study.layout import Split, View
from preprocess.drawn import drawn_path, repeat_drawn, write_drawn
from preprocess.identifiers import keyed_hash
from preprocess.parallel.blocks import IMAGES_PER_BLOCK, plan_blocks
from preprocess.records import ImageRecord, StudyRecord
from preprocess.selection import SHARES, select


def _studies(studies_of_patient: list[int], split: Split | None = None) -> list[StudyRecord]:
    image = ImageRecord(Path("x.jpg"), View.PA, "train.csv row 2")
    return [
        StudyRecord(f"p{patient}", f"p{patient}/s{study}", split, (math.nan,) * 14, (image,))
        for patient, num in enumerate(studies_of_patient)
        for study in range(num)
    ]


def _counts(train: int, validate: int, test: int) -> dict[Split, int]:
    return {Split.TRAIN: train, Split.VALIDATE: validate, Split.TEST: test}


patients = st.lists(st.integers(1, 5), min_size=12, max_size=60)


@given(patients, st.integers(0, 10**9), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_counts_are_exact_and_patients_keep_to_one_split(
    studies_of_patient: list[int], seed: int, train: int, validate: int, test: int
) -> None:
    counts = _counts(train, validate, test)
    chosen = select(_studies(studies_of_patient), seed, counts)
    assert {split: chosen.splits.count(split) for split in Split} == counts
    assert len({study.study_id for study in chosen.studies}) == len(chosen.studies)
    pairs = {(study.patient_id, split) for study, split in zip(chosen.studies, chosen.splits, strict=True)}
    assert len(pairs) == len({patient for patient, _ in pairs})


@given(st.lists(st.sampled_from(list(Split)), min_size=1, unique=True))
def test_a_split_without_a_count_stays_empty(wanted: list[Split]) -> None:
    counts = dict.fromkeys(wanted, 3)
    chosen = select(_studies([2] * 20), 0, counts)
    assert {split: chosen.splits.count(split) for split in set(chosen.splits)} == counts


@given(patients, st.integers(0, 10**9), st.randoms(use_true_random=False), st.booleans())
def test_the_order_of_rows_changes_nothing(
    studies_of_patient: list[int], seed: int, mixed: random.Random, counted: bool
) -> None:
    studies = _studies(studies_of_patient)
    counts = _counts(3, 2, 2) if counted else None
    assert select(mixed.sample(studies, len(studies)), seed, counts) == select(studies, seed, counts)


@given(patients, st.integers(0, 10**9))
def test_without_counts_every_study_is_chosen_once(studies_of_patient: list[int], seed: int) -> None:
    studies = _studies(studies_of_patient)
    chosen = select(studies, seed)
    assert sorted(study.study_id for study in chosen.studies) == sorted(study.study_id for study in studies)
    for split, share in SHARES.items():
        # Validation and test may each take one patient (here of 5 studies at most) too many.
        assert abs(chosen.splits.count(split) - share * len(studies)) <= 10


def test_more_training_studies_leave_validation_and_test_as_they_were() -> None:
    studies = _studies([2] * 40)
    few, many = (select(studies, 5, _counts(train, 7, 9)) for train in (10, 40))
    for split in (Split.VALIDATE, Split.TEST):
        held = [
            {study.study_id for study, other in zip(chosen.studies, chosen.splits, strict=True) if other is split}
            for chosen in (few, many)
        ]
        assert held[0] == held[1]


def test_another_seed_draws_others() -> None:
    studies = _studies([1] * 40)
    assert select(studies, 0, _counts(5, 5, 5)).studies != select(studies, 1, _counts(5, 5, 5)).studies


def test_the_sources_own_split_is_kept_where_it_has_all_three() -> None:
    studies = [study for offset, split in enumerate(Split) for study in _studies([1] * (offset + 1), split)]
    renamed = [
        StudyRecord(f"{study.split}{study.patient_id}", f"{index}", study.split, study.labels, study.images)
        for index, study in enumerate(studies)
    ]
    chosen = select(renamed, 0)
    assert chosen.rule == "the source's own"
    assert all(study.split is split for study, split in zip(chosen.studies, chosen.splits, strict=True))


def test_refusals() -> None:
    with pytest.raises(DataError, match="expected 10 studies for train of patients of its own, found 0: 10 short"):
        select(_studies([2] * 10), 0, _counts(10, 10, 10))
    with pytest.raises(DataError, match="none for validate"):
        select(_studies([1]), 0)
    with pytest.raises(UsageError, match="empty split"):
        select(_studies([2] * 10), 0, _counts(5, 0, 5))
    mixed = [*_studies([1], Split.TRAIN), *_studies([2, 1], Split.TEST)[1:], *_studies([0, 0, 1], Split.VALIDATE)]
    with pytest.raises(DataError, match="row's patient in two"):
        select(mixed, 0)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=200))
def test_blocks_cover_every_study_once_in_order_and_are_small(num_images: list[int]) -> None:
    blocks = plan_blocks(num_images)
    assert [index for block in blocks for index in block] == list(range(len(num_images)))
    held = [sum(num_images[index] for index in block) for block in blocks]
    assert all(IMAGES_PER_BLOCK <= images < IMAGES_PER_BLOCK + 20 for images in held[:-1])
    assert held[-1] < IMAGES_PER_BLOCK + 20


@pytest.mark.parametrize("counts", [None, _counts(4, 2, 3)])
def test_official_keeps_the_sources_split_and_random_does_not(counts: dict[Split, int] | None) -> None:
    studies = [
        replace(study, patient_id=f"{split}{study.patient_id}", study_id=f"{split}{study.study_id}")
        for split in Split
        for study in _studies([2] * 10, split)
    ]
    chosen = select(studies, 3, counts, "official")
    assert all(study.split is split for study, split in zip(chosen.studies, chosen.splits, strict=True))
    if counts is not None:
        assert {split: chosen.splits.count(split) for split in Split} == counts
    drawn = select(studies, 3, counts, "random")
    assert any(study.split is not split for study, split in zip(drawn.studies, drawn.splits, strict=True))


def test_official_without_a_test_split_says_so_and_wants_a_split_for_each_study() -> None:
    studies = [*_studies([1] * 5, Split.TRAIN), *[replace(_studies([1])[0], patient_id="v", split=Split.VALIDATE)]]
    chosen = select(studies, 0, None, "official")
    assert chosen.rule == "the source's own, which has no test" and set(chosen.splits) == {0, 1}
    with pytest.raises(DataError, match="leave out --split"):
        select(_studies([1] * 5), 0, None, "official")


def test_a_list_of_drawn_studies_gives_the_same_draw(tmp_path: Path) -> None:
    studies = _studies([2] * 20)
    hashed = keyed_hash(b"k" * 32)
    chosen = select(studies, 4, _counts(5, 3, 4))
    write_drawn(tmp_path / "a.h5", chosen, hashed)
    path = drawn_path(tmp_path / "a.h5")
    again = repeat_drawn(path, studies, hashed)
    assert (again.studies, again.splits) == (chosen.studies, chosen.splits)
    with pytest.raises(DataError, match="found 12 of 12 that it does not have under this site's key"):
        repeat_drawn(path, studies, keyed_hash(b"o" * 32))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[1]]))
    assert repeat_drawn(path, studies, hashed) == again
    study, patient, split = lines[1].split(",")
    other_patient = next(line.split(",")[1] for line in lines[2:] if line.split(",")[1] != patient)
    for text, message in (
        ("study,split\n", "expected the columns"),
        ("\n".join([*lines, f"{study},{patient},validate"]), "row 14: expected each study once"),
        ("\n".join([lines[0], f"{study},{other_patient},{split}"]), "row 2: expected the patient that the source"),
        ("\n".join([lines[0], "a,b"]), "row 2: expected a study, a patient and a split"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            repeat_drawn(path, studies, hashed)
