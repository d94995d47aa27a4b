"""Merge finished blocks into one study file: the leader's part.

The leader merges blocks in the file's order, as far as they are finished, while other ranks still fill later
ones; so the bytes of the study file depend neither on the number of ranks nor on who was faster. A study whose
images are all bad is left out. See docs/decisions/0008-preprocess-shards.md.
"""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import numpy as np

from cxr_hvd.errors import DataError, StudyFileError
from cxr_hvd.study.flow import Flow
from cxr_hvd.study.layout import Split, StudyFileHeader, StudyRow
from cxr_hvd.study.study_writer import StudyFileWriter
from preprocess.identifiers import HashId
from preprocess.parallel.blocks import read_block
from preprocess.parallel.work_folder import WorkFolder, disk_error
from preprocess.quarantine import BadImage
from preprocess.selection import Selection


class Merger:
    """Append finished blocks to the study file of a work folder; used as a context.

    Attributes:
        bad: the images that were left out, in the file's order.
        num_images, num_studies: in the file so far. num_left_out: studies without any good image.

    Raises:
        DataError: the disk refuses.
    """

    def __init__(
        self,
        folder: WorkFolder,
        header: StudyFileHeader,
        selection: Selection,
        blocks: Sequence[range],
        hash_id: HashId,
        advance: Callable[[int], None],
    ) -> None:
        self._folder, self._header, self._selection = folder, header, selection
        self._blocks, self._hash_id, self._advance = blocks, hash_id, advance
        self._next = 0
        self._splits: set[Split] = set()
        self.bad: list[BadImage] = []
        self.num_images = self.num_studies = self.num_left_out = 0
        try:
            folder.merged.unlink(missing_ok=True)
            self._file = StudyFileWriter(folder.merged, header, len(selection.studies))
        except OSError as error:
            raise disk_error(folder.out, error) from error

    def merge_while(self, is_finished: Callable[[int], bool]) -> None:
        """Append the next blocks as long as they are finished.

        Raises:
            DataError: the disk refuses. StudyFileError: a block is damaged.
        """
        while self._next < len(self._blocks) and is_finished(self._next):
            try:
                self._merge(self._next)
            except OSError as error:
                raise disk_error(self._folder.out, error) from error
            self._next += 1

    def _merge(self, number: int) -> None:
        size = self._header.image_size
        trailer, content = read_block(self._folder.block(number), size * size)
        pages = np.frombuffer(content, np.uint8, len(trailer.digests) * size * size).reshape(-1, size, size)
        if trailer.job != self._folder.digest or len(trailer.kept) != len(self._blocks[number]):
            raise StudyFileError(f"{self._folder.out}: a block of another job was found; run again")
        first = 0
        for index, kept in zip(self._blocks[number], trailer.kept, strict=True):
            study, split = self._selection.studies[index], self._selection.splits[index]
            self._advance(len(study.images))
            if not kept:
                self.num_left_out += 1
                continue
            row = StudyRow(
                study_id=self._hash_id("study", study.study_id),
                patient_id=self._hash_id("patient", study.patient_id),
                split=split,
                views=tuple(study.images[position].view for position in kept),
                labels=study.labels,
                sex=study.demographics.sex,
                age=study.demographics.age,
            )
            last = first + len(kept)
            self._file.append(
                row, pages[first:last], [bytes.fromhex(digest) for digest in trailer.digests[first:last]]
            )
            self._splits.add(split)
            self.num_studies += 1
            first = last
        self.num_images += len(pages)
        self.bad += [(where, reason) for where, reason in trailer.bad]

    def complete(self, flow: Flow | None = None) -> str:
        """Write the tables and what makes the file complete; return the digest of its content.

        Args:
            flow: what was left out on the way, for the file's header.

        Raises:
            DataError: the disk refuses, or no study of a split is left.
        """
        if missing := sorted(set(self._selection.splits) - self._splits):
            raise DataError(
                f"expected studies in every split, found none with a good image for {missing[0].name.lower()}; "
                "repair the images or draw more studies"
            )
        try:
            return self._file.close(flow)
        except (OSError, RuntimeError) as error:  # HDF5 tells of a full disk by either.
            raised = error if isinstance(error, OSError) else OSError(str(error))
            raise disk_error(self._folder.out, raised) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.abandon()
