"""Sex and age: read from every source that names them, unknown where rows contradict; they stand in the file."""

import json
from pathlib import Path

import pytest

from cxr_hvd.errors import DataError
from cxr_hvd.study.layout import UNKNOWN_AGE, Sex, Split
from cxr_hvd.study.study_file import StudyFile
from preprocess.quarantine import count_reasons
from preprocess.records import Demographics, SourceOptions
from preprocess.sources import SOURCES
from preprocess.sources.demographics import parse_age, parse_sex
from tests.helpers.commands import preprocess_here
from tests.helpers.manifests import read_manifest
from tests.helpers.synthetic import NAME, Rows, write_chexpert, write_csv, write_jpeg, write_mimic_cxr

UNKNOWN = Demographics()


@pytest.mark.parametrize(
    ("cell", "age"),
    [
        ("58", 58), ("058Y", 58), ("58.0", 58), ("0", 0), ("18M", 1), ("023M", 1), ("011M", 0), ("6 w", 0),
        ("400D", 1), ("89", 89), ("90", 90), ("104", 90), ("414", UNKNOWN_AGE), ("", UNKNOWN_AGE), ("old", None),
        ("-3", None), ("1951-02-03", None), ("58Y?", None),
    ],
)  # fmt: skip
def test_ages_are_whole_years_as_tables_and_dicom_write_them(cell: str, age: int | None) -> None:
    assert parse_age(cell) == age


def test_sexes_are_those_of_dicom_in_letters_of_any_size() -> None:
    cells = ["F", "female", "M", "Male", "O", "Unknown", "", "DOE^JOHN"]
    sexes = [Sex.FEMALE, Sex.FEMALE, Sex.MALE, Sex.MALE, Sex.OTHER, Sex.UNKNOWN, Sex.UNKNOWN, None]
    assert [parse_sex(cell) for cell in cells] == sexes


def test_chexpert_names_sex_and_age_and_contradictions_are_unknown(tmp_path: Path) -> None:
    def change(rows: Rows) -> Rows:
        same = [row for row in rows if row[0].rpartition("/")[0] == rows[1][0].rpartition("/")[0]]
        for row in same:
            row[1:3] = ["Female", "17"]
        assert len(same) > 1
        same[0][1] = "Male"
        rows[-1][1:3] = ["Unknown", "x"]
        return rows

    root = write_chexpert(tmp_path, change=change)
    listing = SOURCES["chexpert"](root, SourceOptions())
    by_where = {study.images[0].where: study for study in listing.studies}
    assert by_where["train.csv row 2"].demographics == (Sex.UNKNOWN, 17)
    assert by_where["valid.csv row 2"].demographics == (Sex.FEMALE, 61)
    assert sorted(note.split(" ", 1)[1][:30] for note in listing.notes) == [
        "has cells in the column 'Age' ",
        "studies have rows of two sexes",
    ]


def test_chexpert_without_these_columns_is_read(tmp_path: Path) -> None:
    root = write_chexpert(tmp_path, change=lambda rows: [[row[0], *row[3:]] for row in rows])
    table = root / NAME / "valid.csv"
    table.write_text(table.read_text().replace("Sex,Age", "A,B"))
    listing = SOURCES["chexpert"](root, SourceOptions())
    assert {study.demographics for study in listing.studies} == {UNKNOWN} and not listing.notes


def test_mimic_takes_them_from_mimic_ivs_patients(tmp_path: Path) -> None:
    def dated(tables: dict[str, Rows]) -> dict[str, Rows]:
        for number, row in enumerate(tables["metadata"]):
            row.append("21850714" if number else "StudyDate")
        return tables

    root = write_mimic_cxr(tmp_path, 4, change=dated)
    assert {study.demographics for study in SOURCES["mimic-cxr"](root, SourceOptions()).studies} == {UNKNOWN}
    header = ["subject_id", "gender", "anchor_age", "anchor_year", "anchor_year_group"]
    rows = [
        ["10000001", "F", "52", "2180", ""],
        ["10000002", "M", "91", "2180", ""],
        ["10000003", "M", "5", "2185", ""],
    ]
    write_csv(root / "patients.csv.gz", [header, *rows])
    listing = SOURCES["mimic-cxr"](root, SourceOptions())
    by_patient = {study.patient_id: study.demographics for study in listing.studies}
    assert by_patient == {
        "10000001": (Sex.FEMALE, 57),
        "10000002": (Sex.MALE, 90),
        "10000003": (Sex.MALE, 5),
        "10000004": UNKNOWN,
    }


MANIFEST = "patient: P\nstudy: P\nimages: {file: '{F}'}\nlabels: {columns: {Edema: E}}\n"


def _manifest(folder: Path, sexes: list[str], ages: list[str], more: str) -> Path:
    rows = [[str(n), f"{n}.jpg", "1", sex, age] for n, (sex, age) in enumerate(zip(sexes, ages, strict=True))]
    write_csv(folder / "t.csv", [["P", "F", "E", "Geschlecht", "Alter"], *rows])
    for n in range(len(rows)):
        write_jpeg(folder / f"{n}.jpg", n)
    (folder / "y.yaml").write_text(MANIFEST + more)
    return folder / "y.yaml"


def test_a_manifest_names_their_columns(tmp_path: Path) -> None:
    more = "sex: {column: [Sex, Geschlecht], values: {w: FEMALE, m: MALE}, otherwise: OTHER}\nage: Alter\n"
    columns = _manifest(tmp_path, ["w", "m", "", "d"], ["034Y", "", "414", "7"], more)
    listing = read_manifest(tmp_path / "t.csv", columns)
    assert [study.demographics for study in listing.studies] == [
        (Sex.FEMALE, 34), (Sex.MALE, UNKNOWN_AGE), (Sex.UNKNOWN, UNKNOWN_AGE), (Sex.OTHER, 7),
    ]  # fmt: skip
    assert listing.notes == ("ages above 120 years are taken for unknown",)
    columns.write_text(MANIFEST + "sex: Sex\nage: [Age, Alter]\n")
    assert (
        read_manifest(tmp_path / "t.csv", columns).notes[-1] == "t.csv has no column 'Sex': the sex stays unknown"
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("sex: Geschlecht\n", r"t\.csv row 2: column 'Geschlecht': expected a value that 'sex\.values'"),
        ("age: Geschlecht\n", r"t\.csv row 2: column 'Geschlecht': expected an age as 58, 058Y or 18M"),
    ],
)
def test_a_manifest_refuses_other_values_without_quoting_them(tmp_path: Path, more: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_manifest(tmp_path / "t.csv", _manifest(tmp_path, ["DOE^JOHN"], ["1"], more))
    assert "DOE" not in str(caught.value)


def test_they_and_what_was_left_out_stand_in_the_study_file_and_in_inspect(tmp_path: Path) -> None:
    root = write_chexpert(tmp_path / "data", 30)
    bad = min((root / NAME / "train").rglob("*.jpg"))
    bad.write_bytes(bad.read_bytes()[:100])
    counts = ("--train", 10, "--validate", 4, "--test", 5, "--max-bad", "10%")
    job = preprocess_here("chexpert", root, "--out", tmp_path / "a.h5", "--keep-ids", "--split", "random", *counts)
    assert job.exit_code == 0, job.output
    with StudyFile(tmp_path / "a.h5") as file:
        flow = file.header.flow
        assert set(file.sexes) == {Sex.FEMALE} and set(file.ages) == {61}
        assert flow is not None and flow.labelled.patients == 30 and flow.drawn.studies == 19
        assert flow.drawn.images - sum(flow.unusable_images.values()) == file.num_images.sum()
        assert flow.drawn.studies - flow.emptied_studies == len(file)
        assert [int((file.splits == split).sum()) for split in Split] == [10, 4, 5]
    summary = json.loads(preprocess_here("inspect", tmp_path / "a.h5", "--json").output)["files"][0]
    assert summary["sexes"]["test"] == {"female": 5, "male": 0, "other": 0, "unknown": 0}
    assert summary["ages"]["validate"]["40 to 64 years"] == 4
    shown = preprocess_here("inspect", tmp_path / "a.h5").output
    assert "female" in shown and "65 years and more" in shown


def test_reasons_are_counted_without_their_numbers() -> None:
    bad = [
        ("row 2", "expected a whole DICOM file, found one of 3 frames; remove the row"),
        ("row 3", "expected a whole DICOM file, found one of 12 frames; remove the row"),
        ("row 4", "expected a whole DICOM file, found one of 7 frames; remove the row"),
        ("row 5", "torn"),
        *[(f"row {n}", f"expected an image, found kind {'x' * (n % 30)}; remove it") for n in range(60)],
    ]
    counts = count_reasons(bad)
    assert len(counts) == 20 and sum(counts.values()) == len(bad)
    assert counts["one of N frames"] == 3 and counts["other reasons"] > 0
