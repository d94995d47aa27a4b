"""Read a study file: one institution's studies as zero-padded tensors in HDF5.

`images` reads as (N, 20, 256, 256) uint8 in any HDF5 program. Image j of study i is the chunk `[i, j]`; the
padding after a study's last image is never written and reads as zeros, so it costs no disk. No filter is used:
the pixels are read straight from the page cache. layout.py holds the layout; the modules of this folder are the
only ones that know HDF5.

A study file is written once, by `StudyFileWriter` (study_writer.py), beside its name, and gets the attribute
`complete` last. `StudyFile` reads it and refuses whatever does not keep the contract.
"""

import errno
import operator
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from cxr_hvd.errors import StudyFileError
from cxr_hvd.files import open_plain
from cxr_hvd.study.groups import StudyGroups, group_studies
from cxr_hvd.study.layout import SCHEMA, UNKNOWN_AGE, Sex, Split, View, image_digest
from cxr_hvd.study.overview import overview_html, overview_line
from cxr_hvd.study.study import Study
from cxr_hvd.study.table_reader import TableReader


class StudyFile:
    """Read one study file. Opening checks the contract and the content's digest; images are checked on demand.

    `file[i]` is a `Study`, whose images are checked, and iteration yields all of them in the file's order. A
    notebook shows counts of the file, and no identifier or pixel. Safe to read from several threads of one
    process, and in a `DataLoader`'s workers: a pickled file is its path and digest, and is opened again.

    Args:
        path: of the file.

    Attributes:
        header: what is true of the whole file.
        num_images: (N,) uint8, 1 to 20.
        labels: (N, L) float32 of 1, 0, -1 and NaN.
        views: (N, 20) uint8 of `View`.
        splits: (N,) uint8 of `Split`.
        study_ids, patient_ids: (N,) str, keyed hashes.
        sexes, ages: (N,) uint8 of `Sex`, and in years; 90 is 90 or more, 255 unknown.
        digests: (images, 32) uint8, SHA-256 of each image, study by study.
        digest: SHA-256 over header, tables and, through the image digests, pixels, in hexadecimal.

    Raises:
        StudyFileError: the file is missing, unfinished, damaged, or not of a schema that is read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            open_plain(self.path, follows_links=True).close()  # to open a FIFO would wait for ever
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StudyFileError(
                f"{path}: no study file here; make one with cxr-preprocess ... --out {path}"
            ) from error
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise StudyFileError(
                    f"{path}: expected a study file, found a folder, a FIFO or a device; "
                    "make one with cxr-preprocess ... --out FILE"
                ) from error
            raise StudyFileError(  # of another user, as a rule
                f"{path}: cannot read it ({error.strerror}); each rank needs its own site's file alone"
            ) from error
        try:
            # No lock: the file never changes once it has its name. No chunk cache: a chunk is read once a pass.
            self._file = h5py.File(self.path, "r", rdcc_nbytes=0, locking=False)
        # Of what others wrote h5py makes errors of many kinds, here and below.
        except Exception as error:
            again = "write it again with cxr-preprocess"
            raise StudyFileError(f"{path}: not a readable HDF5 file; {again}") from error
        try:
            reader = TableReader(self.path, self._file)
            self.header = reader.header()
            self._images = reader.images(self.header.image_size)
            tables = reader.tables(self._images.shape[0], len(self.header.label_names))
            self.digest = reader.check_digest(self.header, tables)
            self._descriptor: int = self._file.id.get_vfd_handle()
        except Exception as error:
            with suppress(Exception):
                self._file.close()
            if isinstance(error, StudyFileError):
                raise
            raise StudyFileError(
                f"{path}: not a study file of schema 1 to {SCHEMA} ({type(error).__name__}: {str(error)[:200]}); "
                "write it again with cxr-preprocess"
            ) from error
        self._tables = tables
        self.num_images, self.views, self.labels = tables.num_images, tables.views, tables.labels
        self.study_ids, self.patient_ids, self.splits = tables.study_id, tables.patient_id, tables.split
        self.digests = tables.digests
        self.sexes = np.zeros_like(tables.split) if tables.sex is None else tables.sex
        self.ages = np.full_like(tables.split, UNKNOWN_AGE) if tables.age is None else tables.age
        self._first_image = np.concatenate([[0], np.cumsum(self.num_images, dtype=np.int64)])
        self._offsets: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.num_images)

    def __getitem__(self, index: int) -> Study:
        """Read the study at `index`, and check its images; its ids stay in `study_ids` and `patient_ids`.

        Raises:
            IndexError: there is no such study.
            StudyFileError: the file cannot be read any more, or an image differs from its digest.
        """
        index = range(len(self))[operator.index(index)]
        images_NHW = self.images(index)
        self.check_images(index, images_NHW)
        return Study(
            images=images_NHW,
            labels=dict(zip(self.header.label_names, self.labels[index].tolist(), strict=True)),
            views=tuple(View(view) for view in self.views[index, : len(images_NHW)].tolist()),
            split=Split(self.splits[index]),
            sex=Sex(self.sexes[index]),
            age=None if self.ages[index] == UNKNOWN_AGE else int(self.ages[index]),
        )

    def __iter__(self) -> Iterator[Study]:
        return map(self.__getitem__, range(len(self)))

    def __repr__(self) -> str:
        return overview_line(self.path.name, self.header, self._tables)

    def _repr_html_(self) -> str:
        return overview_html(self.path.name, self.header, self._tables)

    def __reduce__(self) -> tuple[Callable[[str, str], "StudyFile"], tuple[str, str]]:
        return _reopen, (str(self.path.absolute()), self.digest)

    def images(self, index: int) -> NDArray[np.uint8]:
        """Read the images (n, H, W) uint8 of the study at `index`, in the order of its views.

        Raises:
            StudyFileError: the file cannot be read any more.
        """
        index = range(len(self))[index]
        size, first, num = self.header.image_size, int(self._first_image[index]), int(self.num_images[index])
        images_NHW = np.empty((num, size, size), dtype=np.uint8)
        try:
            offsets = self._locate()[first : first + num].tolist()
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

    def locate_images(self) -> None:
        """Look up where all images lie; `images` does it at its first call, if nobody did before.

        Done before a fork, it leaves nothing to do for HDF5 in the processes that are forked.

        Raises:
            StudyFileError: the file cannot be read any more.
        """
        try:
            self._locate()
        except OSError as error:
            raise StudyFileError(f"{self.path}: {error}; write it again with cxr-preprocess") from error

    def _locate(self) -> NDArray[np.int64]:
        """Return where each image lies in the file, -1 for one that was never written: it reads as zeros.

        HDF5 is asked once, 2 us an image. Reading past it takes 2/3 of its time, and other threads need not wait.
        """
        if self._offsets is not None:
            return self._offsets
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
        self._offsets = offsets
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

    def groups(self, split: Split) -> StudyGroups:
        """Return the groups of a split's studies by view, sex and age, in the order of `indices`."""
        return group_studies(self._tables).rows(self.indices(split))

    def close(self) -> None:
        self._descriptor = -1
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _reopen(path: str, digest: str) -> StudyFile:
    """Open a study file in another process, as long as it is the one that was pickled there."""
    file = StudyFile(path)
    if file.digest != digest:
        file.close()
        raise StudyFileError(
            f"{path}: expected content with digest {digest[:12]}, found {file.digest[:12]}: the file was replaced "
            "while it was in use; start again"
        )
    return file
