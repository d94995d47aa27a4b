"""Find the images in folders, whatever their names: JPEG, PNG and DICOM are known by how a file begins.

Files that say by their ending that they are images and are not are listed, too, so that they are set aside with a
reason; all else is passed over: tables, text, hidden files, a DICOMDIR. Links are not followed: one that leads out
of its folder is refused.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cxr_hvd.errors import DataError
from cxr_hvd.files import open_plain

_HEAD_BYTES = 132
_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".png", ".dcm", ".dicom"),
    *(".tif", ".tiff", ".gif", ".bmp", ".webp", ".jp2"),
)


class Kind(StrEnum):
    """What a file is, as messages name it."""

    RASTER = "JPEG or PNG"
    DICOM = "DICOM"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file that is, or claims to be, an image.

    Attributes:
        given: the PATH that was given, a folder or the file itself.
        relative: its path within that folder, or its name.
        file: where it lies, resolved.
        kind: what it is by its first bytes.
        is_alone: whether it was given itself.
    """

    given: Path
    relative: str
    file: str
    kind: Kind
    is_alone: bool

    @property
    def root(self) -> str:
        """The folder that `relative` begins at, resolved."""
        return self.file[: -len(self.relative) - 1]


def find_images(paths: Iterable[Path]) -> tuple[list[ImageFile], int]:
    """Return the images in folders and of single files, sorted by path within each, and how many files are others.

    Raises:
        DataError: a path is missing or no file or folder, a folder has no image or cannot be read, a link leads
            out of it, or two paths hold the same image.
    """
    images: list[ImageFile] = []
    path_of_file: dict[str, Path] = {}
    num_others = 0
    for path in paths:
        listed = _listed(path)
        images_here = [image for image in listed if image is not None]
        if not images_here:
            raise DataError(
                f"{path}: expected JPEG, PNG or DICOM images here or in a folder below, found none among "
                f"{len(listed):,} files; check PATH"
            )
        for image in images_here:
            if image.file in path_of_file:
                raise DataError(
                    f"{path}: expected images that no other PATH holds, found some of {path_of_file[image.file]}; "
                    "leave one of the two out"
                )
            path_of_file[image.file] = path
        images += sorted(images_here, key=lambda image: image.file)
        num_others += len(listed) - len(images_here)
    return images, num_others


def kind_of(file: str) -> Kind | None:
    """Return what a file is by its first bytes, else `UNKNOWN` where its ending claims an image, or None."""
    try:
        with open_plain(Path(file), follows_links=True) as opened:
            head = opened.read(_HEAD_BYTES)
    except OSError:  # no regular file, or not to be read
        head = b""
    if head.startswith((b"\xff\xd8", b"\x89PNG\r\n\x1a\n")):
        return Kind.RASTER
    if head[128:] == b"DICM":
        return Kind.DICOM if os.path.basename(file).upper() != "DICOMDIR" else None  # noqa: PTH119
    return Kind.UNKNOWN if file.lower().endswith(_SUFFIXES) else None


def _listed(path: Path) -> list[ImageFile | None]:
    """Return the images of one path; None stands for a file that is none."""
    try:
        mode = path.stat().st_mode
        root = str(path.resolve())
    except OSError as error:
        raise DataError(
            f"{path}: expected an image or a folder of images, found none ({error.strerror}); check PATH"
        ) from error
    if stat.S_ISREG(mode):
        return [ImageFile(path, path.name, root, kind_of(root) or Kind.UNKNOWN, is_alone=True)]
    if not stat.S_ISDIR(mode):
        raise DataError(f"{path}: expected an image or a folder of images, found a FIFO or a device; check PATH")
    listed: list[ImageFile | None] = []
    for file in _files_below(path, root):
        kind = kind_of(file) if file else None
        listed.append(ImageFile(path, file[len(root) :].lstrip("/"), file, kind, is_alone=False) if kind else None)
    return listed


def _files_below(path: Path, root: str) -> Iterator[str]:
    """Yield the files below a folder, hidden ones left out; an empty name stands for a link to one of them."""
    waiting = [root]
    while waiting:
        try:
            entries = list(os.scandir(waiting.pop()))
        except OSError as error:
            raise DataError(f"{path}: a folder in it cannot be read ({error.strerror}); check PATH") from error
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                if not os.path.realpath(entry.path).startswith(f"{root}/"):
                    raise DataError(
                        f"{path}: expected files inside the folder, found a symbolic link that leads out of it; "
                        "copy the file into it, or give the folder that it leads to"
                    )
                yield ""
            elif entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            else:
                yield entry.path
