"""A hospital's own table by a YAML of its columns: what is read, and what is refused."""

import gzip
from pathlib import Path

import pytest

from cxr_hvd.errors import ConfigError, CxrHvdError, DataError, UsageError
from cxr_hvd.study.layout import Split, View
from preprocess.records import SourceOptions, StudyListing
from preprocess.sources import manifest
from preprocess.sources.columns import SHIPPED
from tests.helpers.manifests import given_labels, read_manifest
from tests.helpers.synthetic import write_jpeg

OWN = """
patient: PatNr
study: [PatNr, Exam]
images: {file: "{Folder}/{File}.jpg"}
view: {column: Side, values: {ap: AP, pa: PA, lat: LATERAL}, otherwise: OTHER}
split: {column: Set, values: {A: train, B: validate, C: test}}
labels:
  columns: {Edema: Oedem, Lung Lesion: [Rundherd, Tumor]}
  values: {ja: present, No: absent, "?": uncertain, "": blank}
"""

OWN_ROWS = [
    ["PatNr", "Exam", "Folder", "File", "Side", "Set", "Oedem", "Rundherd", "Tumor", "Note"],
    ["MRN1", "1", "f", "a", "ap", "A", "ja", "No", "No", "said, DOE^JOHN"],
    ["MRN1", "1", "f", "b", "lat", "A", "ja", "No", "No", ""],
    ["MRN2", "1", "f", "c", "", "B", "?", "No", "ja", ""],
    ["MRN3", "1", "f", "d", "oblique", "C", "", "", "No", ""],
]


def _read_own(
    tmp_path: Path, rows: list[list[str]] = OWN_ROWS, yaml: str = OWN, name: str = "export.csv"
) -> StudyListing:
    delimiter = "\t" if ".tsv" in name else ";" if "delimiter" in yaml else ","
    text = "\n".join(delimiter.join(f'"{cell}"' for cell in row) for row in rows)
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    (tmp_path / "own.yaml").write_text(yaml)
    for letter in "abcd":
        write_jpeg(tmp_path / "f" / f"{letter}.jpg", ord(letter))
    return read_manifest(tmp_path / name, tmp_path / "own.yaml")


@pytest.mark.parametrize("name", ["export.csv", "export.csv.gz", "export.tsv", "export.tsv.gz"])
def test_a_hospitals_own_table(tmp_path: Path, name: str) -> None:
    first, second, third = _read_own(tmp_path, name=name).studies
    assert [study.study_id for study in (first, second, third)] == ["MRN1/1", "MRN2/1", "MRN3/1"]
    assert given_labels(first) == {"Edema": 1, "Lung Lesion": 0}
    assert given_labels(second) == {"Edema": -1, "Lung Lesion": 1}
    # One of two blank: not absent.
    assert given_labels(third) == {}
    views = [[image.view for image in study.images] for study in (first, second, third)]
    assert views == [[View.AP, View.LATERAL], [View.OTHER], [View.OTHER]]
    assert [study.split for study in (first, second, third)] == [Split.TRAIN, Split.VALIDATE, Split.TEST]


def test_semicolons_and_the_digest(tmp_path: Path) -> None:
    plain = _read_own(tmp_path)
    other = _read_own(tmp_path, yaml=OWN + 'delimiter: ";"\n')
    assert [study.labels for study in plain.studies[:2]] == [study.labels for study in other.studies[:2]]
    assert plain.sha256 != other.sha256


def _with(row: int, column: int, cell: str) -> list[list[str]]:
    rows = [list(cells) for cells in OWN_ROWS]
    rows[row][column] = cell
    return rows


BAD_ROWS = {
    "label": (
        _with(1, 6, "DOE^JOHN"),
        r"export\.csv row 2: column 'Oedem': .* 'labels\.values'",
    ),
    "split": (_with(1, 5, "DOE^JOHN"), r"export\.csv row 2: column 'Set': expected a value that 'split'"),
    "no patient": (_with(1, 0, ""), r"export\.csv row 2: expected a patient and a study, found a blank cell"),
    "up": (_with(1, 2, "../.."), r"export\.csv row 2: expected a path inside the data folder"),
    "conflict": (_with(2, 6, "No"), r"export\.csv row 3: expected the labels of export\.csv row 2.*'Edema'"),
    "two splits": (_with(2, 5, "C"), r"export\.csv row 3: expected the split of export\.csv row 2"),
    "two studies": (_with(3, 3, "a"), r"export\.csv row 4: expected each image once.*another study"),
    "two views": (
        _with(2, 3, "a"),
        r"export\.csv row 3: expected each image once.*another view than in .* row 2",
    ),
    "no column": (_with(0, 4, "Seite"), r"expected a column 'Side'"),
}


@pytest.mark.parametrize("what", BAD_ROWS)
def test_bad_rows_are_refused_and_nobody_is_named(tmp_path: Path, what: str) -> None:
    rows, message = BAD_ROWS[what]
    with pytest.raises(DataError, match=message) as caught:
        _read_own(tmp_path, rows)
    assert "DOE" not in str(caught.value) and "MRN" not in str(caught.value)


BAD_YAML = {
    "unknown key": (OWN.replace("patient:", "pattient:"), r"unknown key 'pattient'; did you mean 'patient'\?"),
    "unknown key inside": (
        OWN.replace("otherwise:", "other:"),
        r"key 'view\.other'; did you mean 'otherwise'\?",
    ),
    "missing": (OWN.replace("patient: PatNr\n", ""), r"expected a key 'patient', found none"),
    "label": (OWN.replace("Edema:", "Oedema:"), r"one of the 14 labels, found 'Oedema'; did you mean 'Edema'\?"),
    "meaning": (OWN.replace("ja: present", "ja: yes"), r"labels\.values\.ja: Input should be 'present', 'absent'"),
    "view": (OWN.replace("ap: AP", "ap: front"), r"view\.values\.ap: Input should be 'PA', 'AP'"),
    "twice": (OWN.replace("ja: present", "ja: present, ja: absent"), r"key 'ja' is given twice"),
    "no labels": (OWN[: OWN.index("labels:")], r"expected either labels or findings"),
    "no split": (OWN.replace("column: Set, ", ""), r"split: expected either column with values, or lists"),
    "empty": ("", r"columns: Input should be a valid dictionary"),
    "no YAML": ("a: [", r"not valid YAML"),
    "a tag": ("patient: !!python/object/apply:os.system [ls]", r"found a tag"),
}


@pytest.mark.parametrize("what", BAD_YAML)
def test_bad_yaml_is_refused_in_one_line(tmp_path: Path, what: str) -> None:
    yaml, message = BAD_YAML[what]
    with pytest.raises(ConfigError, match=message) as caught:
        _read_own(tmp_path, yaml=yaml)
    assert "\n" not in str(caught.value) and "own.yaml: " in str(caught.value)


def test_findings_refuse_an_unknown_term_and_an_unassessed_label(tmp_path: Path) -> None:
    findings = """findings: {column: Note, separator: "|", terms: {Edema: Edema, x: none}, assessed: [Edema]}\n"""
    yaml = OWN[: OWN.index("labels:")] + findings
    with pytest.raises(DataError, match=r"column 'Note': expected a value that 'findings\.terms'") as caught:
        _read_own(tmp_path, yaml=yaml)
    assert "DOE" not in str(caught.value)
    rows = [[*row[:-1], cell] for row, cell in zip(OWN_ROWS, ["Note", "Edema|x", "x|Edema", "", "x"], strict=True)]
    assert [given_labels(study) for study in _read_own(tmp_path, rows, yaml).studies] == [
        {"Edema": 1},
        {},
        {"Edema": 0},
    ]
    with pytest.raises(ConfigError, match="expected 'Edema', which terms name, in assessed too"):
        _read_own(tmp_path, yaml=yaml.replace("assessed: [Edema]", "assessed: []"))


def test_columns_must_be_named(tmp_path: Path) -> None:
    for columns in (None, Path("nih"), tmp_path / "missing.yaml"):
        with pytest.raises(UsageError, match=r"nih-chestxray14, openi, padchest, vindr-cxr"):
            manifest.read_studies(tmp_path / "t.csv", SourceOptions(columns=columns))


def test_missing_tables_and_lists_are_one_line(tmp_path: Path) -> None:
    for shipped in sorted(SHIPPED.glob("*.yaml")):
        with pytest.raises(CxrHvdError, match="expected") as caught:
            read_manifest(tmp_path if shipped.stem == "vindr-cxr" else tmp_path / "t.csv", shipped)
        assert "\n" not in str(caught.value)
