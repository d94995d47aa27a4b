"""The YAML files that ship, on tables in published form: labels, views, splits and negatives."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from cxr_hvd.errors import UsageError
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import Split, View
from preprocess.pixels import pipelines
from preprocess.records import ImageRecord
from preprocess.sources.columns import SHIPPED, load_columns
from tests.helpers.manifests import NIH_HEADERS, VINDR_LABELS, given_labels, present_labels, read_manifest
from tests.helpers.synthetic import write_csv, write_dicom, write_jpeg

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
    listing = read_manifest(tmp_path / name, "nih-chestxray14")
    first, second, third, fourth = listing.studies
    assert [study.patient_id for study in listing.studies] == ["1", "1", "2", "3"]
    assert [study.split for study in listing.studies] == [Split.TRAIN] * 3 + [Split.TEST]
    assert [study.images[0].view for study in listing.studies] == [View.PA, View.PA, View.AP, View.PA]
    assert present_labels(first) == present_labels(second) == {"Cardiomegaly"}
    assert present_labels(third) == {"No Finding"}
    assert present_labels(fourth) == {"Pleural Effusion", "Lung Lesion", "Pleural Other"}
    blank = {"Enlarged Cardiomediastinum", "Lung Opacity", "Fracture", "Support Devices"}
    assert all(set(LABELS) - set(given_labels(study)) == blank for study in listing.studies)
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
    first, second, third, fourth = read_manifest(table, "padchest").studies
    assert present_labels(first) == {"No Finding"} and len(given_labels(first)) == 14
    assert present_labels(second) == {"Cardiomegaly", "Pleural Effusion", "Pleural Other"}
    assert [image.view for image in second.images] == [View.LATERAL, View.PA]
    assert present_labels(third) == {"Support Devices"} and third.images[0].view is View.AP
    assert given_labels(fourth) == {} and fourth.images[0].view is View.OTHER
    assert pipelines.load_study(second, 16).shape == (2, 16, 16)


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
    first, second, third = read_manifest(tmp_path, "vindr-cxr").studies
    # Two of three readers each, for the fracture of different bones.
    assert present_labels(first) == {"Edema", "Fracture"}
    assert present_labels(second) == {"No Finding"}
    assert present_labels(third) == {"Lung Lesion", "Lung Opacity"}
    assert [study.split for study in (first, second, third)] == [Split.TRAIN, Split.TRAIN, Split.TEST]
    assert "Enlarged Cardiomediastinum" not in given_labels(first) and len(given_labels(first)) == 12
    assert all(
        pipelines.load_study(study, 16, "dicom-voi").shape == (1, 16, 16) for study in (first, second, third)
    )
    with pytest.raises(UsageError, match="expected the folder of the tables"):
        read_manifest(tmp_path / "annotations" / "image_labels_train.csv", "vindr-cxr")


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
    listing = read_manifest(tmp_path / "indiana_projections.csv", "openi")
    first, second = listing.studies
    assert listing.num_unlabelled == 1
    assert [image.view for image in first.images] == [View.LATERAL, View.UNKNOWN]
    assert present_labels(first) == {"No Finding"} and present_labels(second) == {"Cardiomegaly", "Fracture"}
    assert pipelines.load_study(first, 16).shape == (2, 16, 16)


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
    studies = read_manifest(write(tmp_path, list(cells)), columns).studies
    by_number = sorted(studies, key=lambda study: int(study.images[0].path.stem))
    for study, (cell, present) in zip(by_number, cells.items(), strict=True):
        assert len(given_labels(study)) == (0 if present is None else num_labels), cell
        assert present_labels(study) == (present or set()), cell


def _ramp(path: Path, is_negative: bool) -> None:
    values = np.arange(65536).reshape(256, 256) // 16
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), (4095 - values if is_negative else values).astype(np.uint16))


def test_an_image_that_the_table_calls_a_negative_is_inverted(tmp_path: Path) -> None:
    shades = ["MONOCHROME2", "MONOCHROME1", "", "nan"]
    table = _write_padchest(tmp_path, ["['normal']"] * 4, shades)
    for number, shade in enumerate(shades):
        _ramp(tmp_path / "0" / f"{number}.png", shade == "MONOCHROME1")
    images = [
        pipelines.load_study(study, 256)[0].astype(int) for study in read_manifest(table, "padchest").studies
    ]
    for image in images[1:]:
        assert np.abs(image - images[0]).max() <= 1
    assert images[0][0, 0] < 5 < 250 < images[0][-1, -1]


def test_a_table_that_lacks_the_pixel_property_says_so(tmp_path: Path) -> None:
    table = _write_padchest(tmp_path, ["['normal']"] * 2)
    assert not [note for note in read_manifest(table, "padchest").notes if "Photometric" in note]
    table.write_text(table.read_text().replace("PhotometricInterpretation_DICOM", "other"))
    note = read_manifest(table, "padchest").notes[-1]
    assert "no column 'PhotometricInterpretation_DICOM'" in note


def test_a_dicom_file_says_itself_whether_it_is_a_negative(tmp_path: Path) -> None:
    image = ImageRecord(tmp_path / "a.dcm", View.PA, "t.csv row 2")
    write_dicom(tmp_path / "a.dcm", 1)
    plain, called = (
        pipelines.load_image(replace(image, is_negative=is_negative), 16, "dicom-voi")
        for is_negative in (False, True)
    )
    np.testing.assert_array_equal(plain, called)


def test_what_ships_knows_every_label_it_can(tmp_path: Path) -> None:
    known = {path.stem: load_columns(path) for path in SHIPPED.glob("*.yaml")}
    num_labels = Counter(
        {
            name: len(columns.findings.assessed if columns.findings else columns.labels.columns)  # type: ignore[union-attr]
            for name, columns in known.items()
        }
    )
    assert num_labels == {"nih-chestxray14": 10, "padchest": 14, "vindr-cxr": 12, "openi": 13}
