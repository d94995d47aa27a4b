"""Write and read blocks of a few dozen consecutive images: the unit in which ranks share work and a job restarts.

A block's file is the raw pages of its good images, one after the other, then a trailer of JSON: which images
of each study are good, their SHA-256, which are bad and why, the digest of the job, and a signature of the
source files (sizes and times). It is written beside its name and renamed, so a block is whole or absent; and
before an earlier run's block is used again its pages are compared with their digests and the source files with
their signature. A block depends on the job alone, not on the rank that made it.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cxr_hvd.errors import StudyFileError
from cxr_hvd.files import create_private, part_beside
from cxr_hvd.study.layout import image_digest
from preprocess.records import BadImageError, ImageRecord, StudyRecord

# 2 MiB of pages: 20 ms of work on small files and 0.4 s on large ones, which bounds how long ranks wait for
# the last one and what a kill costs; 400,000 images make 12,500 files.
IMAGES_PER_BLOCK = 32

_MAGIC = b"cxrblk01"
_FOOT_BYTES = 16

LoadImage = Callable[[ImageRecord], NDArray[np.uint8]]


@dataclass(frozen=True)
class Trailer:
    """What a block's file says about itself.

    Attributes:
        job: digest of the job. signature: of the source files, as they were before they were read.
        kept: for each study of the block the positions of its good images.
        bad: (where, reason) of each bad image, in order.
        digests: SHA-256 of each good image in hexadecimal, in order.
    """

    job: str
    signature: str
    kept: list[list[int]]
    bad: list[tuple[str, str]]
    digests: list[str]


def plan_blocks(num_images: Sequence[int]) -> list[range]:
    """Cut the studies into ranges of consecutive ones that hold `IMAGES_PER_BLOCK` images or a few more."""
    blocks, start, images = [], 0, 0
    for index, num in enumerate(num_images):
        images += num
        if images >= IMAGES_PER_BLOCK:
            blocks.append(range(start, index + 1))
            start, images = index + 1, 0
    if start < len(num_images):
        blocks.append(range(start, len(num_images)))
    return blocks


def fill_block(
    path: Path, job: str, studies: Sequence[StudyRecord], load_image: LoadImage, check: Callable[[], None]
) -> None:
    """Load the images of a block's studies and write the block's file; a bad image is noted and left out.

    Args:
        path: the file to make.
        job: digest of the job.
        studies: the block's.
        load_image: gives (H, W) uint8 or raises `BadImageError`.
        check: called before each study; may raise.

    Raises:
        OSError: the disk refuses; no file is left.
    """
    signature = _signature(studies)
    kept: list[list[int]] = []
    bad: list[tuple[str, str]] = []
    digests: list[str] = []
    beside = part_beside(path)
    try:
        descriptor = create_private(beside)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            for study in studies:
                check()
                good = []
                for position, image in enumerate(study.images):
                    try:
                        image_HW = np.ascontiguousarray(load_image(image))
                    except BadImageError as error:
                        bad.append((error.where, error.reason))
                        continue
                    _write_all(descriptor, image_HW.data.cast("B"))
                    digests.append(image_digest(image_HW).hex())
                    good.append(position)
                kept.append(good)
            content = json.dumps(asdict(Trailer(job, signature, kept, bad, digests))).encode()
            _write_all(descriptor, memoryview(content + _MAGIC + len(content).to_bytes(8, "little")))
            file.flush()
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def is_whole(path: Path, job: str, studies: Sequence[StudyRecord], page_bytes: int) -> bool:
    """Say whether an earlier run left this block, undamaged, of source files that have not changed since."""
    if not path.exists():
        return False
    try:
        trailer, pages = read_block(path, page_bytes)
    except (OSError, StudyFileError):
        return False
    if trailer.job != job or len(trailer.kept) != len(studies) or trailer.signature != _signature(studies):
        return False
    view = memoryview(pages)
    return all(
        hashlib.sha256(view[number * page_bytes : (number + 1) * page_bytes]).hexdigest() == digest
        for number, digest in enumerate(trailer.digests)
    )


def read_block(path: Path, page_bytes: int) -> tuple[Trailer, bytes]:
    """Return a block's trailer and the bytes of its pages and what follows them.

    Raises:
        OSError: it cannot be read.
        StudyFileError: it is not whole.
    """
    content = path.read_bytes()
    foot = content[-_FOOT_BYTES:]
    length = int.from_bytes(foot[8:], "little")
    start = len(content) - _FOOT_BYTES - length
    try:
        if foot[:8] != _MAGIC or start < 0:
            raise ValueError("no trailer")
        trailer = Trailer(**json.loads(content[start : start + length]))
        if start != page_bytes * len(trailer.digests) or sum(map(len, trailer.kept)) != len(trailer.digests):
            raise ValueError("not as long as its trailer says")
    except (ValueError, TypeError) as error:
        raise StudyFileError(
            f"{path}: expected a whole block of finished work, found a damaged one; remove it and run again"
        ) from error
    return trailer, content


def _write_all(descriptor: int, content: memoryview) -> None:
    """Write all bytes: one call may take only some of them, most of all on a disk that is nearly full."""
    while content:
        content = content[os.write(descriptor, content) :]


def _signature(studies: Sequence[StudyRecord]) -> str:
    """Digest of sizes and times of the image files, in hexadecimal: a repaired image makes its block anew."""
    digest = hashlib.sha256()
    for study in studies:
        for image in study.images:
            try:
                status = image.path.stat()
                digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
            except OSError:
                digest.update(b"missing\n")
    return digest.hexdigest()
