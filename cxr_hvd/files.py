"""Write files and folders whole or not at all, and read files that a stranger may have written.

What is written stands beside its final name, is synced to the disk and then renamed: a reader that finds the
name finds all of the content. The name beside cannot be guessed and is made anew, so that no link or file that
somebody put there is written to. What exists and is no regular file (a link, a FIFO, a device) is never
replaced, and what a user made only on request (`check_output`). Files are 0600 and folders 0700.

What is read is a regular file, and never more of it than the reader allows (`open_plain`, `read_plain`): a FIFO
would hang whoever opens it, and a link may lead to a device without an end.
"""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from cxr_hvd.errors import UsageError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def keep_private() -> None:
    """Let only its owner use what this process and its children make from now on: files 0600, folders 0700."""
    os.umask(0o077)


def check_output(path: Path, overwrite: bool, option: str = "--out") -> None:
    """Refuse to write a file where something is already, unless it is a regular file and `overwrite`.

    Args:
        path: where the user wants the file. overwrite: whether the user allows to replace an earlier one.
        option: which option names the file, for the message.

    Raises:
        UsageError: what is there.
    """
    _check_regular(path, option)
    if os.path.lexists(path) and not overwrite:
        raise UsageError(
            f"{path}: expected a new file, found one; choose another {option} or add --overwrite to replace it"
        )


def _check_regular(path: Path, option: str = "name") -> None:
    try:
        kind = stat.S_IFMT(path.lstat().st_mode)
    except OSError:  # nothing there, or no folder to write into: the disk will say which
        return
    if kind != stat.S_IFREG:
        raise UsageError(
            f"{path}: expected a new or a regular file, found {_KINDS.get(kind, 'something else')}, which is not "
            f"replaced; choose another {option}"
        )


def part_beside(path: Path) -> Path:
    """Return a name beside `path`, to write to before a rename, that nobody can guess."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")


def create_private(path: Path, mode: int = 0o600) -> int:
    """Make a file that does not exist yet, and return a descriptor to write to; no link is followed."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    os.fchmod(descriptor, mode)
    return descriptor


def sync(path: Path) -> None:
    """Wait until the file or folder at `path` has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replaced_file(path: Path, mode: int = 0o600) -> Iterator[Path]:
    """Give the path of a new, empty file to fill; on success it takes the name `path`, else it is removed.

    An earlier file at `path` stays whole until the new one takes its place.

    Raises:
        UsageError: there is something at `path` that is no regular file.
    """
    _check_regular(path)
    beside = part_beside(path)
    os.close(create_private(beside, mode))
    try:
        yield beside
        sync(beside)
        beside.replace(path)
        sync(path.parent)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Give the path of a new, empty folder to fill; on success it takes the name `path`, else it is removed.

    An earlier folder at `path` stays whole until the new one is; folders in it may be nested.
    """
    beside, before = part_beside(path), part_beside(path)
    beside.mkdir(mode=0o700)
    try:
        yield beside
        for entry in beside.rglob("*"):
            sync(entry)
        sync(beside)
        if path.exists():
            path.replace(before)
        beside.replace(path)
        sync(path.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        if before.exists() and not path.exists():
            before.replace(path)
        shutil.rmtree(before, ignore_errors=True)


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
    beside = part_beside(link)
    beside.symlink_to(target.name)
    beside.replace(link)
    sync(link.parent)


def write_text(path: Path, text: str, mode: int = 0o600) -> None:
    """Write `text` as the whole file at `path`, in UTF-8."""
    with replaced_file(path, mode) as beside:
        beside.write_text(text, encoding="utf-8")


def open_plain(path: Path, follows_links: bool = False) -> FileIO:
    """Open a plain file, unbuffered. Never waits and opens no pipe and no device.

    Args:
        follows_links: whether `path` itself may be a link to a plain file.

    Raises:
        OSError: it is none, or cannot be opened.
    """
    if not follows_links and path.is_symlink():
        raise OSError(errno.ELOOP, "a link, not a plain file", str(path))

    def opener(name: str, flags: int) -> int:
        descriptor = os.open(name, flags | os.O_NONBLOCK | (0 if follows_links else os.O_NOFOLLOW))
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "not a plain file", name)
        return descriptor

    return FileIO(path, "rb", opener=opener)


def read_plain(path: Path, max_bytes: int, follows_links: bool = False) -> bytes:
    """Read a whole plain file of at most `max_bytes`.

    Raises:
        OSError: it is none, is longer, or cannot be read.
    """
    with open_plain(path, follows_links) as file:
        parts, left_bytes = [], max_bytes + 1
        while left_bytes and (part := file.read(left_bytes)):  # one read gives 2 GiB at most
            parts.append(part)
            left_bytes -= len(part)
    if not left_bytes:
        raise OSError(errno.EFBIG, f"expected at most {max_bytes:,} bytes, found more", str(path))
    return b"".join(parts)
