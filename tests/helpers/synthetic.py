"""Small seeded hospital folders in the published layouts, for tests of the ingest.

Images are a few dozen pixels of smooth noise in awkward sizes: enough to tell each from every other.
"""

import csv
import gzip
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_hvd.study.labels import LABELS

NAME = "CheXpert-v1.0-small"
CHEXPERT_COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *LABELS)
Rows = list[list[str]]


def write_jpeg(path: Path, seed: int, height: int = 37, width: int = 29) -> None:
    """Write a gray JPEG of smooth noise that depends on the seed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 4)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))


def write_chexpert(
    root: Path,
    num_patients: int = 20,
    seed: int = 0,
    change: Callable[[Rows], Rows] = lambda rows: rows,
) -> Path:
    """Write train.csv and valid.csv with images of 1 or 2 studies of 1 to 4 images a patient; return `root`.

    Args:
        root: the folder to hold CheXpert-v1.0-small/.
        num_patients: every fifth is in valid.csv.
        seed: of labels, counts and pixels.
        change: given the rows of train.csv with the header first, returns those to write.
    """
    rng = np.random.default_rng(seed)
    tables: dict[str, Rows] = {name: [list(CHEXPERT_COLUMNS)] for name in ("train", "valid")}
    for patient in range(1, num_patients + 1):
        table = "valid" if patient % 5 == 0 else "train"
        for study in range(1, int(rng.integers(1, 3)) + 1):
            cells = rng.choice(["1.0", "0.0", "-1.0", ""], len(LABELS)).tolist()
            for view in range(1, int(rng.integers(1, 5)) + 1):
                way, taken = ("Lateral", "") if view == 2 else ("Frontal", ("AP", "PA")[patient % 2])
                path = f"{NAME}/{table}/patient{patient:05d}/study{study}/view{view}_{way.lower()}.jpg"
                tables[table].append([path, "Female", "61", way, taken, *cells])
                write_jpeg(root / path, seed + 100 * patient + 10 * study + view, 30 + patient, 50 - view)
    for name, rows in tables.items():
        write_csv(root / NAME / f"{name}.csv", change(rows) if name == "train" else rows)
    return root


def write_mimic_cxr(
    root: Path,
    num_patients: int = 20,
    seed: int = 0,
    change: Callable[[dict[str, Rows]], dict[str, Rows]] = lambda tables: tables,
    write_image: Callable[[Path, int], None] = write_jpeg,
    suffix: str = "jpg",
) -> Path:
    """Write the three gzipped tables with images of 1 or 2 studies of 1 to 4 images a patient; return `root`.

    Args:
        root: the folder to hold files/ and the tables.
        num_patients: three of five are in the train split.
        seed: of labels, counts and pixels.
        change: given all tables by kind, returns those to write.
        write_image: called with a path and a seed. suffix: of the images' names.
    """
    rng = np.random.default_rng(seed)
    alphabetical = sorted(LABELS)
    tables: dict[str, Rows] = {
        "chexpert": [["subject_id", "study_id", *alphabetical]],
        "metadata": [["dicom_id", "subject_id", "study_id", "ViewPosition", "Rows", "NewerColumn"]],
        "split": [["dicom_id", "study_id", "subject_id", "split"]],
    }
    for patient in range(10000001, 10000001 + num_patients):
        split = ("train", "train", "train", "validate", "test")[patient % 5]
        for study in range(int(rng.integers(1, 3))):
            exam = str(50000000 + 2 * (patient - 10000000) + study)
            tables["chexpert"].append([str(patient), exam, *rng.choice(["1.0", "0.0", "-1.0", ""], 14).tolist()])
            for image in range(int(rng.integers(1, 5))):
                dicom = f"{patient:08x}-{study}-{image}"
                view = ("PA", "LATERAL", "", "LL")[image]
                tables["metadata"].append([dicom, str(patient), exam, view, "37", ""])
                tables["split"].append([dicom, exam, str(patient), split])
                path = root / f"files/p{str(patient)[:2]}/p{patient}/s{exam}/{dicom}.{suffix}"
                write_image(path, seed + 10 * int(exam) + image)
    for kind, rows in change(tables).items():
        write_csv(root / f"mimic-cxr-2.0.0-{kind}.csv.gz", rows)
    return root


def write_dicom(path: Path, seed: int, view: str | None = None) -> None:
    """Write a 12-bit DICOM file of smooth noise that depends on the seed, with a patient's data in it."""
    coarse = np.random.default_rng(seed).integers(0, 4096, (5, 4)).astype(np.uint16)
    values = cv2.resize(coarse, (29, 37), interpolation=cv2.INTER_LINEAR)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(dicom_bytes(values, BitsStored=12, ViewPosition=view))


def write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """Write a table, gzipped where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


SECRETS = {
    "PatientName": "DOE^JOHN",
    "PatientID": "MRN4711",
    "PatientBirthDate": "19510203",
    "StudyDate": "20190817",
    "InstitutionName": "Sacred Heart",
    "StudyDescription": "seen by Dr Cox",
}


def dicom_bytes(values: NDArray[Any], syntax: str = "ExplicitVRLittleEndian", **attributes: object) -> bytes:
    """Return a DICOM file of the stored values (H, W) or (H, W, 3), with a patient's data in it.

    Args:
        values: stored as they are, in as many bits as their type has.
        syntax: a name in pydicom.uid; compressed ones are compressed by pydicom.
        attributes: replace those that follow from the values; None removes one.
    """
    from pydicom import Dataset, uid
    from pydicom.dataset import FileMetaDataset

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4711"
    bits = 8 * values.itemsize
    shape = {"Rows": values.shape[0], "Columns": values.shape[1], "PixelRepresentation": values.dtype.kind == "i"}
    samples = {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2"}
    if values.ndim == 3:
        samples = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    depth = {"BitsAllocated": bits, "BitsStored": bits, "HighBit": int(attributes.get("BitsStored", bits)) - 1}
    pixels = values.tobytes()
    dataset.PixelData = pixels + b"\0" * (len(pixels) % 2)
    dataset["PixelData"].VR = "OW" if bits == 16 else "OB"
    for name, value in {**SECRETS, **shape, **samples, **depth, **attributes}.items():
        if value is not None:
            setattr(dataset, name, int(value) if isinstance(value, bool) else value)
        elif name in dataset:
            delattr(dataset, name)
    if syntax != "ExplicitVRLittleEndian":
        dataset.compress(getattr(uid, syntax), generate_instance_uid=False)
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()
