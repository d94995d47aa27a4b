"""The layout of a study file: its tables, its header, the values of its enums, and its digests.

The layout is a contract (docs/data-format.md): one record describes it for the writer and for the reader.
"""

import hashlib
import json
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_hvd.study.flow import Flow

SCHEMA = 2
READABLE = (1, 2)  # 1 knows neither sex, age nor flow
MAX_IMAGES = 20
MAX_AGE = 90
"""Years; who is older is as old, for higher ages may name a patient (45 CFR 164.514(b)(2)(i)(C))."""

UNKNOWN_AGE = 255


class View(IntEnum):
    """From which side an image was taken (DICOM ViewPosition; CheXpert Frontal/Lateral and AP/PA)."""

    UNKNOWN = 0
    PA = 1
    AP = 2
    LATERAL = 3
    OTHER = 4


class Sex(IntEnum):
    """A patient's sex (DICOM PatientSex: F, M, O; CheXpert Sex)."""

    UNKNOWN = 0
    FEMALE = 1
    MALE = 2
    OTHER = 3


class Split(IntEnum):
    """What a study is for. The studies of one patient all have the same split."""

    TRAIN = 0
    VALIDATE = 1
    TEST = 2


@dataclass(frozen=True)
class StudyFileHeader:
    """What is true of a whole study file; stored as HDF5 attributes.

    Attributes:
        site: the institution's name, as in the training config.
        source: the layout that was read, for example `chexpert` or `mimic-cxr`.
        label_names: names of the label columns, in order.
        image_size: height and width of every image, in pixels.
        seed: seed of the selection of studies and of the splits.
        pixels: name of the pixel pipeline, from file to uint8; files with different ones do not mix.
        source_sha256: digest of the source's tables, in hexadecimal.
        created: time of writing in UTC, ISO 8601.
        tool: name and version of the writer.
        flow: what was left out on the way from the source; None where the writer does not say.
    """

    site: str
    source: str
    label_names: tuple[str, ...]
    image_size: int
    seed: int
    pixels: str
    source_sha256: str
    created: str
    tool: str
    flow: Flow | None = None


@dataclass(frozen=True)
class StudyRow:
    """One study without its pixels.

    Attributes:
        study_id, patient_id: keyed hashes.
        views: one for each image.
        labels: (L,) of 1, 0, -1 or NaN.
        age: in whole years, at the time of the study.
    """

    study_id: str
    patient_id: str
    split: Split
    views: tuple[View, ...]
    labels: tuple[float, ...]
    sex: Sex = Sex.UNKNOWN
    age: int = UNKNOWN_AGE


@dataclass(frozen=True)
class StudyTables:
    """The tables of a study file, named and ordered as the file's datasets.

    Attributes:
        num_images: (N,) uint8, 1 to 20.
        views: (N, 20) uint8 of `View`.
        labels: (N, L) float32 of 1, 0, -1 and NaN.
        study_id, patient_id: (N,) str, keyed hashes.
        split: (N,) uint8 of `Split`.
        digests: (images, 32) uint8, SHA-256 of each image, study by study.
        sex: (N,) uint8 of `Sex`; None where it is known of no study.
        age: (N,) uint8 years, 0 to `MAX_AGE` or `UNKNOWN_AGE`; None where it is known of no study.
    """

    num_images: NDArray[np.uint8]
    views: NDArray[np.uint8]
    labels: NDArray[np.float32]
    study_id: NDArray[np.object_]
    patient_id: NDArray[np.object_]
    split: NDArray[np.uint8]
    digests: NDArray[np.uint8]
    sex: NDArray[np.uint8] | None = None
    age: NDArray[np.uint8] | None = None

    def by_name(self) -> dict[str, NDArray[Any]]:
        """Return the tables that there are by the names of their datasets, in order."""
        return {name: table for name, table in vars(self).items() if table is not None}


def image_digest(image_HW: NDArray[np.uint8]) -> bytes:
    """SHA-256 of an image's pixels in C order, 32 bytes."""
    return hashlib.sha256(np.ascontiguousarray(image_HW).data).digest()


def content_digest(header: StudyFileHeader, tables: StudyTables) -> str:
    """SHA-256 over header and tables, in hexadecimal; `digests` stands for the pixels.

    The time of writing and the writer's version are left out: equal studies give equal digests. So is what a file
    does not have: a file of schema 1 has the digest that it had.
    """
    content = {name: value for name, value in vars(header).items() if name not in ("created", "tool", "flow")}
    if header.flow is not None:
        content["flow"] = header.flow.model_dump()
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name, table in tables.by_name().items():
        is_text = table.dtype == object
        table_bytes = "\n".join(table).encode() if is_text else np.ascontiguousarray(table).tobytes()
        digest.update(f"{name}{table.shape}".encode() + table_bytes)
    return digest.hexdigest()
