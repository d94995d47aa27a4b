"""Read a file that a stranger may have written: never wait, never without a limit, and nothing but a plain file.

A FIFO would hang whoever opens it, and a link may lead to a device without an end. Owns how such a file is opened
and how much of it is read; what it says, its reader judges.
"""

import errno
import os
import stat
from io import FileIO
from pathlib import Path


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
