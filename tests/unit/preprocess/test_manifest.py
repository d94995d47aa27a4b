"""Any table by a YAML of its columns: the four that ship, on tables in published form; and what is refused."""

import gzip
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from cxr_hvd.errors import ConfigError, CxrHvdError, DataError, UsageError
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import Split, View
from preprocess.pixels import pipelines
from preprocess.records import ImageRecord, SourceOptions, StudyListing, StudyRecord
from preprocess.sources import draft, manifest
from preprocess.sources.columns import SHIPPED, load_columns
from tests.helpers.synthetic import write_csv, write_dicom, write_jpeg


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
    assert all(pipelines.load_study(study, 16).shape == (1, 16, 16) for study in listing.studies)


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
    assert pipelines.load_study(second, 16).shape == (2, 16, 16)


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
    assert all(
        pipelines.load_study(study, 16, "dicom-voi").shape == (1, 16, 16) for study in (first, second, third)
    )
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
    assert pipelines.load_study(first, 16).shape == (2, 16, 16)


# ---- what a report says nothing of

# A cell of the shipped tables, and what it says. Terms that say nothing never make a label absent.
PADCHEST_CELLS = {
    "['exclude']": None,
    "['unchanged']": None,
    "['suboptimal study']": None,
    "['exclude', 'suboptimal study', '']": None,
    "['']": None,
    "[]": None,
    "nan": None,
    "": None,
    "['unchanged', 'pacemaker', '']": {"Support Devices"},
    "['kyphosis']": set(),
    "['normal']": {"No Finding"},
}
OPENI_CELLS = {
    "No Indexing": None,
    "Technical Quality of Image Unsatisfactory ": None,
    "No Indexing;Technical Quality of Image Unsatisfactory": None,
    "": None,
    "Cardiomegaly;Technical Quality of Image Unsatisfactory": {"Cardiomegaly"},
    "Scoliosis": set(),
}
NIH_CELLS: dict[str, set[str] | None] = {"": None, "No Finding": {"No Finding"}, "Hernia": set()}


def _write_openi(folder: Path, cells: list[str]) -> Path:
    numbers = [str(number) for number, _ in enumerate(cells)]
    write_csv(folder / "indiana_reports.csv", [["uid", "Problems"], *map(list, zip(numbers, cells, strict=True))])
    rows = [[number, f"{number}.png", "Frontal"] for number in numbers]
    write_csv(folder / "indiana_projections.csv", [["uid", "filename", "projection"], *rows])
    (folder / "images").mkdir()
    return folder / "indiana_projections.csv"


def _write_nih(folder: Path, cells: list[str]) -> Path:
    header = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "View Position"]
    write_csv(folder / "t.csv", [header, *[[f"{n}.png", cell, "0", str(n), "PA"] for n, cell in enumerate(cells)]])
    (folder / "train_val_list.txt").write_text("".join(f"{n}.png\n" for n, _ in enumerate(cells)))
    (folder / "test_list.txt").write_text("")
    (folder / "images").mkdir()
    return folder / "t.csv"


def _write_padchest(folder: Path, cells: list[str], photometric: list[str] | None = None) -> Path:
    header = [
        "ImageID",
        "ImageDir",
        "StudyID",
        "PatientID",
        "Projection",
        "PhotometricInterpretation_DICOM",
        "Labels",
    ]
    shades = photometric or ["MONOCHROME2"] * len(cells)
    rows = [
        [f"{n}.png", "0", str(n), f"{n:02d}", "PA", shade, cell]
        for n, (cell, shade) in enumerate(zip(cells, shades, strict=True))
    ]
    write_csv(folder / "t.csv", [header, *rows])
    return folder / "t.csv"


@pytest.mark.parametrize(
    ("columns", "write", "cells", "num_labels"),
    [
        ("padchest", _write_padchest, PADCHEST_CELLS, 14),
        ("openi", _write_openi, OPENI_CELLS, 13),
        ("nih-chestxray14", _write_nih, NIH_CELLS, 10),
    ],
)
def test_what_says_nothing_is_blank_and_never_absent(
    tmp_path: Path,
    columns: str,
    write: Callable[[Path, list[str]], Path],
    cells: dict[str, set[str] | None],
    num_labels: int,
) -> None:
    studies = _read(write(tmp_path, list(cells)), columns).studies
    by_number = sorted(studies, key=lambda study: int(study.images[0].path.stem))
    for study, (cell, present) in zip(by_number, cells.items(), strict=True):
        assert len(_said(study)) == (0 if present is None else num_labels), cell
        assert _present(study) == (present or set()), cell


def test_uncertain_readers_are_no_absence(tmp_path: Path) -> None:
    rows = [["id", "E"], ["a", "-1"], ["a", "-1"], ["a", "0"], ["b", "-1"], ["c", ""], ["c", "0"]]
    write_csv(tmp_path / "t.csv", rows)
    (tmp_path / "y.yaml").write_text(MAJORITY)
    assert [_said(study) for study in _read(tmp_path, tmp_path / "y.yaml").studies] == [
        {"Edema": -1},
        {"Edema": -1},
        {"Edema": 0},
    ]


# ---- what a table says of the pixels


def _ramp(path: Path, is_negative: bool) -> None:
    values = np.arange(65536).reshape(256, 256) // 16
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), (4095 - values if is_negative else values).astype(np.uint16))


def test_an_image_that_the_table_calls_a_negative_is_inverted(tmp_path: Path) -> None:
    shades = ["MONOCHROME2", "MONOCHROME1", "", "nan"]
    table = _write_padchest(tmp_path, ["['normal']"] * 4, shades)
    for number, shade in enumerate(shades):
        _ramp(tmp_path / "0" / f"{number}.png", shade == "MONOCHROME1")
    images = [pipelines.load_study(study, 256)[0].astype(int) for study in _read(table, "padchest").studies]
    for image in images[1:]:
        assert np.abs(image - images[0]).max() <= 1
    assert images[0][0, 0] < 5 < 250 < images[0][-1, -1]


def test_a_table_that_lacks_the_pixel_property_says_so(tmp_path: Path) -> None:
    table = _write_padchest(tmp_path, ["['normal']"] * 2)
    assert _read(table, "padchest").notes == ()
    table.write_text(table.read_text().replace("PhotometricInterpretation_DICOM", "other"))
    (note,) = _read(table, "padchest").notes
    assert "no column 'PhotometricInterpretation_DICOM'" in note


def test_a_dicom_file_says_itself_whether_it_is_a_negative(tmp_path: Path) -> None:
    image = ImageRecord(tmp_path / "a.dcm", View.PA, "t.csv row 2")
    write_dicom(tmp_path / "a.dcm", 1)
    plain, called = (
        pipelines.load_image(replace(image, is_negative=is_negative), 16, "dicom-voi")
        for is_negative in (False, True)
    )
    np.testing.assert_array_equal(plain, called)


# ---- tables that are joined

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
    return _read(folder / "t.csv", folder / "y.yaml")


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
    listing = _read(tmp_path / "t.csv", tmp_path / "y.yaml")
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
    studies = _read(tmp_path / "t.csv", tmp_path / "y.yaml").studies
    assert [study.split for study in studies] == [Split.TRAIN, Split.TEST]
    (tmp_path / "b.txt").write_text("b.jpg\na.jpg\n")
    with pytest.raises(
        DataError, match=r"b\.txt line 2: expected each image in the lists of one split.* in a\.txt too"
    ):
        _read(tmp_path / "t.csv", tmp_path / "y.yaml")


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
                _read(tmp_path, tmp_path / "y.yaml")
        else:
            listing = _read(tmp_path, tmp_path / "y.yaml")
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
        listing = _read(tmp_path, "vindr-cxr")
        assert _present(listing.studies[0]) == {"Pneumonia"} and listing.num_duplicates == num_duplicates
    write_csv(tmp_path / "annotations" / "image_labels_train.csv", [*rows, cells("aa", "R1", "Pneumonia")])
    with pytest.raises(DataError, match=r"train\.csv row 5: expected the labels of .* row 2.*same reader's"):
        _read(tmp_path, "vindr-cxr")


def test_readers_of_an_image_agree_on_all_but_labels(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", [["id", "s", "E"], ["a", "1", "1"], ["a", "2", "1"]])
    (tmp_path / "y.yaml").write_text(MAJORITY.replace("study: id", "study: s"))
    with pytest.raises(DataError, match=r"t\.csv row 3: expected patient, study, split and view of t\.csv row 2"):
        _read(tmp_path, tmp_path / "y.yaml")


def test_two_images_of_one_name_are_refused_unless_they_are_equal(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("p,s,f,e\n1,1,a.jpg,1\n")
    (tmp_path / "y.yaml").write_text(JOINED.replace('"{f}"', '"{f}", folders: ["part_*"]'))
    write_jpeg(tmp_path / "part_1" / "a.jpg", 1)
    write_jpeg(tmp_path / "part_2" / "a.jpg", 1)
    assert len(_read(tmp_path / "t.csv", tmp_path / "y.yaml").studies) == 1
    write_jpeg(tmp_path / "part_2" / "a.jpg", 2)
    with pytest.raises(
        DataError, match=r"t\.csv row 2: expected one image of this name.*in part_2 than in part_1"
    ):
        _read(tmp_path / "t.csv", tmp_path / "y.yaml")


# ---- a draft


def test_a_draft_of_a_plain_table_needs_no_change(tmp_path: Path) -> None:
    header = "PatNr;Exam;Path;Side;View;Set;Edema;Pleural Effusion;PhotometricInterpretation;DOE^JOHN: no\n"
    (tmp_path / "t.csv").write_text(header + "MRN1;7;a.png;left;PA;train;1;0;MONOCHROME1;x\n")
    draft.write_draft(tmp_path / "t.csv", tmp_path / "y.yaml", overwrite=False)
    (study,) = _read(tmp_path / "t.csv", tmp_path / "y.yaml").studies
    assert (study.patient_id, study.study_id, study.split) == ("MRN1", "MRN1/7", Split.TRAIN)
    assert _said(study) == {"Edema": 1, "Pleural Effusion": 0}
    assert study.images[0].view is View.PA and study.images[0].is_negative
    assert "MRN1" not in (tmp_path / "y.yaml").read_text()


def test_a_draft_says_what_it_could_not_guess(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('"a\nb",x:y,#,"{"\n1,2,3,4\n')
    draft.write_draft(tmp_path / "t.csv", tmp_path / "y.yaml", overwrite=False)
    assert load_columns(tmp_path / "y.yaml").patient == [draft.MISSING]
    with pytest.raises(DataError, match=r"expected a column 'CHANGE-ME'.*name it in y\.yaml"):
        _read(tmp_path / "t.csv", tmp_path / "y.yaml")
    with pytest.raises(UsageError, match="found one; choose another or add --overwrite"):
        draft.write_draft(tmp_path / "t.csv", tmp_path / "y.yaml", overwrite=False)
    draft.write_draft(tmp_path / "t.csv", tmp_path / "y.yaml", overwrite=True)


@pytest.mark.parametrize("name", NIH_HEADERS)
def test_a_draft_knows_nih_columns(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(NIH_HEADERS[name] + "\n")
    (tmp_path / "y.yaml").write_text(draft.build_draft(tmp_path / name, "y.yaml"))
    columns = load_columns(tmp_path / "y.yaml")
    assert columns.patient == ["Patient ID"] and columns.study == ["Patient ID", "Follow-up #"]
    assert (
        columns.images.file == "{Image Index}" and columns.findings and columns.findings.column == "Finding Labels"
    )
    assert columns.view and columns.view.column == "View Position"


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
    (tmp_path / "y.yaml").write_text(MAJORITY)
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
