"""CheXpert is read as published, whatever the order of rows and columns; all else is refused in one line."""

import random
from pathlib import Path

import pytest

from cxr_hvd.errors import DataError
from cxr_hvd.study.layout import Split, View
from preprocess.records import SourceOptions, StudyListing
from preprocess.sources import chexpert
from tests.helpers.synthetic import NAME, Rows, write_chexpert, write_csv, write_jpeg


def read_chexpert(root: Path) -> StudyListing:
    return chexpert.read_studies(root, SourceOptions())


def test_chexpert_reads_every_row_once(tmp_path: Path) -> None:
    listing = read_chexpert(write_chexpert(tmp_path))
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
    assert read_chexpert(tmp_path / NAME) == read_chexpert(tmp_path)


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
    published = read_chexpert(write_chexpert(tmp_path / "a"))
    read = read_chexpert(_moved(write_chexpert(tmp_path / "b"), layout))
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
        read_chexpert(root)


def test_chexpert_refuses_two_folders(tmp_path: Path) -> None:
    write_chexpert(tmp_path)
    write_csv(tmp_path / "CheXpert-v1.0" / "train.csv", [["Path"]])
    with pytest.raises(DataError, match="found 2 of them"):
        read_chexpert(tmp_path)


@pytest.mark.parametrize("seed", range(3))
def test_order_of_rows_and_columns_changes_nothing(tmp_path: Path, seed: int) -> None:
    def shuffle(rows: Rows) -> Rows:
        mixed = random.Random(seed)
        order = mixed.sample(range(len(rows[0])), len(rows[0]))
        body = mixed.sample(rows[1:], len(rows) - 1)
        return [[row[column] for column in order] for row in [rows[0], *body]]

    plain, shuffled = write_chexpert(tmp_path / "a"), write_chexpert(tmp_path / "b", change=shuffle)
    listings = [
        [
            (study.study_id, repr(study.labels), [(image.path.name, image.view) for image in study.images])
            for study in read_chexpert(root).studies
        ]
        for root in (plain, shuffled)
    ]
    assert listings[0] == listings[1]


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
        read_chexpert(tmp_path)
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
        read_chexpert(tmp_path)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    root = write_chexpert(tmp_path / "data")
    write_jpeg(tmp_path / "elsewhere.jpg", 1)
    image = next((root / NAME / "train").rglob("*.jpg"))
    image.unlink()
    image.symlink_to(tmp_path / "elsewhere.jpg")
    with pytest.raises(DataError, match="symbolic link that leads out"):
        read_chexpert(root)


def test_a_link_of_the_whole_folder_is_fine(tmp_path: Path) -> None:
    root = write_chexpert(tmp_path / "data")
    (tmp_path / "view").mkdir()
    (tmp_path / "view" / NAME).symlink_to(root / NAME)
    assert len(read_chexpert(tmp_path / "view").studies) == len(read_chexpert(root).studies)


@pytest.mark.parametrize("form", ["bom", "crlf", "cr", "quotes", "blank lines", "spaces"])
def test_how_a_table_is_written_changes_nothing(tmp_path: Path, form: str) -> None:
    root = write_chexpert(tmp_path)
    before = read_chexpert(root).studies
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
    after = read_chexpert(root).studies
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
    assert {study.split for study in read_chexpert(tmp_path).studies} == {Split.TRAIN, Split.TEST}
