"""MIMIC-CXR is read as published, as JPEG and as DICOM; all else is refused in one line."""

import math
from collections import Counter
from pathlib import Path

import pytest

from cxr_hvd.errors import DataError
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import Split, View
from preprocess.records import SourceOptions, StudyListing
from preprocess.sources import mimic_cxr
from tests.helpers.synthetic import Rows, write_csv, write_dicom, write_mimic_cxr


def read_mimic_cxr(root: Path) -> StudyListing:
    return mimic_cxr.read_studies(root, SourceOptions())


def test_mimic_labels_are_bound_by_name(tmp_path: Path) -> None:
    def only_fracture(tables: dict[str, Rows]) -> dict[str, Rows]:
        header = tables["chexpert"][0]
        for row in tables["chexpert"][1:]:
            row[2:] = ["1.0" if name == "Fracture" else "" for name in header[2:]]
        return tables

    for study in read_mimic_cxr(write_mimic_cxr(tmp_path, 5, change=only_fracture)).studies:
        assert [name for name, label in zip(LABELS, study.labels, strict=True) if label == 1] == ["Fracture"]
        assert sum(map(math.isnan, study.labels)) == len(LABELS) - 1


def test_mimic_views_splits_and_unlabelled_studies(tmp_path: Path) -> None:
    def drop_a_label_row(tables: dict[str, Rows]) -> dict[str, Rows]:
        return {**tables, "chexpert": tables["chexpert"][:-1]}

    listing = read_mimic_cxr(write_mimic_cxr(tmp_path, change=drop_a_label_row))
    assert listing.num_unlabelled == 1
    views = Counter(image.view for study in listing.studies for image in study.images)
    assert set(views) == {View.PA, View.LATERAL, View.UNKNOWN}
    assert {study.split for study in listing.studies} == set(Split)


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
        read_mimic_cxr(tmp_path)
    assert "1000000" not in str(caught.value)


@pytest.mark.parametrize("version", ["2.0.0", "2.1.0"])
def test_mimic_versions_and_labelers(tmp_path: Path, version: str) -> None:
    def with_negbio(tables: dict[str, Rows]) -> dict[str, Rows]:
        negbio = [[cell if cell != "1.0" else "-1.0" for cell in row] for row in tables["chexpert"]]
        return {**tables, "negbio": negbio}

    root = write_mimic_cxr(tmp_path, change=with_negbio)
    for table in root.glob("*.csv.gz"):
        table.rename(root / table.name.replace("2.0.0", version))
    # 2.1.0 adds a table of hand-labelled studies, which is none of the three.
    write_csv(root / "mimic-cxr-2.1.0-test-set-labeled.csv", [["study_id", "Edema"]])
    by_labeler = {
        name: mimic_cxr.read_studies(root, SourceOptions(labels=name)) for name in ("chexpert", "negbio")
    }
    for ours, other in zip(by_labeler["chexpert"].studies, by_labeler["negbio"].studies, strict=True):
        assert ours.images == other.images
        expected = tuple(-1.0 if label == 1 else label for label in ours.labels)
        assert repr(other.labels) == repr(expected)
    assert by_labeler["chexpert"].sha256 != by_labeler["negbio"].sha256


def test_mimic_dicom_without_metadata_reads_views_from_the_files(tmp_path: Path) -> None:
    def write(path: Path, seed: int) -> None:
        write_dicom(path, seed, ("PA", "LATERAL", None, "LL")[seed % 10])

    root = write_mimic_cxr(tmp_path, write_image=write, suffix="dcm")
    by_table = mimic_cxr.read_dicom_studies(root, SourceOptions())
    (root / "mimic-cxr-2.0.0-metadata.csv.gz").unlink()
    by_file = mimic_cxr.read_dicom_studies(root, SourceOptions())
    assert [[(image.path, image.view) for image in study.images] for study in by_table.studies] == [
        [(image.path, image.view) for image in study.images] for study in by_file.studies
    ]
    assert all(image.path.is_file() for study in by_file.studies for image in study.images)


def test_mimic_refuses_conflicting_label_rows(tmp_path: Path) -> None:
    def conflict(tables: dict[str, Rows]) -> dict[str, Rows]:
        rows = tables["chexpert"]
        return {
            **tables,
            "chexpert": [*rows, [*rows[1][:2], "0.0" if rows[1][2] != "0.0" else "1.0", *rows[1][3:]]],
        }

    with pytest.raises(
        DataError, match=r"chexpert.csv.gz row \d+: expected the labels of .* row 2.*'Atelectasis'"
    ):
        read_mimic_cxr(write_mimic_cxr(tmp_path, change=conflict))


def _study_ids(tables: dict[str, Rows], kind: str, change: object) -> dict[str, Rows]:
    column = tables[kind][0].index("study_id")
    for number, row in enumerate(tables[kind][1:]):
        row[column] = change(row[column], number)  # type: ignore[operator]
    return tables


@pytest.mark.parametrize("kind", ["chexpert", "metadata", "split"])
@pytest.mark.parametrize("form", ["{}.0", "{}.00", "{:.7e}"])
def test_ids_as_decimal_numbers_are_said_with_the_first_row(tmp_path: Path, kind: str, form: str) -> None:
    def decimal(cell: str, number: int) -> str:
        return form.format(float(cell) if "e" in form else cell) if number % 2 else cell

    root = write_mimic_cxr(tmp_path, 8, change=lambda tables: _study_ids(tables, kind, decimal))
    with pytest.raises(
        DataError, match=rf"{kind}\.csv\.gz row 3: column 'study_id': expected an id.*decimal number"
    ):
        read_mimic_cxr(root)


def test_labels_that_match_half_of_the_studies_or_none_fail(tmp_path: Path) -> None:
    for name, wanted in (("half", 0), ("none", 1)):

        def padded(cell: str, number: int, wanted: int = wanted) -> str:
            return f"0{cell}" if wanted or number % 2 else cell

        root = write_mimic_cxr(tmp_path / name, 8, change=lambda tables: _study_ids(tables, "chexpert", padded))
        message = r"metadata\.csv\.gz row \d+: .*chexpert\.csv\.gz too, found none.* of \d+ studies have no labels"
        with pytest.raises(DataError, match=message) as caught:
            read_mimic_cxr(root)
        assert "5000000" not in str(caught.value) and "set --max-unlabelled" in str(caught.value)
        assert ("ids like '99999999' here and '999999999' there" in str(caught.value)) == bool(wanted)
    listing = mimic_cxr.read_studies(tmp_path / "half", SourceOptions(max_unlabelled=0.6))
    assert 0 < listing.num_unlabelled <= len(listing.studies) + 1


CONTRADICTIONS = {
    "the study of another patient": ("chexpert", 0, "10000009", "subject_id of .*chexpert.csv.gz row 2"),
    "the image of another study": ("split", 1, "50000099", "subject_id and study_id of this image's earlier row"),
    "another split": ("split", 3, "test", "split of this image's earlier row"),
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_mimic_tables_that_contradict_themselves_are_refused(tmp_path: Path, what: str) -> None:
    kind, column, cell, message = CONTRADICTIONS[what]

    def again(tables: dict[str, Rows]) -> dict[str, Rows]:
        row = list(tables[kind][1])
        row[column] = cell if row[column] != cell else "train"
        return {**tables, kind: [*tables[kind], row]}

    with pytest.raises(DataError, match=rf"{kind}\.csv\.gz row \d+: expected the {message}"):
        read_mimic_cxr(write_mimic_cxr(tmp_path, 8, change=again))


def test_one_table_twice_is_said(tmp_path: Path) -> None:
    root = write_mimic_cxr(tmp_path, 2)
    table = root / "mimic-cxr-2.0.0-split.csv.gz"
    table.with_name("mimic-cxr-2.1.0-split.csv.gz").write_bytes(table.read_bytes())
    with pytest.raises(DataError, match="found 2; remove all but one"):
        read_mimic_cxr(root)


def test_a_damaged_gzip_is_refused(tmp_path: Path) -> None:
    write_mimic_cxr(tmp_path)
    table = tmp_path / "mimic-cxr-2.0.0-split.csv.gz"
    table.write_bytes(table.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a readable table"):
        read_mimic_cxr(tmp_path)
