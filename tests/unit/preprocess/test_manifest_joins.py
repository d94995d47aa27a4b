"""Several tables by one YAML: joined labels, lists of splits, folders, and a row for each reader."""

from pathlib import Path

import pytest

from cxr_hvd.errors import ConfigError, DataError
from cxr_hvd.study.layout import Split
from preprocess.records import StudyListing
from tests.helpers.manifests import VINDR_LABELS, given_labels, present_labels, read_manifest
from tests.helpers.synthetic import write_csv, write_jpeg


def test_uncertain_readers_are_no_absence(tmp_path: Path) -> None:
    rows = [["id", "E"], ["a", "-1"], ["a", "-1"], ["a", "0"], ["b", "-1"], ["c", ""], ["c", "0"]]
    write_csv(tmp_path / "t.csv", rows)
    (tmp_path / "y.yaml").write_text(MAJORITY)
    assert [given_labels(study) for study in read_manifest(tmp_path, tmp_path / "y.yaml").studies] == [
        {"Edema": -1},
        {"Edema": -1},
        {"Edema": 0},
    ]


MAJORITY = (
    "tables: {t.csv: {readers: majority}}\npatient: id\nstudy: id\nimages: {file: '{id}.jpg'}\n"
    "labels: {columns: {Edema: E}}\n"
)

JOINED = """patient: p
study: s
images: {file: "{f}"}
labels: {columns: {Edema: e}}
"""


def _joined(folder: Path, images: str, labels: str, yaml: str = "") -> StudyListing:
    folder.mkdir(exist_ok=True)
    (folder / "t.csv").write_text(images)
    (folder / "labels.csv").write_text(labels)
    (folder / "y.yaml").write_text(JOINED + "join: {table: labels.csv, on: s}\n" + yaml)
    return read_manifest(folder / "t.csv", folder / "y.yaml")


def test_equal_rows_of_a_joined_table_are_dropped_and_counted_and_others_refused(tmp_path: Path) -> None:
    images = "p,s,f\n1,1,a.jpg\n1,2,b.jpg\n"
    once = _joined(tmp_path, images, "s,e\n1,1\n2,0\n")
    twice = _joined(tmp_path, images, "s,e\n1,1\n2,0\n2,0\n1,1.0\n")
    assert (once.num_duplicates, twice.num_duplicates) == (0, 2) and once.studies == twice.studies
    with pytest.raises(DataError, match=r"labels\.csv row 4: expected the labels of labels\.csv row 2.* same 's'"):
        _joined(tmp_path, images, "s,e\n1,1\n2,0\n1,0\n")


def test_blank_cells_of_two_tables_are_no_match(tmp_path: Path) -> None:
    rows = [["id", "s", "f"], *[[str(n), str(n), f"{n}.jpg"] for n in range(3)], ["3", "", "3.jpg"]]
    write_csv(tmp_path / "t.csv", rows)
    write_csv(tmp_path / "labels.csv", [["s", "e"], ["0", "1"], ["1", "0"], ["2", "0"], ["", "1"]])
    (tmp_path / "y.yaml").write_text(
        JOINED.replace("study: s", "study: id").replace("patient: p", "patient: id")
        + "join: {table: labels.csv, on: s}\n"
    )
    listing = read_manifest(tmp_path / "t.csv", tmp_path / "y.yaml")
    assert (len(listing.studies), listing.num_unlabelled) == (3, 1)


@pytest.mark.parametrize("matching", [0, 1, 2])
def test_a_join_that_matches_half_or_nothing_fails_with_the_first_row(tmp_path: Path, matching: int) -> None:
    images = "p,s,f\n" + "".join(f"{n},10{n},{n}.jpg\n" for n in range(4))
    labels = "s,e\n" + "".join(f"10{n}{'' if n < matching else '.0'},1\n" for n in range(4))
    message = rf"t\.csv row {2 + matching}: expected its 's' in labels\.csv too.*: {4 - matching} of 4 studies"
    with pytest.raises(DataError, match=message) as caught:
        _joined(tmp_path, images, labels)
    assert "set --max-unlabelled" in str(caught.value) and "10" + str(matching) not in str(caught.value)
    if not matching:
        assert "(ids like '999' here and '999.9' there)" in str(caught.value)


LISTED = JOINED + "split: {lists: {a.txt: train, b.txt: test, c.txt: train}}\n"


def test_an_image_in_lists_of_two_splits_is_refused_and_in_two_of_one_it_is_fine(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("p,s,f,e\n1,1,a.jpg,1\n2,2,b.jpg,1\n")
    (tmp_path / "y.yaml").write_text(LISTED)
    for name, lines in {"a.txt": "a.jpg\na.jpg\n", "b.txt": "b.jpg\n", "c.txt": "a.jpg\n"}.items():
        (tmp_path / name).write_text(lines)
    studies = read_manifest(tmp_path / "t.csv", tmp_path / "y.yaml").studies
    assert [study.split for study in studies] == [Split.TRAIN, Split.TEST]
    (tmp_path / "b.txt").write_text("b.jpg\na.jpg\n")
    with pytest.raises(
        DataError, match=r"b\.txt line 2: expected each image in the lists of one split.* in a\.txt too"
    ):
        read_manifest(tmp_path / "t.csv", tmp_path / "y.yaml")


def test_a_table_under_two_names_is_read_once_or_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("p,s,f,e\n1,1,a.jpg,1\n")
    for other, is_refused in (("train", False), ("test", True)):
        (tmp_path / "y.yaml").write_text(
            f"tables: {{t.csv: {{split: train}}, ./t.csv: {{split: {other}}}}}\n{JOINED}"
        )
        if is_refused:
            with pytest.raises(
                ConfigError, match="expected each table once, found it under two names that differ"
            ):
                read_manifest(tmp_path, tmp_path / "y.yaml")
        else:
            listing = read_manifest(tmp_path, tmp_path / "y.yaml")
            assert (len(listing.studies), listing.num_duplicates) == (1, 0)


def test_each_reader_counts_once_and_does_not_contradict_himself(tmp_path: Path) -> None:
    header = ["image_id", "rad_id", *VINDR_LABELS.split(",")]

    def cells(image: str, reader: str, name: str) -> list[str]:
        return [image, reader, *["1" if label == name else "0" for label in header[2:]]]

    write_csv(tmp_path / "annotations" / "image_labels_test.csv", [["image_id", *header[2:]]])
    rows = [header, cells("aa", "R1", "Edema"), cells("aa", "R2", "Pneumonia"), cells("aa", "R3", "Pneumonia")]
    repeated = [*rows, cells("aa", "R1", "Edema"), cells("aa", "R1", "Edema")]
    for folder in ("train", "test"):
        (tmp_path / folder).mkdir()
    for given, num_duplicates in ((rows, 0), (repeated, 2)):
        write_csv(tmp_path / "annotations" / "image_labels_train.csv", given)
        listing = read_manifest(tmp_path, "vindr-cxr")
        assert present_labels(listing.studies[0]) == {"Pneumonia"} and listing.num_duplicates == num_duplicates
    write_csv(tmp_path / "annotations" / "image_labels_train.csv", [*rows, cells("aa", "R1", "Pneumonia")])
    with pytest.raises(DataError, match=r"train\.csv row 5: expected the labels of .* row 2.*same reader's"):
        read_manifest(tmp_path, "vindr-cxr")


def test_readers_of_an_image_agree_on_all_but_labels(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", [["id", "s", "E"], ["a", "1", "1"], ["a", "2", "1"]])
    (tmp_path / "y.yaml").write_text(MAJORITY.replace("study: id", "study: s"))
    with pytest.raises(DataError, match=r"t\.csv row 3: expected patient, study, split and view of t\.csv row 2"):
        read_manifest(tmp_path, tmp_path / "y.yaml")


def test_two_images_of_one_name_are_refused_unless_they_are_equal(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("p,s,f,e\n1,1,a.jpg,1\n")
    (tmp_path / "y.yaml").write_text(JOINED.replace('"{f}"', '"{f}", folders: ["part_*"]'))
    write_jpeg(tmp_path / "part_1" / "a.jpg", 1)
    write_jpeg(tmp_path / "part_2" / "a.jpg", 1)
    assert len(read_manifest(tmp_path / "t.csv", tmp_path / "y.yaml").studies) == 1
    write_jpeg(tmp_path / "part_2" / "a.jpg", 2)
    with pytest.raises(
        DataError, match=r"t\.csv row 2: expected one image of this name.*in part_2 than in part_1"
    ):
        read_manifest(tmp_path / "t.csv", tmp_path / "y.yaml")


def test_majority_is_uncertain_where_readers_are_even(tmp_path: Path) -> None:
    rows = [["id", "E"], ["a", "1"], ["a", "0"], ["b", "1"], ["b", "1"], ["b", "0"], ["c", ""]]
    write_csv(tmp_path / "t.csv", rows)
    (tmp_path / "y.yaml").write_text(MAJORITY)
    assert [given_labels(study) for study in read_manifest(tmp_path, tmp_path / "y.yaml").studies] == [
        {"Edema": -1},
        {"Edema": 1},
        {},
    ]
