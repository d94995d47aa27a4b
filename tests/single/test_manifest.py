"""Any table by a YAML of its columns: the four that ship, on tables in published form; and what is refused."""

import gzip
import math
from collections import Counter
from pathlib import Path

import pytest

from cxr_hvd.errors import ConfigError, CxrHvdError, DataError, UsageError
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.study_file import Split, View
from preprocess import pixels
from preprocess.records import SourceOptions, StudyListing, StudyRecord
from preprocess.sources import manifest
from preprocess.sources.columns import SHIPPED, load_columns
from tests.synthetic import write_csv, write_dicom, write_jpeg


def _read(table: Path, columns: str | Path) -> StudyListing:
    return manifest.studies(table, SourceOptions(columns=Path(columns)))


def _said(study: StudyRecord) -> dict[str, float]:
    """The labels that are not blank."""
    return {name: value for name, value in zip(LABELS, study.labels, strict=True) if not math.isnan(value)}


def _present(study: StudyRecord) -> set[str]:
    return {name for name, value in _said(study).items() if value == 1}


NIH_HEADERS = {
    "Data_Entry_2017.csv": "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,"
    "View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],",
    "Data_Entry_2017_v2020.csv": "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Sex,"
    "View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]",
}
NIH_ROWS = [
    "00000001_000.png,Cardiomegaly,0,1,58,M,PA,2682,2749,0.143,0.143",
    "00000001_001.png,Cardiomegaly|Emphysema,1,1,58,M,PA,2894,2729,0.143,0.143",
    "00000002_000.png,No Finding,0,2,81,M,AP,2500,2048,0.171,0.171",
    "00000003_000.png,Effusion|Mass|Pleural_Thickening,0,3,81,F,PA,2582,2991,0.143,0.143",
]


@pytest.mark.parametrize("name", NIH_HEADERS)
def test_nih_chestxray14(tmp_path: Path, name: str) -> None:
    header, comma = NIH_HEADERS[name], "," * NIH_HEADERS[name].endswith(",")
    (tmp_path / name).write_text("\n".join([header, *[row + comma for row in NIH_ROWS]]))
    (tmp_path / "train_val_list.txt").write_text("00000001_000.png\n00000001_001.png\n00000002_000.png\n")
    (tmp_path / "test_list.txt").write_text("00000003_000.png\r\n")
    for index, row in enumerate(NIH_ROWS):
        write_jpeg(tmp_path / f"images_{1 + index // 2:03d}" / "images" / row[:16], index)
    listing = _read(tmp_path / name, "nih-chestxray14")
    first, second, third, fourth = listing.studies
    assert [study.patient_id for study in listing.studies] == ["1", "1", "2", "3"]
    assert [study.split for study in listing.studies] == [Split.TRAIN] * 3 + [Split.TEST]
    assert [study.images[0].view for study in listing.studies] == [View.PA, View.PA, View.AP, View.PA]
    assert _present(first) == _present(second) == {"Cardiomegaly"}
    assert _present(third) == {"No Finding"}
    assert _present(fourth) == {"Pleural Effusion", "Lung Lesion", "Pleural Other"}
    blank = {"Enlarged Cardiomediastinum", "Lung Opacity", "Fracture", "Support Devices"}
    assert all(set(LABELS) - set(_said(study)) == blank for study in listing.studies)
    assert all(pixels.load(study, 16).shape == (1, 16, 16) for study in listing.studies)


PADCHEST_HEADER = (
    ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,"
    "ViewPosition_DICOM,Projection,MethodProjection,Pediatric,Modality_DICOM,Manufacturer_DICOM,"
    "PhotometricInterpretation_DICOM,PixelRepresentation_DICOM,PixelAspectRatio_DICOM,"
    "SpatialResolution_DICOM,BitsStored_DICOM,WindowCenter_DICOM,WindowWidth_DICOM,Rows_DICOM,"
    "Columns_DICOM,XRayTubeCurrent_DICOM,Exposure_DICOM,ExposureInuAs_DICOM,ExposureTime,"
    "RelativeXRayExposure_DICOM,ReportID,Report,MethodLabel,Labels,Localizations,"
    "LabelsLocalizationsBySentence,labelCUIS,LocalizationsCUIS"
)


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_padchest(tmp_path: Path, suffix: str) -> None:
    header = PADCHEST_HEADER.split(",")
    rows = [header]
    studies = [
        ("s1", "p1", "PA", "['normal']"),
        (
            "s2",
            "p1",
            "PA",
            "['cardiomegaly', ' pleural effusion', 'aortic elongation', 'apical pleural thickening']",
        ),
        (
            "s2",
            "p1",
            "L",
            "['cardiomegaly', ' pleural effusion', 'aortic elongation', 'apical pleural thickening']",
        ),
        ("s3", "p2", "AP_horizontal", "['pacemaker', 'unchanged', '']"),
        ("s4", "p3", "COSTAL", "nan"),
    ]
    for index, (study, patient, projection, labels) in enumerate(studies):
        cells = dict.fromkeys(header, "x, y") | {"ImageID": f"{index}.png", "ImageDir": str(index % 2)}
        cells |= {"StudyID": study, "PatientID": patient, "Projection": projection, "Labels": labels}
        rows.append([cells[name] for name in header])
        write_jpeg(tmp_path / str(index % 2) / f"{index}.png", index)
    table = tmp_path / f"PADCHEST_chest_x_ray_images_labels_160K_01.02.19{suffix}"
    write_csv(table, rows)
    first, second, third, fourth = _read(table, "padchest").studies
    assert _present(first) == {"No Finding"} and len(_said(first)) == 14
    assert _present(second) == {"Cardiomegaly", "Pleural Effusion", "Pleural Other"}
    assert [image.view for image in second.images] == [View.LATERAL, View.PA]
    assert _present(third) == {"Support Devices"} and third.images[0].view is View.AP
    assert _said(fourth) == {} and fourth.images[0].view is View.OTHER
    assert pixels.load(second, 16).shape == (2, 16, 16)


VINDR_LABELS = (
    "Aortic enlargement,Atelectasis,Calcification,Cardiomegaly,Clavicle fracture,Consolidation,Edema,"
    "Emphysema,Enlarged PA,ILD,Infiltration,Lung Opacity,Lung cavity,Lung cyst,Mediastinal shift,"
    "Nodule/Mass,Pleural effusion,Pleural thickening,Pneumothorax,Pulmonary fibrosis,Rib fracture,"
    "Other lesion,COPD,Lung tumor,Pneumonia,Tuberculosis,Other diseases,No finding"
)


def test_vindr_cxr(tmp_path: Path) -> None:
    def cells(*names: str) -> list[str]:
        return ["1" if name in names else "0" for name in VINDR_LABELS.split(",")]

    train = [
        ["image_id", "rad_id", *VINDR_LABELS.split(",")],
        ["aa", "R1", *cells("Edema", "Enlarged PA")],
        ["bb", "R1", *cells("No finding")],
        ["aa", "R2", *cells("Edema", "Rib fracture")],
        ["aa", "R3", *cells("Pneumonia", "Clavicle fracture")],
        ["bb", "R2", *cells("No finding")],
        ["bb", "R3", *cells("Edema")],
    ]
    write_csv(tmp_path / "annotations" / "image_labels_train.csv", train)
    write_csv(
        tmp_path / "annotations" / "image_labels_test.csv",
        [["image_id", *VINDR_LABELS.split(",")], ["cc", *cells("Lung tumor", "Infiltration")]],
    )
    for name in ("train/aa", "train/bb", "test/cc"):
        write_dicom(tmp_path / f"{name}.dicom", 1)
    first, second, third = _read(tmp_path, "vindr-cxr").studies
    # Two of three readers each, for the fracture of different bones.
    assert _present(first) == {"Edema", "Fracture"}
    assert _present(second) == {"No Finding"}
    assert _present(third) == {"Lung Lesion", "Lung Opacity"}
    assert [study.split for study in (first, second, third)] == [Split.TRAIN, Split.TRAIN, Split.TEST]
    assert "Enlarged Cardiomediastinum" not in _said(first) and len(_said(first)) == 12
    assert all(pixels.load(study, 16, "dicom-voi").shape == (1, 16, 16) for study in (first, second, third))
    with pytest.raises(UsageError, match="expected the folder of the tables"):
        _read(tmp_path / "annotations" / "image_labels_train.csv", "vindr-cxr")


def test_openi(tmp_path: Path) -> None:
    reports = [
        ["uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression"],
        ["1", "normal", "normal", "Xray Chest PA and Lateral", "x", "None.", "a, b\nc", "Normal chest."],
        ["2", "Cardiomegaly/borderline", "Cardiomegaly;Fractures, Bone;Pulmonary Artery", "", "", "", "", ""],
    ]
    projections = [
        ["uid", "filename", "projection"],
        ["1", "1_IM-0001-4001.dcm.png", "Frontal"],
        ["1", "1_IM-0001-3001.dcm.png", "Lateral"],
        ["2", "2_IM-0652-1001.dcm.png", "Frontal"],
        ["3", "3_IM-0001-1001.dcm.png", "Frontal"],
    ]
    write_csv(tmp_path / "indiana_reports.csv", reports)
    write_csv(tmp_path / "indiana_projections.csv", projections)
    for _, name, _ in projections[1:]:
        write_jpeg(tmp_path / "images" / "images_normalized" / name, 1)
    listing = _read(tmp_path / "indiana_projections.csv", "openi")
    first, second = listing.studies
    assert listing.num_unlabelled == 1
    assert [image.view for image in first.images] == [View.LATERAL, View.UNKNOWN]
    assert _present(first) == {"No Finding"} and _present(second) == {"Cardiomegaly", "Fracture"}
    assert pixels.load(first, 16).shape == (2, 16, 16)


# ---- a hospital's own table

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


def _own(
    tmp_path: Path, rows: list[list[str]] = OWN_ROWS, yaml: str = OWN, name: str = "export.csv"
) -> StudyListing:
    delimiter = "\t" if ".tsv" in name else ";" if "delimiter" in yaml else ","
    text = "\n".join(delimiter.join(f'"{cell}"' for cell in row) for row in rows)
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    (tmp_path / "own.yaml").write_text(yaml)
    for letter in "abcd":
        write_jpeg(tmp_path / "f" / f"{letter}.jpg", ord(letter))
    return _read(tmp_path / name, tmp_path / "own.yaml")


@pytest.mark.parametrize("name", ["export.csv", "export.csv.gz", "export.tsv", "export.tsv.gz"])
def test_a_hospitals_own_table(tmp_path: Path, name: str) -> None:
    first, second, third = _own(tmp_path, name=name).studies
    assert [study.study_id for study in (first, second, third)] == ["MRN1/1", "MRN2/1", "MRN3/1"]
    assert _said(first) == {"Edema": 1, "Lung Lesion": 0}
    assert _said(second) == {"Edema": -1, "Lung Lesion": 1}
    # One of two blank: not absent.
    assert _said(third) == {}
    views = [[image.view for image in study.images] for study in (first, second, third)]
    assert views == [[View.AP, View.LATERAL], [View.OTHER], [View.OTHER]]
    assert [study.split for study in (first, second, third)] == [Split.TRAIN, Split.VALIDATE, Split.TEST]


def test_semicolons_and_the_digest(tmp_path: Path) -> None:
    plain = _own(tmp_path)
    other = _own(tmp_path, yaml=OWN + 'delimiter: ";"\n')
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
        _own(tmp_path, rows)
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
        _own(tmp_path, yaml=yaml)
    assert "\n" not in str(caught.value) and "own.yaml: " in str(caught.value)


def test_findings_refuse_an_unknown_term_and_an_unassessed_label(tmp_path: Path) -> None:
    findings = """findings: {column: Note, separator: "|", terms: {Edema: Edema, x: none}, assessed: [Edema]}\n"""
    yaml = OWN[: OWN.index("labels:")] + findings
    with pytest.raises(DataError, match=r"column 'Note': expected a value that 'findings\.terms'") as caught:
        _own(tmp_path, yaml=yaml)
    assert "DOE" not in str(caught.value)
    rows = [[*row[:-1], cell] for row, cell in zip(OWN_ROWS, ["Note", "Edema|x", "x|Edema", "", "x"], strict=True)]
    assert [_said(study) for study in _own(tmp_path, rows, yaml).studies] == [{"Edema": 1}, {}, {"Edema": 0}]
    with pytest.raises(ConfigError, match="expected 'Edema', which terms name, in assessed too"):
        _own(tmp_path, yaml=yaml.replace("assessed: [Edema]", "assessed: []"))


def test_majority_is_uncertain_where_readers_are_even(tmp_path: Path) -> None:
    rows = [["id", "E"], ["a", "1"], ["a", "0"], ["b", "1"], ["b", "1"], ["b", "0"], ["c", ""]]
    write_csv(tmp_path / "t.csv", rows)
    (tmp_path / "y.yaml").write_text(
        "tables: {t.csv: {readers: majority}}\npatient: id\nstudy: id\nimages: {file: '{id}.jpg'}\n"
        "labels: {columns: {Edema: E}}\n"
    )
    assert [_said(study) for study in _read(tmp_path, tmp_path / "y.yaml").studies] == [
        {"Edema": -1},
        {"Edema": 1},
        {},
    ]


def test_columns_must_be_named(tmp_path: Path) -> None:
    for columns in (None, Path("nih"), tmp_path / "missing.yaml"):
        with pytest.raises(UsageError, match=r"nih-chestxray14, openi, padchest, vindr-cxr"):
            manifest.studies(tmp_path / "t.csv", SourceOptions(columns=columns))


def test_missing_tables_and_lists_are_one_line(tmp_path: Path) -> None:
    for shipped in sorted(SHIPPED.glob("*.yaml")):
        with pytest.raises(CxrHvdError, match="expected") as caught:
            _read(tmp_path if shipped.stem == "vindr-cxr" else tmp_path / "t.csv", shipped)
        assert "\n" not in str(caught.value)


def test_what_ships_knows_every_label_it_can(tmp_path: Path) -> None:
    known = {path.stem: load_columns(path) for path in SHIPPED.glob("*.yaml")}
    num_labels = Counter(
        {
            name: len(columns.findings.assessed if columns.findings else columns.labels.columns)  # type: ignore[union-attr]
            for name, columns in known.items()
        }
    )
    assert num_labels == {"nih-chestxray14": 10, "padchest": 14, "vindr-cxr": 12, "openi": 13}
