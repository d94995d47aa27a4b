"""Write a study file once, from its first study to its `complete`."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from enum import IntEnum
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from cxr_hvd.errors import StudyFileError
from cxr_hvd.files import create_private, sync
from cxr_hvd.study.flow import Flow
from cxr_hvd.study.layout import (
    MAX_AGE,
    MAX_IMAGES,
    SCHEMA,
    UNKNOWN_AGE,
    Sex,
    Split,
    StudyFileHeader,
    StudyRow,
    StudyTables,
    View,
    content_digest,
    image_digest,
)


class StudyFileWriter:
    """Write a study file study by study, in its order, where nobody knows beforehand how many there will be.

    The caller gives a path beside the final name and renames it after `close` (see `cxr_hvd.files`): a file
    that was not closed has no `complete` attribute and is refused by `StudyFile`. Tables are kept as arrays:
    about 0.3 KB a study and 32 bytes an image.

    Args:
        path: a file that does not exist yet; it is made with mode 0600, for it holds images of patients.
        header: what is true of the whole file.
        max_studies: as many studies as there may be.
    """

    def __init__(self, path: Path, header: StudyFileHeader, max_studies: int) -> None:
        size, shape = header.image_size, (max_studies, MAX_IMAGES, header.image_size, header.image_size)
        self._header = header
        self._count = 0
        self._num_images = np.zeros(max_studies, dtype=np.uint8)
        self._views = np.zeros((max_studies, MAX_IMAGES), dtype=np.uint8)
        self._labels = np.zeros((max_studies, len(header.label_names)), dtype=np.float32)
        self._splits = np.zeros(max_studies, dtype=np.uint8)
        self._sexes = np.zeros(max_studies, dtype=np.uint8)
        self._ages = np.full(max_studies, UNKNOWN_AGE, dtype=np.uint8)
        self._study_ids: list[str] = []
        self._patient_ids: list[str] = []
        self._digests = bytearray()
        os.close(create_private(path))
        self._file = h5py.File(path, "w")
        self._images = self._file.create_dataset(
            "images", shape, np.uint8, maxshape=shape, chunks=(1, 1, size, size), fillvalue=0
        )

    def append(self, row: StudyRow, images_NHW: NDArray[np.uint8], digests: Sequence[bytes] | None = None) -> None:
        """Write the next study: its images (n, H, W), one for each of its views.

        `digests` are their `image_digest`, where the caller knows them already.
        """
        if digests is None:
            digests = [image_digest(image_HW) for image_HW in images_NHW]
        num, index = len(row.views), self._count
        if not 1 <= num <= MAX_IMAGES or len(images_NHW) != num or len(digests) != num:
            raise ValueError(f"study {index} of {num} views has {len(images_NHW)} images, {len(digests)} digests")
        write = self._images.id.write_direct_chunk
        for position, image_HW in enumerate(images_NHW):
            write((index, position, 0, 0), np.ascontiguousarray(image_HW))
        self._num_images[index] = num
        self._views[index, :num] = row.views
        self._labels[index] = row.labels
        self._splits[index] = row.split
        self._sexes[index] = row.sex
        self._ages[index] = row.age if row.age == UNKNOWN_AGE else min(row.age, MAX_AGE)
        self._study_ids.append(row.study_id)
        self._patient_ids.append(row.patient_id)
        self._digests += b"".join(digests)
        self._count += 1

    def close(self, flow: Flow | None = None) -> str:
        """Write tables, attributes and `complete`, wait for the disk, and return the digest of the content.

        Args:
            flow: what was left out on the way from the source, where the caller knows it.
        """
        num = self._count
        if num == 0:
            raise StudyFileError(f"{self._file.filename}: a study file holds 1 or more studies")
        if num < len(self._num_images):
            self._images.resize(num, axis=0)
        study_ids, patient_ids = (np.array(ids, dtype=object) for ids in (self._study_ids, self._patient_ids))
        sexes, ages = self._sexes[:num], self._ages[:num]
        tables = StudyTables(
            num_images=self._num_images[:num],
            views=self._views[:num],
            labels=self._labels[:num],
            study_id=study_ids,
            patient_id=patient_ids,
            split=self._splits[:num],
            digests=np.frombuffer(self._digests, dtype=np.uint8).reshape(-1, 32),
            sex=sexes if sexes.any() else None,
            age=ages if (ages != UNKNOWN_AGE).any() else None,
        )
        return _complete(self._file, replace(self._header, flow=flow), tables)

    def abandon(self) -> None:
        """Let go of the unfinished file, whatever state it and the disk are in."""
        with suppress(Exception):  # HDF5 tries to write what it holds; nobody will read it.
            self._file.close()


def _complete(file: h5py.File, header: StudyFileHeader, tables: StudyTables) -> str:
    """Write tables and attributes, `complete` last, close the file and wait until all is on the disk."""
    for name, table in tables.by_name().items():
        file.create_dataset(name, data=_stored(name, table))
    attributes: dict[str, Any] = {"schema": SCHEMA, "max_images": MAX_IMAGES, **vars(header)}
    attributes["label_names"] = list(header.label_names)
    if (flow := attributes.pop("flow")) is not None:
        attributes["flow"] = flow.model_dump_json()
    digest = content_digest(header, tables)
    attributes["content_sha256"] = digest
    for name, value in attributes.items():
        file.attrs[name] = value
    file.flush()
    file.attrs["complete"] = 1
    path = Path(file.filename)
    file.close()
    sync(path)
    return digest


def _stored(name: str, table: NDArray[Any]) -> NDArray[Any]:
    """Give a table the type that it has on disk: named values for enums, fixed-length UTF-8 for text."""
    enums: dict[str, type[IntEnum]] = {"views": View, "split": Split, "sex": Sex}
    if name in enums:
        members = {member.name: int(member) for member in enums[name]}
        return table.astype(h5py.enum_dtype(members, basetype=np.uint8))
    if table.dtype == object:
        encoded = [text.encode() for text in table]
        return np.array(encoded, dtype=h5py.string_dtype("utf-8", max(map(len, encoded))))
    return table
