"""The study file: one institution's studies as zero-padded tensors in HDF5.

`images` reads as (N, 20, 256, 256) uint8 in any HDF5 program. Image j of study i is the chunk `[i, j]`; the
padding after a study's last image is never written and reads as zeros, so it costs no disk. No filter is used:
the pixels are read straight from the page cache. The layout is a contract (docs/data-format.md), and the
two modules here are the only ones that know HDF5.

A study file is written once, by `StudyFileWriter` (study_writer.py), beside its name, and gets the attribute
`complete` last. `StudyFile` reads it and refuses whatever does not keep the contract: such files come
from many hands.
"""

import hashlib
import json
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from cxr_hvd.errors import StudyFileError

SCHEMA = 1
MAX_IMAGES = 20
# What a file may claim at most: four and seventy times what there is.
MAX_IMAGE_PX, MAX_LABELS = 4096, 1000
TABLES = ("num_images", "views", "labels", "study_id", "patient_id", "split", "digests")


class View(IntEnum):
    """From which side an image was taken (DICOM ViewPosition; CheXpert Frontal/Lateral and AP/PA)."""

    UNKNOWN = 0
    PA = 1
    AP = 2
    LATERAL = 3
    OTHER = 4


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


@dataclass(frozen=True)
class StudyRow:
    """One study without its pixels: (L,) labels of 1, 0, -1 or NaN, one view for each image, hashed ids."""

    study_id: str
    patient_id: str
    split: Split
    views: tuple[View, ...]
    labels: tuple[float, ...]


def image_digest(image_HW: NDArray[np.uint8]) -> bytes:
    """SHA-256 of an image's pixels in C order, 32 bytes."""
    return hashlib.sha256(np.ascontiguousarray(image_HW).data).digest()


def content_digest(header: StudyFileHeader, tables: dict[str, NDArray[Any]]) -> str:
    """SHA-256 over header and tables, in hexadecimal; `digests` stands for the pixels.

    The time of writing and the writer's version are left out: equal studies give equal digests.
    """
    said = {name: value for name, value in vars(header).items() if name not in ("created", "tool")}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name in TABLES:
        table = tables[name]
        is_text = table.dtype == object
        content = "\n".join(table).encode() if is_text else np.ascontiguousarray(table).tobytes()
        digest.update(f"{name}{table.shape}".encode() + content)
    return digest.hexdigest()


class StudyFile:
    """Read one study file. Opening checks the contract and the content's digest; images are checked on demand.

    Safe to read from several threads of one process.

    Attributes:
        header: what is true of the whole file.
        num_images: (N,) uint8, 1 to 20.
        labels: (N, L) float32 of 1, 0, -1 and NaN.
        views: (N, 20) uint8 of `View`.
        splits: (N,) uint8 of `Split`.
        study_ids, patient_ids: (N,) str, keyed hashes.
        digests: (images, 32) uint8, SHA-256 of each image, study by study.
        digest: SHA-256 over header, tables and, through the image digests, pixels, in hexadecimal.

    Raises:
        StudyFileError: the file is missing, unfinished, damaged, or not of this schema.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            if stat.S_ISFIFO(self.path.stat().st_mode):  # to open it would wait for ever
                self._refuse("a regular file", "a FIFO")
            self.path.open("rb").close()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise StudyFileError(
                f"{path}: no study file here; make one with cxr-preprocess ... --out {path}"
            ) from error
        except OSError as error:  # of another user, as a rule
            raise StudyFileError(
                f"{path}: cannot read it ({error.strerror}); each rank needs its own site's file alone"
            ) from error
        try:
            # No lock: the file never changes once it has its name. No chunk cache: a chunk is read once a pass.
            self._file = h5py.File(self.path, "r", rdcc_nbytes=0, locking=False)
        # Of what others wrote h5py makes errors of many kinds, here and below.
        except Exception as error:
            raise StudyFileError(
                f"{path}: not a readable HDF5 file; write it again with cxr-preprocess"
            ) from error
        try:
            self._read_tables()
        except Exception as error:
            with suppress(Exception):
                self._file.close()
            if isinstance(error, StudyFileError):
                raise
            raise StudyFileError(
                f"{path}: not a study file of schema {SCHEMA} ({type(error).__name__}: {str(error)[:200]}); "
                "write it again with cxr-preprocess"
            ) from error

    def _read_tables(self) -> None:
        """Read header and tables; nothing is read before what is declared of it fits the file."""
        if "complete" not in self._file.attrs or self._attribute("complete", int) != 1:
            self._refuse("attribute complete = 1", "none: its writer was interrupted")
        if (schema := self._attribute("schema", int)) != SCHEMA:
            self._refuse(f"schema {SCHEMA}", f"schema {schema}")
        (num_labels,) = self._file.attrs.get_id("label_names").shape
        if num_labels > MAX_LABELS:
            self._refuse(f"up to {MAX_LABELS} label names", f"{num_labels:,}")
        self.header = StudyFileHeader(
            label_names=tuple(str(name) for name in self._file.attrs["label_names"]),
            image_size=self._attribute("image_size", int),
            seed=self._attribute("seed", int),
            **{
                name: self._attribute(name, str)
                for name in ("site", "source", "pixels", "source_sha256", "created", "tool")
            },
        )
        self._images = self._own_dataset("images")
        size, num_studies = self.header.image_size, self._images.shape[0]
        if not 1 <= size <= MAX_IMAGE_PX:
            self._refuse(f"images of 1 to {MAX_IMAGE_PX} px", f"{size} px")
        expected = {
            "shape": (num_studies, MAX_IMAGES, size, size),
            "dtype": np.dtype(np.uint8),
            "chunks": (1, 1, size, size),
        }
        for what, value in expected.items():
            if (found := getattr(self._images, what)) != value:
                self._refuse(f"images with {what} {value}", f"{found}")
        if self._images.id.get_create_plist().get_nfilters():
            self._refuse("images without a filter", "a filter")
        tables = {"num_images": self._table("num_images", (num_studies,), np.uint8)}
        num_images = int(tables["num_images"].sum(dtype=np.int64))
        tables |= {
            name: self._table(name, shape, kind)
            for name, shape, kind in (
                ("views", (num_studies, MAX_IMAGES), np.uint8),
                ("labels", (num_studies, len(self.header.label_names)), np.float32),
                ("split", (num_studies,), np.uint8),
                ("study_id", (num_studies,), str),
                ("patient_id", (num_studies,), str),
                ("digests", (num_images, 32), np.uint8),
            )
        }
        self.num_images: NDArray[np.uint8] = tables["num_images"]
        self.views: NDArray[np.uint8] = tables["views"]
        self.labels: NDArray[np.float32] = tables["labels"]
        self.splits: NDArray[np.uint8] = tables["split"]
        self.study_ids: NDArray[np.object_] = tables["study_id"]
        self.patient_ids: NDArray[np.object_] = tables["patient_id"]
        self.digests: NDArray[np.uint8] = tables["digests"]
        self._check_tables()
        self.digest = content_digest(self.header, tables)
        stated = self._attribute("content_sha256", str)
        if self.digest != stated:
            self._refuse(f"content with digest {stated[:12]}", f"{self.digest[:12]}: damaged")
        self._first_image = np.concatenate([[0], np.cumsum(self.num_images, dtype=np.int64)])
        if self._file.userblock_size:
            self._refuse("no user block", "one")
        self._descriptor: int = self._file.id.get_vfd_handle()
        self._offsets: NDArray[np.int64] | None = None

    def _attribute(self, name: str, kind: type) -> Any:
        """Read an attribute that is one number or one text."""
        attribute = self._file.attrs.get_id(name)
        is_text = h5py.check_string_dtype(attribute.dtype) is not None
        if attribute.shape != () or is_text != (kind is str):
            self._refuse(f"attribute {name} of one {'text' if kind is str else 'number'}", "another")
        return kind(self._file.attrs[name])

    def _own_dataset(self, name: str) -> h5py.Dataset:
        """Return a dataset that lies in this very file: links, virtual and external data could read any file."""
        link = self._file.get(name, getlink=True)
        if link is None:
            self._refuse(f"dataset {name}", "none")
        dataset = self._file[name] if isinstance(link, h5py.HardLink) else None
        if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external is not None:
            self._refuse(f"dataset {name} inside this file", "a link, a group or data kept elsewhere")
        return dataset

    def _table(self, name: str, shape: tuple[int, ...], kind: type) -> NDArray[Any]:
        """Read a table, once it is declared as it has to be and is no larger than the file that holds it."""
        dataset = self._own_dataset(name)
        if dataset.shape != shape:
            self._refuse(f"{name} of shape {shape}", f"{dataset.shape}")
        text = h5py.check_string_dtype(dataset.dtype)
        # Text of variable length is kept elsewhere in the file, and one piece may be named a billion times.
        if (not text or text.length is None) if kind is str else dataset.dtype != kind:
            self._refuse(
                f"{name} of type {'fixed-length text' if kind is str else kind.__name__}", f"{dataset.dtype}"
            )
        if dataset.nbytes > self.path.stat().st_size:
            self._refuse(f"{name} inside this file", f"{dataset.nbytes:,} bytes declared in a smaller one")
        return np.asarray(dataset.asstr()[:] if kind is str else dataset[:])

    def _check_tables(self) -> None:
        if len(self) == 0 or self.num_images.min() < 1 or self.num_images.max() > MAX_IMAGES:
            self._refuse(f"studies of 1 to {MAX_IMAGES} images", "others")
        if not (np.isin(self.labels, (0.0, 1.0, -1.0)) | np.isnan(self.labels)).all():
            self._refuse("labels of 1, 0, -1 and NaN", "others")
        if self.splits.max() > max(Split) or self.views.max() > max(View):
            self._refuse("known splits and views", "others")
        if len(set(zip(self.patient_ids, self.splits.tolist(), strict=True))) != len(set(self.patient_ids)):
            self._refuse("splits disjoint by patient", "a patient in two")

    def _refuse(self, expected: str, found: str) -> None:
        raise StudyFileError(
            f"{self.path}: expected {expected}, found {found}; write the file again with cxr-preprocess"
        )

    def __len__(self) -> int:
        return len(self.num_images)

    def images(self, index: int) -> NDArray[np.uint8]:
        """Read the images (n, H, W) uint8 of the study at `index`, in the order of its views.

        Raises:
            StudyFileError: the file cannot be read any more.
        """
        index = range(len(self))[index]
        size, first, num = self.header.image_size, int(self._first_image[index]), int(self.num_images[index])
        images_NHW = np.empty((num, size, size), dtype=np.uint8)
        try:
            if self._offsets is None:
                self._offsets = self._locate()
            offsets = self._offsets[first : first + num].tolist()
            start = 0
            while start < num:
                stop = start + 1
                while stop < num and offsets[stop] == offsets[stop - 1] + size * size:
                    stop += 1
                self._read(images_NHW[start:stop], offsets[start])
                start = stop
        except OSError as error:
            raise StudyFileError(
                f"{self.path}: study {index} cannot be read ({type(error).__name__}); check the disk, "
                "then: cxr-preprocess verify FILE"
            ) from error
        return images_NHW

    def _locate(self) -> NDArray[np.int64]:
        """Return where each image lies in the file, -1 for one that was never written: it reads as zeros.

        HDF5 is asked once, 2 us an image. Reading past it takes 2/3 of its time, and other threads need not wait.
        """
        page_bytes = self.header.image_size**2
        offsets = np.full(int(self._first_image[-1]), -1, dtype=np.int64)

        def note(chunk: Any) -> None:
            study, position = chunk.chunk_offset[:2]
            if chunk.size != page_bytes or chunk.filter_mask:
                raise OSError("a chunk is not one image")
            if position < self.num_images[study]:
                offsets[self._first_image[study] + position] = chunk.byte_offset

        try:
            self._images.id.chunk_iter(note)
        except Exception as error:
            raise OSError("the index of the images is damaged") from error
        return offsets

    def _read(self, images_NHW: NDArray[np.uint8], offset: int) -> None:
        """Fill images that are neighbours in the file."""
        if offset < 0:
            images_NHW[:] = 0
        elif os.preadv(self._descriptor, [images_NHW.data.cast("B")], offset) != images_NHW.nbytes:
            raise OSError("the file ends early")

    def check_images(self, index: int, images_NHW: NDArray[np.uint8]) -> None:
        """Raise `StudyFileError` where the images (n, H, W) of study `index` are not those that were written."""
        for position, image_HW in enumerate(images_NHW):
            if image_digest(image_HW) != self.digests[self._first_image[index] + position].tobytes():
                raise StudyFileError(
                    f"{self.path}: image {position} of study {index} differs from its digest: the file was "
                    "damaged after it was written; write it again with cxr-preprocess"
                )

    def indices(self, split: Split) -> NDArray[np.int64]:
        """Return the positions of a split's studies, ascending."""
        return np.flatnonzero(self.splits == split)

    def close(self) -> None:
        self._descriptor = -1
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
