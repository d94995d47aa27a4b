"""Open the text files of a source: tables and lists of names, in UTF-8, plain or gzipped, of bounded size.

Whoever wrote them may be a stranger. Only regular files are opened, for a pipe would be waited for; rows and files
have a largest size, for a few kilobytes of gzip can hold an endless line. A file that is no text is named.
"""

import errno
import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from cxr_hvd.errors import DataError
from cxr_hvd.files import open_plain

# Characters of a row and of a file, unpacked. The largest published table (PadChest's) has 200 million.
MAX_ROW = 4_000_000
MAX_TEXT = 2_000_000_000
_HEAD_BYTES = 512
_EXPORT = "export it as CSV UTF-8"
_AGAIN = "copy it again from its source"

# How a file begins that is no table, what it then is, and what to do.
_KINDS = (
    (b"PK\x03\x04", "an Excel workbook or a ZIP archive", f"{_EXPORT}, or unpack it"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook", _EXPORT),
    (b"\xff\xfe", "text in UTF-16", "save it as CSV UTF-8"),
    (b"\xfe\xff", "text in UTF-16", "save it as CSV UTF-8"),
    (b"\x1f\x8b", "a gzipped file", "give its name the ending .gz"),
    (b"PAR1\x15", "a Parquet file", _EXPORT),
    (b"\x89HDF", "an HDF5 file", _EXPORT),
    (b"SQLite format 3", "an SQLite database", _EXPORT),
    (b"%PDF-", "a PDF file", _EXPORT),
    (b"BZh9", "a bzip2 file", "unpack it"),
    (b"\xfd7zXZ", "an xz file", "unpack it"),
    (b"(\xb5/\xfd", "a Zstandard file", "unpack it"),
    (b"<!doctype", "a web page", _AGAIN),
    (b"<html", "a web page", _AGAIN),
    (b"version https://git-lfs", "a pointer of Git LFS", "fetch the file itself with git lfs pull"),
    (b"\x89png", "an image", "name the table of the images"),
    (b"\xff\xd8\xff", "an image", "name the table of the images"),
)


class TextLines:
    """Iterate over the lines of a text, with their ends; a row or a text beyond its largest size is an error."""

    def __init__(self, text: IO[str], path: Path) -> None:
        self._text = text
        self._path = path
        self._left, self._left_in_row = MAX_TEXT, MAX_ROW

    def start_row(self) -> None:
        """Count the next row from here."""
        self._left_in_row = MAX_ROW

    def __iter__(self) -> "TextLines":
        return self

    def __next__(self) -> str:
        line = self._text.readline(self._left_in_row + 1)
        if not line:
            raise StopIteration
        self._left -= len(line)
        self._left_in_row -= len(line)
        if self._left_in_row < 0 or self._left < 0:
            limit, what = (MAX_ROW, "row") if self._left_in_row < 0 else (MAX_TEXT, "table")
            raise DataError(
                f"{self._path}: expected at most {limit:,} characters in a {what}, found more; "
                "check that it is a table of text"
            )
        return line


@contextmanager
def open_lines(path: Path, argument: str = "ROOT") -> Iterator[TextLines]:
    """Give the lines of the text file at `path`, unpacked where its name ends in `.gz`.

    Args:
        path: a regular file in UTF-8; a byte order mark is passed over.
        argument: what the user gave to name the file, for messages.

    Raises:
        DataError: here or while lines are read: there is no such file, it is no text, or it is too large.
    """
    with open_regular(path, argument) as file:
        try:
            packed = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
            _check_kind(path, packed.peek(_HEAD_BYTES)[:_HEAD_BYTES])
            with io.TextIOWrapper(packed, encoding="utf-8-sig", newline="") as text:
                yield TextLines(text, path)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}: expected text in UTF-8, found another encoding, such as Latin-1; save it as CSV UTF-8"
            ) from error
        except gzip.BadGzipFile as error:
            raise DataError(
                f"{path}: expected a gzipped file, found another or a damaged one; {_AGAIN}"
            ) from error
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: not a readable table ({type(error).__name__}); {_AGAIN}") from error


@contextmanager
def open_regular(path: Path, argument: str = "ROOT") -> Iterator["io.BufferedReader[io.FileIO]"]:
    """Open the regular file at `path` to read its bytes; a pipe or a device is not waited for.

    Raises:
        DataError: there is none, or it is something else.
    """
    try:
        raw = open_plain(path, follows_links=True)
    except FileNotFoundError as error:
        raise DataError(f"{path}: expected a table here, found none; check {argument}") from error
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) != errno.EINVAL:
            raise DataError(f"{path}: cannot be read ({type(error).__name__}); check {argument}") from error
        kind = "a folder" if path.is_dir() else "a pipe or a device"
        raise DataError(f"{path}: expected a file, found {kind}; check {argument}") from error
    with io.BufferedReader(raw) as file:
        yield file


def tables_sha256(paths: list[Path]) -> str:
    """SHA-256 over the names and bytes of the tables, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with open_regular(path) as file:
            try:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({type(error).__name__}); check ROOT") from error
        digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()


def _check_kind(path: Path, head: bytes) -> None:
    """Raise `DataError` where the first bytes, unpacked, are those of something else than text in UTF-8."""
    start = head.lstrip().lower()
    for magic, kind, advice in _KINDS:
        if head.startswith(magic) or start.startswith(magic):
            raise DataError(f"{path}: expected a table as text (CSV or TSV), found {kind}; {advice}")
    if head[1::2].count(0) > len(head) // 4 or head[::2].count(0) > len(head) // 4:
        raise DataError(f"{path}: expected text in UTF-8, found text in UTF-16; save it as CSV UTF-8")
    if head[128:132] == b"DICM":
        raise DataError(f"{path}: expected a table as text, found a DICOM file; name the table of the images")
