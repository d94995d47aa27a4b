"""Read the header and the tables of a study file, and refuse what does not keep the contract.

Study files come from many hands. So nothing is read before what the file declares of it fits the file, and links,
virtual datasets and external data, which could read any file of the machine, are refused.
"""

from pathlib import Path
from typing import Any, NoReturn

import h5py
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from cxr_hvd.errors import StudyFileError
from cxr_hvd.study.flow import Flow
from cxr_hvd.study.layout import (
    MAX_AGE,
    MAX_IMAGES,
    READABLE,
    SCHEMA,
    UNKNOWN_AGE,
    Sex,
    Split,
    StudyFileHeader,
    StudyTables,
    View,
    content_digest,
)

# What a file may claim at most: four and seventy times what there is.
MAX_IMAGE_PX, MAX_LABELS = 4096, 1000


class TableReader:
    """Read an open HDF5 file part by part: `header`, then `images`, then `tables`, then `check_digest`.

    Args:
        path: of the file, for messages. file: the open file.

    Raises:
        StudyFileError: from each method, where the file does not keep the contract. On damaged files h5py raises
            errors of many other kinds.
    """

    def __init__(self, path: Path, file: h5py.File) -> None:
        self._path = path
        self._file = file
        self._schema = SCHEMA

    def header(self) -> StudyFileHeader:
        """Read the attributes, once the file is complete and of a schema that is read."""
        if "complete" not in self._file.attrs or self._attribute("complete", int) != 1:
            self._refuse("attribute complete = 1", "none: its writer was interrupted")
        self._schema = self._attribute("schema", int)
        if self._schema not in READABLE:
            self._refuse(f"schema 1 to {SCHEMA}", f"schema {self._schema}")
        (num_labels,) = self._file.attrs.get_id("label_names").shape
        if num_labels > MAX_LABELS:
            self._refuse(f"up to {MAX_LABELS} label names", f"{num_labels:,}")
        return StudyFileHeader(
            label_names=tuple(str(name) for name in self._file.attrs["label_names"]),
            image_size=self._attribute("image_size", int),
            seed=self._attribute("seed", int),
            flow=self._flow(),
            **{
                name: self._attribute(name, str)
                for name in ("site", "source", "pixels", "source_sha256", "created", "tool")
            },
        )

    def images(self, image_size: int) -> h5py.Dataset:
        """Return the dataset of images; no pixel is read."""
        images = self._dataset("images")
        if not 1 <= image_size <= MAX_IMAGE_PX:
            self._refuse(f"images of 1 to {MAX_IMAGE_PX} px", f"{image_size} px")
        expected = {
            "shape": (images.shape[0], MAX_IMAGES, image_size, image_size),
            "dtype": np.dtype(np.uint8),
            "chunks": (1, 1, image_size, image_size),
        }
        for property_name, value in expected.items():
            if (actual := getattr(images, property_name)) != value:
                self._refuse(f"images with {property_name} {value}", f"{actual}")
        if images.id.get_create_plist().get_nfilters():
            self._refuse("images without a filter", "a filter")
        return images

    def tables(self, num_studies: int, num_labels: int) -> StudyTables:
        """Read all tables and check their values."""
        num_images = self._table("num_images", (num_studies,), np.uint8)
        tables = StudyTables(
            num_images=num_images,
            views=self._table("views", (num_studies, MAX_IMAGES), np.uint8),
            labels=self._table("labels", (num_studies, num_labels), np.float32),
            split=self._table("split", (num_studies,), np.uint8),
            study_id=self._table("study_id", (num_studies,), str),
            patient_id=self._table("patient_id", (num_studies,), str),
            digests=self._table("digests", (int(num_images.sum(dtype=np.int64)), 32), np.uint8),
            sex=self._optional("sex", num_studies),
            age=self._optional("age", num_studies),
        )
        if num_studies == 0 or tables.num_images.min() < 1 or tables.num_images.max() > MAX_IMAGES:
            self._refuse(f"studies of 1 to {MAX_IMAGES} images", "others")
        if not (np.isin(tables.labels, (0.0, 1.0, -1.0)) | np.isnan(tables.labels)).all():
            self._refuse("labels of 1, 0, -1 and NaN", "others")
        if tables.split.max() > max(Split) or tables.views.max() > max(View):
            self._refuse("known splits and views", "others")
        if tables.sex is not None and tables.sex.max() > max(Sex):
            self._refuse("known sexes", "others")
        if tables.age is not None and not ((tables.age <= MAX_AGE) | (tables.age == UNKNOWN_AGE)).all():
            self._refuse(f"ages of 0 to {MAX_AGE} years, or {UNKNOWN_AGE} for unknown", "others")
        patients_in_splits = set(zip(tables.patient_id, tables.split.tolist(), strict=True))
        if len(patients_in_splits) != len(set(tables.patient_id)):
            self._refuse("splits disjoint by patient", "a patient in two")
        return tables

    def check_digest(self, header: StudyFileHeader, tables: StudyTables) -> str:
        """Return the digest of the content, which is the one that the file states."""
        digest, stated = content_digest(header, tables), self._attribute("content_sha256", str)
        if digest != stated:
            self._refuse(f"content with digest {stated[:12]}", f"{digest[:12]}: damaged")
        if self._file.userblock_size:
            self._refuse("no user block", "one")
        return digest

    def _flow(self) -> Flow | None:
        if self._schema < 2 or "flow" not in self._file.attrs:
            return None
        try:
            return Flow.model_validate_json(self._attribute("flow", str))
        except ValidationError:
            self._refuse("attribute flow of numbers and reasons", "another")

    def _optional(self, name: str, num_studies: int) -> NDArray[np.uint8] | None:
        """Read a table of one number a study that a file may lack."""
        if self._schema < 2 or self._file.get(name, getlink=True) is None:
            return None
        return self._table(name, (num_studies,), np.uint8)

    def _attribute(self, name: str, kind: type) -> Any:
        """Read an attribute that is one number or one text."""
        attribute = self._file.attrs.get_id(name)
        is_text = h5py.check_string_dtype(attribute.dtype) is not None
        if attribute.shape != () or is_text != (kind is str):
            self._refuse(f"attribute {name} of one {'text' if kind is str else 'number'}", "another")
        return kind(self._file.attrs[name])

    def _dataset(self, name: str) -> h5py.Dataset:
        """Return a dataset that lies in this very file."""
        link = self._file.get(name, getlink=True)
        if link is None:
            self._refuse(f"dataset {name}", "none")
        dataset = self._file[name] if isinstance(link, h5py.HardLink) else None
        if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external is not None:
            self._refuse(f"dataset {name} inside this file", "a link, a group or data kept elsewhere")
        return dataset

    def _table(self, name: str, shape: tuple[int, ...], kind: type) -> NDArray[Any]:
        """Read a table, once it is declared as it has to be and is no larger than the file that holds it."""
        dataset = self._dataset(name)
        if dataset.shape != shape:
            self._refuse(f"{name} of shape {shape}", f"{dataset.shape}")
        text = h5py.check_string_dtype(dataset.dtype)
        # Text of variable length is kept elsewhere in the file, and one piece may be named a billion times.
        if (not text or text.length is None) if kind is str else dataset.dtype != kind:
            self._refuse(
                f"{name} of type {'fixed-length text' if kind is str else kind.__name__}", f"{dataset.dtype}"
            )
        if dataset.nbytes > self._path.stat().st_size:
            self._refuse(f"{name} inside this file", f"{dataset.nbytes:,} bytes declared in a smaller one")
        return np.asarray(dataset.asstr()[:] if kind is str else dataset[:])

    def _refuse(self, expected: str, actual: str) -> NoReturn:
        raise StudyFileError(
            f"{self._path}: expected {expected}, found {actual}; write the file again with cxr-preprocess"
        )
