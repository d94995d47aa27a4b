"""Files and folders that are whole or absent, never half-written.

Each is written beside its final name, synced to the disk and renamed, so that a reader that finds the name
finds all of the content, whatever happened to the writer.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sync(path: Path) -> None:
    """Wait until the file or folder at `path` has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Give a path to write to; on success it takes the name `path`, on any error it is removed.

    An earlier file at `path` stays whole until the new one takes its place.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield beside
        sync(beside)
        beside.replace(path)
        sync(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def begin_folder(path: Path) -> Path:
    """Make an empty folder to fill, beside `path` and with a name that all ranks of a site know."""
    beside = folder_beside(path)
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(mode=0o700, parents=True)
    return beside


def folder_beside(path: Path) -> Path:
    """Return where the content of `path` is gathered until `finish_folder`."""
    return path.with_name(f".{path.name}.part")


def finish_folder(path: Path) -> None:
    """Give a filled folder its name, replacing an earlier folder of that name."""
    beside = folder_beside(path)
    for file in beside.iterdir():
        sync(file)
    sync(beside)
    shutil.rmtree(path, ignore_errors=True)
    beside.replace(path)
    sync(path.parent)


def point_link(link: Path, target: Path) -> None:
    """Make the symbolic link `link` name `target` (in the same folder), in one step."""
    beside = link.with_name(f".{link.name}.{os.getpid()}.part")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target.name)
    beside.replace(link)
    sync(link.parent)


def write_text(path: Path, text: str, mode: int = 0o600) -> None:
    """Write `text` as the whole file at `path`, in UTF-8."""
    with replaced_file(path) as beside:
        beside.touch(mode=mode)
        beside.write_text(text, encoding="utf-8")
