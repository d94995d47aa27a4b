"""The sources read what is published, whatever the order of rows and columns, and refuse all else in one line."""

import math
import random
from collections import Counter
from pathlib import Path

import pytest

from cxr_hvd.errors import DataError
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.study_file import Split, View
from preprocess.sources import SOURCES, chexpert, mimic_cxr
from tests.synthetic import NAME, Rows, write_chexpert, write_csv, write_jpeg, write_mimic_cxr


def test_chexpert_reads_every_row_once(tmp_path: Path) -> None:
    listing = chexpert.studies(write_chexpert(tmp_path))
    images = [image.path for study in listing.studies for image in study.images]
    assert sorted(images) == sorted(tmp_path.resolve().rglob("*.jpg"))
    assert len({study.study_id for study in listing.studies}) == len(listing.studies)
    assert {study.split for study in listing.studies} == {Split.TRAIN, Split.VALIDATE}
    assert all(
        (image.view is View.LATERAL) == image.path.name.endswith("lateral.jpg")
        for study in listing.studies
        for image in study.images
    )


def test_chexpert_root_may_be_the_folder_itself(tmp_path: Path) -> None:
    write_chexpert(tmp_path)
    assert chexpert.studies(tmp_path / NAME) == chexpert.studies(tmp_path)


def test_chexpert_refuses_two_folders(tmp_path: Path) -> None:
    write_chexpert(tmp_path)
    write_csv(tmp_path / "CheXpert-v1.0" / "train.csv", [["Path"]])
    with pytest.raises(DataError, match="found 2 of them"):
        chexpert.studies(tmp_path)


@pytest.mark.parametrize("seed", range(3))
def test_order_of_rows_and_columns_changes_nothing(tmp_path: Path, seed: int) -> None:
    def shuffle(rows: Rows) -> Rows:
        mixed = random.Random(seed)
        order = mixed.sample(range(len(rows[0])), len(rows[0]))
        body = mixed.sample(rows[1:], len(rows) - 1)
        return [[row[column] for column in order] for row in [rows[0], *body]]

    plain, shuffled = write_chexpert(tmp_path / "a"), write_chexpert(tmp_path / "b", change=shuffle)
    told = [
        [
            (study.study_id, repr(study.labels), [(image.path.name, image.view) for image in study.images])
            for study in chexpert.studies(root).studies
        ]
        for root in (plain, shuffled)
    ]
    assert told[0] == told[1]


def test_mimic_labels_are_bound_by_name(tmp_path: Path) -> None:
    def only_fracture(tables: dict[str, Rows]) -> dict[str, Rows]:
        header = tables["chexpert"][0]
        for row in tables["chexpert"][1:]:
            row[2:] = ["1.0" if name == "Fracture" else "" for name in header[2:]]
        return tables

    for study in mimic_cxr.studies(write_mimic_cxr(tmp_path, 5, change=only_fracture)).studies:
        assert [name for name, label in zip(LABELS, study.labels, strict=True) if label == 1] == ["Fracture"]
        assert sum(map(math.isnan, study.labels)) == len(LABELS) - 1


def test_mimic_views_splits_and_unlabelled_studies(tmp_path: Path) -> None:
    def drop_a_label_row(tables: dict[str, Rows]) -> dict[str, Rows]:
        return {**tables, "chexpert": tables["chexpert"][:-1]}

    listing = mimic_cxr.studies(write_mimic_cxr(tmp_path, change=drop_a_label_row))
    assert listing.num_unlabelled == 1
    views = Counter(image.view for study in listing.studies for image in study.images)
    assert set(views) == {View.PA, View.LATERAL, View.UNKNOWN}
    assert {study.split for study in listing.studies} == set(Split)


def _misspell(rows: Rows) -> Rows:
    return [["Cardiomegali" if cell == "Cardiomegaly" else cell for cell in rows[0]], *rows[1:]]


def _with_cell(column: int, cell: str, row: int = 3) -> object:
    def change(rows: Rows) -> Rows:
        rows[row][column] = cell
        return rows

    return change


def _many_images(rows: Rows) -> Rows:
    first = rows[1]
    return [rows[0], *[[f"{NAME}/train/patient00001/study1/view{n}_frontal.jpg", *first[1:]] for n in range(21)]]


def _cut_row(rows: Rows) -> Rows:
    return [*rows[:4], rows[4][:7], *rows[5:]]


BAD_TABLES = {
    "misspelt column": (_misspell, r"train\.csv: expected a column 'Cardiomegaly', nearest found: 'Cardiomegali'"),
    "path up": (_with_cell(0, f"{NAME}/../../secret.jpg"), r"train\.csv row 4: .* leaves it"),
    "absolute path": (_with_cell(0, "/etc/passwd"), r"train\.csv row 4: .* leaves it"),
    "other form": (_with_cell(0, f"{NAME}/train/x.jpg"), r"train\.csv row 4: expected a Path like"),
    "label": (_with_cell(6, "2.0"), r"train\.csv row 4: column 'Enlarged Card.*found '2\.0'"),
    "view": (_with_cell(3, "Oblique"), r"train\.csv row 4: expected Frontal or Lateral .*'Oblique'"),
    "21 images": (_many_images, r"train\.csv row 22: expected at most 20 images"),
    "short row": (_cut_row, r"train\.csv row 5: expected 19 cells"),
    "same image twice": (lambda rows: [*rows, rows[1]], r"train\.csv row \d+: expected each image once"),
}


@pytest.mark.parametrize("what", BAD_TABLES)
def test_chexpert_refuses(tmp_path: Path, what: str) -> None:
    change, message = BAD_TABLES[what]
    write_chexpert(tmp_path, change=change)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message) as caught:
        chexpert.studies(tmp_path)
    assert "patient0" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_chexpert_refuses_conflicting_labels(tmp_path: Path) -> None:
    def conflict(rows: Rows) -> Rows:
        study = {tuple(row[0].split("/")[2:4]) for row in rows[1:]}
        for row in rows[1:]:
            if (key := tuple(row[0].split("/")[2:4])) in study:
                study.remove(key)
            else:
                row[5] = "0.0" if row[5] == "1.0" else "1.0"
        return rows

    write_chexpert(tmp_path, change=conflict)
    with pytest.raises(DataError, match=r"train\.csv row \d+: expected the labels"):
        chexpert.studies(tmp_path)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    root = write_chexpert(tmp_path / "data")
    write_jpeg(tmp_path / "elsewhere.jpg", 1)
    image = next((root / NAME / "train").rglob("*.jpg"))
    image.unlink()
    image.symlink_to(tmp_path / "elsewhere.jpg")
    with pytest.raises(DataError, match="symbolic link that leads out"):
        chexpert.studies(root)


def test_a_link_of_the_whole_folder_is_fine(tmp_path: Path) -> None:
    root = write_chexpert(tmp_path / "data")
    (tmp_path / "view").mkdir()
    (tmp_path / "view" / NAME).symlink_to(root / NAME)
    assert len(chexpert.studies(tmp_path / "view").studies) == len(chexpert.studies(root).studies)


def _mimic(kind: str, row: int, column: int, cell: str) -> object:
    def change(tables: dict[str, Rows]) -> dict[str, Rows]:
        tables[kind][row][column] = cell
        return tables

    return change


BAD_MIMIC = {
    "column": (_mimic("metadata", 0, 3, "View Position"), "column 'ViewPosition', nearest found: 'View Position'"),
    "path up": (_mimic("metadata", 1, 0, "../../../../x"), "metadata.csv.gz row 2: .* leaves it"),
    "split": (_mimic("split", 2, 3, "tset"), "split.csv.gz row 3: expected train, validate or test, found 'tset'"),
    "no split": (_mimic("metadata", 1, 0, "abc"), "metadata.csv.gz row 2: expected this image in"),
    "label": (_mimic("chexpert", 1, 2, "yes"), "chexpert.csv.gz row 2: column .* found 'yes'"),
}


@pytest.mark.parametrize("what", BAD_MIMIC)
def test_mimic_refuses(tmp_path: Path, what: str) -> None:
    change, message = BAD_MIMIC[what]
    write_mimic_cxr(tmp_path, change=change)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message) as caught:
        mimic_cxr.studies(tmp_path)
    assert "1000000" not in str(caught.value)


def test_a_damaged_gzip_is_refused(tmp_path: Path) -> None:
    write_mimic_cxr(tmp_path)
    table = tmp_path / "mimic-cxr-2.0.0-split.csv.gz"
    table.write_bytes(table.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a readable table"):
        mimic_cxr.studies(tmp_path)


@pytest.mark.parametrize(
    ("source", "folder", "num_studies", "num_images"),
    [("chexpert", "site-nih", 567, 704), ("mimic-cxr", "site-guangzhou/mimic-cxr-jpg", 1953, 3586)],
)
def test_real_sites_are_read_whole(
    real_data: Path, source: str, folder: str, num_studies: int, num_images: int
) -> None:
    studies = SOURCES[source](real_data / folder).studies
    assert (len(studies), sum(len(study.images) for study in studies)) == (num_studies, num_images)
