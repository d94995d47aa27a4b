"""The sources read what is published, whatever the order of rows and columns, and refuse all else in one line."""

import math
import random
from collections import Counter
from pathlib import Path

import pytest

from cxr_hvd.errors import DataError
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import Split, View
from preprocess.records import SourceOptions, StudyListing
from preprocess.sources import SOURCES, chexpert, mimic_cxr
from tests.helpers.synthetic import NAME, Rows, write_chexpert, write_csv, write_dicom, write_jpeg, write_mimic_cxr


def _chexpert(root: Path) -> StudyListing:
    return chexpert.studies(root, SourceOptions())


def _mimic_cxr(root: Path) -> StudyListing:
    return mimic_cxr.studies(root, SourceOptions())


def test_chexpert_reads_every_row_once(tmp_path: Path) -> None:
    listing = _chexpert(write_chexpert(tmp_path))
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
    assert _chexpert(tmp_path / NAME) == _chexpert(tmp_path)


def _moved(root: Path, layout: str) -> Path:
    """Move the folder of `write_chexpert` into a layout as people have it, and return ROOT."""
    data = root / NAME
    batches = [f"CheXpert-v1.0 batch {n}" for n in ("1 (validate & csv)", "2 (train 1)", "3 (train 2)")]
    if layout.startswith("batch"):
        top = root / "chexpertchestxrays-u20210408"
        for batch in batches:
            (top / batch).mkdir(parents=True)
        for name in ("train.csv", "valid.csv", "valid"):
            (data / name).rename(top / batches[0] / name)
        for number, patient in enumerate(sorted((data / "train").iterdir())):
            patient.rename(top / batches[1 + number % 2] / patient.name)
        return {"batches": top, "batch 1": top / batches[0], "batches, below": root}[layout]
    names = {"archive": "archive", "below": "archive", "two below": "downloads/archive", "link": "x"}
    (root / names[layout]).parent.mkdir(exist_ok=True)
    data.rename(root / names[layout])
    if layout == "link":
        (root / NAME).symlink_to(root / "x")
    return {"archive": root / "archive", "link": root / NAME}.get(layout, root)


LAYOUTS = ["archive", "below", "two below", "link", "batches", "batch 1", "batches, below"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_chexpert_is_read_wherever_it_lies(tmp_path: Path, layout: str) -> None:
    published = _chexpert(write_chexpert(tmp_path / "a"))
    read = _chexpert(_moved(write_chexpert(tmp_path / "b"), layout))
    assert [(study.study_id, study.split, repr(study.labels)) for study in read.studies] == [
        (study.study_id, study.split, repr(study.labels)) for study in published.studies
    ]
    images = [[image.path.read_bytes() for image in study.images] for study in read.studies]
    assert images == [[image.path.read_bytes() for image in study.images] for study in published.studies]


def test_chexpert_says_which_batches_contradict(tmp_path: Path) -> None:
    root = _moved(write_chexpert(tmp_path), "batches")
    patient = next((root / "CheXpert-v1.0 batch 2 (train 1)").iterdir())
    (root / "CheXpert-v1.0 batch 3 (train 2)" / patient.name).mkdir()
    with pytest.raises(
        DataError, match=r"each patient in one batch, found one in .*\(train 1\) and in .*\(train 2\)"
    ):
        _chexpert(root)


def test_chexpert_refuses_two_folders(tmp_path: Path) -> None:
    write_chexpert(tmp_path)
    write_csv(tmp_path / "CheXpert-v1.0" / "train.csv", [["Path"]])
    with pytest.raises(DataError, match="found 2 of them"):
        _chexpert(tmp_path)


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
            for study in _chexpert(root).studies
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

    for study in _mimic_cxr(write_mimic_cxr(tmp_path, 5, change=only_fracture)).studies:
        assert [name for name, label in zip(LABELS, study.labels, strict=True) if label == 1] == ["Fracture"]
        assert sum(map(math.isnan, study.labels)) == len(LABELS) - 1


def test_mimic_views_splits_and_unlabelled_studies(tmp_path: Path) -> None:
    def drop_a_label_row(tables: dict[str, Rows]) -> dict[str, Rows]:
        return {**tables, "chexpert": tables["chexpert"][:-1]}

    listing = _mimic_cxr(write_mimic_cxr(tmp_path, change=drop_a_label_row))
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


def _again(column: int, cell: str) -> object:
    return lambda rows: [*rows, [*rows[1][:column], cell, *rows[1][column + 1 :]]]


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
    "same image, two views": (_again(4, "RL"), r"train\.csv row \d+: expected each image once.*train\.csv row 2"),
}


@pytest.mark.parametrize("what", BAD_TABLES)
def test_chexpert_refuses(tmp_path: Path, what: str) -> None:
    change, message = BAD_TABLES[what]
    write_chexpert(tmp_path, change=change)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message) as caught:
        _chexpert(tmp_path)
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
    with pytest.raises(
        DataError,
        match=r"train\.csv row \d+: expected the labels of train\.csv row \d+, .* found another 'No Finding'",
    ):
        _chexpert(tmp_path)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    root = write_chexpert(tmp_path / "data")
    write_jpeg(tmp_path / "elsewhere.jpg", 1)
    image = next((root / NAME / "train").rglob("*.jpg"))
    image.unlink()
    image.symlink_to(tmp_path / "elsewhere.jpg")
    with pytest.raises(DataError, match="symbolic link that leads out"):
        _chexpert(root)


def test_a_link_of_the_whole_folder_is_fine(tmp_path: Path) -> None:
    root = write_chexpert(tmp_path / "data")
    (tmp_path / "view").mkdir()
    (tmp_path / "view" / NAME).symlink_to(root / NAME)
    assert len(_chexpert(tmp_path / "view").studies) == len(_chexpert(root).studies)


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
        _mimic_cxr(tmp_path)
    assert "1000000" not in str(caught.value)


def test_a_damaged_gzip_is_refused(tmp_path: Path) -> None:
    write_mimic_cxr(tmp_path)
    table = tmp_path / "mimic-cxr-2.0.0-split.csv.gz"
    table.write_bytes(table.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a readable table"):
        _mimic_cxr(tmp_path)


@pytest.mark.parametrize(
    ("source", "folder", "num_studies", "num_images"),
    [("chexpert", "site-nih", 567, 704), ("mimic-cxr", "site-guangzhou/mimic-cxr-jpg", 1953, 3586)],
)
def test_real_sites_are_read_whole(
    real_data: Path, source: str, folder: str, num_studies: int, num_images: int
) -> None:
    studies = SOURCES[source](real_data / folder, SourceOptions()).studies
    assert (len(studies), sum(len(study.images) for study in studies)) == (num_studies, num_images)


def test_duplicate_rows_are_dropped_and_counted(tmp_path: Path) -> None:
    plain = _chexpert(write_chexpert(tmp_path / "a"))
    twice = _chexpert(write_chexpert(tmp_path / "b", change=lambda rows: [*rows, rows[1], rows[4], rows[1]]))
    assert (plain.num_duplicates, twice.num_duplicates) == (0, 3)
    assert [len(study.images) for study in twice.studies] == [len(study.images) for study in plain.studies]

    def doubled(tables: dict[str, Rows]) -> dict[str, Rows]:
        return {kind: [*rows, rows[1]] for kind, rows in tables.items()}

    # A label row and an image row; the split table only answers questions.
    assert _mimic_cxr(write_mimic_cxr(tmp_path / "c", change=doubled)).num_duplicates == 2


@pytest.mark.parametrize("form", ["bom", "crlf", "cr", "quotes", "blank lines", "spaces"])
def test_how_a_table_is_written_changes_nothing(tmp_path: Path, form: str) -> None:
    root = write_chexpert(tmp_path)
    before = _chexpert(root).studies
    table = root / NAME / "train.csv"
    text = table.read_text().replace("\r\n", "\n")
    content = {
        "bom": "\ufeff" + text,
        "crlf": text.replace("\n", "\r\n"),
        "cr": text.replace("\n", "\r"),
        "quotes": "\n".join(",".join(f'"{cell}"' for cell in line.split(",")) for line in text.splitlines()),
        "blank lines": text.replace("\n", "\n\n"),
        "spaces": text.replace(",", " , "),
    }[form]
    table.write_bytes(content.encode())
    after = _chexpert(root).studies
    assert [(study.study_id, repr(study.labels), study.split) for study in after] == [
        (study.study_id, repr(study.labels), study.split) for study in before
    ]
    assert [[image.path for image in study.images] for study in after] == [
        [image.path for image in study.images] for study in before
    ]


def test_chexpert_test_table_is_the_test_split(tmp_path: Path) -> None:
    root = write_chexpert(tmp_path) / NAME
    (root / "valid.csv").rename(root / "test.csv")
    text = (root / "test.csv").read_text()
    write_csv(root / "valid.csv", [text.splitlines()[0].split(",")])
    assert {study.split for study in _chexpert(tmp_path).studies} == {Split.TRAIN, Split.TEST}


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
    by_labeler = {name: mimic_cxr.studies(root, SourceOptions(labels=name)) for name in ("chexpert", "negbio")}
    for ours, other in zip(by_labeler["chexpert"].studies, by_labeler["negbio"].studies, strict=True):
        assert ours.images == other.images
        expected = tuple(-1.0 if label == 1 else label for label in ours.labels)
        assert repr(other.labels) == repr(expected)
    assert by_labeler["chexpert"].sha256 != by_labeler["negbio"].sha256


def test_mimic_dicom_without_metadata_reads_views_from_the_files(tmp_path: Path) -> None:
    def write(path: Path, seed: int) -> None:
        write_dicom(path, seed, ("PA", "LATERAL", None, "LL")[seed % 10])

    root = write_mimic_cxr(tmp_path, write_image=write, suffix="dcm")
    told = mimic_cxr.dicom_studies(root, SourceOptions())
    (root / "mimic-cxr-2.0.0-metadata.csv.gz").unlink()
    read = mimic_cxr.dicom_studies(root, SourceOptions())
    assert [[(image.path, image.view) for image in study.images] for study in told.studies] == [
        [(image.path, image.view) for image in study.images] for study in read.studies
    ]
    assert all(image.path.is_file() for study in read.studies for image in study.images)


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
        _mimic_cxr(write_mimic_cxr(tmp_path, change=conflict))


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
        _mimic_cxr(root)


def test_labels_that_match_half_of_the_studies_or_none_fail(tmp_path: Path) -> None:
    for name, wanted in (("half", 0), ("none", 1)):

        def padded(cell: str, number: int, wanted: int = wanted) -> str:
            return f"0{cell}" if wanted or number % 2 else cell

        root = write_mimic_cxr(tmp_path / name, 8, change=lambda tables: _study_ids(tables, "chexpert", padded))
        message = r"metadata\.csv\.gz row \d+: .*chexpert\.csv\.gz too, found none.* of \d+ studies have no labels"
        with pytest.raises(DataError, match=message) as caught:
            _mimic_cxr(root)
        assert "5000000" not in str(caught.value) and "set --max-unlabelled" in str(caught.value)
        assert ("ids like '99999999' here and '999999999' there" in str(caught.value)) == bool(wanted)
    listing = mimic_cxr.studies(tmp_path / "half", SourceOptions(max_unlabelled=0.6))
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
        _mimic_cxr(write_mimic_cxr(tmp_path, 8, change=again))


def test_one_table_twice_is_said(tmp_path: Path) -> None:
    root = write_mimic_cxr(tmp_path, 2)
    table = root / "mimic-cxr-2.0.0-split.csv.gz"
    table.with_name("mimic-cxr-2.1.0-split.csv.gz").write_bytes(table.read_bytes())
    with pytest.raises(DataError, match="found 2; remove all but one"):
        _mimic_cxr(root)


def test_a_missing_root_is_one_line(tmp_path: Path) -> None:
    for source in ("chexpert", "mimic-cxr", "mimic-cxr-dicom"):
        with pytest.raises(DataError, match="expected"):
            SOURCES[source](tmp_path / "nowhere", SourceOptions())
