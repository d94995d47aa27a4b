"""From loaded images to one study file: each rank fills a shard, the leader merges them.

A shard is the raw pages of the rank's images, one after the other, in a hidden file beside the output. The
merge walks the studies in the file's order and takes each study's pages from its owner's shard, so every shard
is read from front to back, and the bytes of the study file do not depend on the number of ranks. See
docs/decisions/0008-preprocess-shards.md.
"""

import heapq
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cxr_hvd.atomic import replaced_file
from cxr_hvd.errors import DataError, StudyFileError, UsageError
from cxr_hvd.study.study_file import StudyFileHeader, StudyFileWriter, StudyRow
from preprocess.selection import Selection


def partition(num_images: Sequence[int], num_ranks: int) -> list[int]:
    """Return the rank that owns each study: the next one goes to the rank with the fewest images so far."""
    least = [(0, rank) for rank in range(num_ranks)]
    owners = []
    for num in num_images:
        images_of_rank, rank = least[0]
        heapq.heapreplace(least, (images_of_rank + num, rank))
        owners.append(rank)
    return owners


def created_now() -> str:
    """Return the time of writing in UTC, ISO 8601, or that of SOURCE_DATE_EPOCH (reproducible-builds.org)."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        now = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError("SOURCE_DATE_EPOCH: expected seconds since 1970, found something else") from error
    return now.isoformat(timespec="seconds")


def build_rows(selection: Selection, hashed: Callable[[str, str], str]) -> list[StudyRow]:
    """Return the table rows of the chosen studies, with identifiers as `hashed(kind, identifier)` gives them."""
    return [
        StudyRow(
            study_id=hashed("study", study.study_id),
            patient_id=hashed("patient", study.patient_id),
            split=split,
            views=tuple(image.view for image in study.images),
            labels=study.labels,
        )
        for study, split in zip(selection.studies, selection.splits, strict=True)
    ]


def shard_path(out: Path, rank: int) -> Path:
    """Return where a rank's shard lies until the merge."""
    return out.with_name(f".{out.name}.shard-{rank}")


class ShardWriter:
    """Write one rank's images, study by study in the file's order; used as a context.

    Raises:
        DataError: the shard cannot be written, for example for want of space.
    """

    def __init__(self, out: Path, rank: int) -> None:
        self._path = shard_path(out, rank)
        try:
            # An interrupted run may have left one. Owner only: these are a hospital's images.
            self._path.unlink(missing_ok=True)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            self._file = os.fdopen(descriptor, "wb")
        except OSError as error:
            raise _not_written(out, error) from error

    def add(self, images_NHW: NDArray[np.uint8]) -> None:
        """Append all images (n, H, W) of the rank's next study."""
        try:
            self._file.write(np.ascontiguousarray(images_NHW).data)
        except OSError as error:
            raise _not_written(self._path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError as closing:
            raise _not_written(self._path, closing) from closing


def merge(
    out: Path,
    header: StudyFileHeader,
    rows: Sequence[StudyRow],
    owners: Sequence[int],
    advance: Callable[[int], None],
) -> None:
    """Write the study file at `out` from the shards of all ranks. On any error an earlier file at `out` stays.

    Args:
        out: the study file's name; shards lie beside it.
        header: what is true of the whole file.
        rows: the studies, in the file's order.
        owners: the rank that wrote each study.
        advance: called with the number of images of each study that has been written.

    Raises:
        DataError: a shard is short, or the disk refuses.
        StudyFileError: the study file cannot be written.
    """
    size = header.image_size
    try:
        with ExitStack() as stack:
            shards = [stack.enter_context(shard_path(out, rank).open("rb")) for rank in range(max(owners) + 1)]
            beside = stack.enter_context(replaced_file(out))
            writer = StudyFileWriter(beside, header, rows)
            for index, (row, owner) in enumerate(zip(rows, owners, strict=True)):
                num_bytes = len(row.views) * size * size
                pages = shards[owner].read(num_bytes)
                if len(pages) != num_bytes:
                    raise StudyFileError(f"{out}: rank {owner}'s shard ends early; run again on one shared disk")
                writer.write_images(index, np.frombuffer(pages, np.uint8).reshape(-1, size, size))
                advance(len(row.views))
            writer.close()
    except OSError as error:
        raise _not_written(out, error) from error


def _not_written(path: Path, error: OSError) -> DataError:
    reason = error.strerror or type(error).__name__
    return DataError(f"{path.parent}: cannot write the study file here ({reason}); check space and permissions")
