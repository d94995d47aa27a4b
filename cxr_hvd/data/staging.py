"""A copy of a study file on the node's own disk, checked against the digest of what was read.

Hundreds of ranks that read one file over a shared file system wait for it; a copy beside them does not. Each rank
stages what it opens itself, so a node holds its own site's study file and no other's. Of several ranks on a
node one copies and the others wait for it. Needs no other rank.
"""

import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import sleep

from cxr_hvd.errors import StudyFileError
from cxr_hvd.files import replaced_file, write_text
from cxr_hvd.record import Record, read_record

PART_BYTES = 16 << 20
MAX_NOTE_BYTES = 1 << 16

OnPart = Callable[[], None]


def stage(source: Path, folder: Path, on_part: OnPart = lambda: None) -> Path:
    """Return a copy of a study file in a folder of this node, made now or found whole. Blocking.

    The copy is read again from the disk, and has to have the SHA-256 of what was read from the source; one that an
    earlier job left is checked in the same way, and taken where the source has not changed since.

    Args:
        source: the study file.
        folder: on the node's own disk; made for this user alone where it is missing.
        on_part: called after each 16 MB, and once a second while another rank copies.

    Raises:
        StudyFileError: the source cannot be read, the disk is full, or it does not keep what was written.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        before = _identity(source)
        name = hashlib.sha256(before.path.encode()).hexdigest()[:16]
        copy, note = folder / f"{name}.h5", folder / f"{name}.json"
        with _locked(folder / f"{name}.lock", on_part):
            if not _is_whole(copy, note, before, on_part):
                _copy(source, copy, note, before, on_part)
        return copy
    except OSError as error:
        raise StudyFileError(
            f"{source}: cannot be staged in {folder} ({error.strerror}): free that disk, or go without --stage"
        ) from error


class _Source(Record):
    """Which file was copied, as it was then."""

    path: str
    bytes: int
    changed: int


class _Note(Record):
    """What is written beside a copy once it is whole."""

    source: _Source
    sha256: str


def _identity(path: Path) -> _Source:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise StudyFileError(
            f"{path}: expected a study file, found a folder, a FIFO or a device; check the config"
        )
    return _Source(path=str(path.resolve()), bytes=status.st_size, changed=status.st_mtime_ns)


def _is_whole(copy: Path, path: Path, source: _Source, on_part: OnPart) -> bool:
    try:
        note = read_record(path, _Note, MAX_NOTE_BYTES)
        is_same = note.source == source and copy.stat().st_size == source.bytes
        return is_same and note.sha256 == _digest(copy, on_part)
    except (OSError, ValueError):
        return False


def _copy(source: Path, copy: Path, note: Path, before: _Source, on_part: OnPart) -> None:
    note.unlink(missing_ok=True)
    digest = hashlib.sha256()
    with replaced_file(copy) as beside, source.open("rb") as read, beside.open("wb") as write:
        while part := read.read(PART_BYTES):
            digest.update(part)
            write.write(part)
            on_part()
    if _identity(source) != before:
        raise StudyFileError(
            f"{source}: was changed while it was staged: wait until it is written, then start again"
        )
    if _digest(copy, on_part) != digest.hexdigest():
        copy.unlink()
        raise StudyFileError(f"{copy}: differs from {source} after copying: that disk is bad; go without --stage")
    write_text(note, json.dumps(_Note(source=before, sha256=digest.hexdigest()).model_dump()))


def _digest(path: Path, on_part: OnPart) -> str:
    """Return the SHA-256 of a file, as it is on the disk."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        # What the system still holds in memory of it is let go of.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while part := file.read(PART_BYTES):
            digest.update(part)
            on_part()
    return digest.hexdigest()


@contextmanager
def _locked(path: Path, on_wait: OnPart) -> Iterator[None]:
    """Hold a lock that ends with this process, however it ends."""
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                on_wait()
                sleep(1.0)
        yield
