"""The tables of a source: CSV or TSV, plain or gzipped, columns bound by name, rows numbered for messages.

Rows are numbered as a spreadsheet shows them: the header is row 1. Messages quote a table's name, a row and a
column, and a cell only where it cannot identify anybody (labels, views, splits).
"""

import csv
import gzip
import hashlib
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cxr_hvd.errors import DataError, nearest
from cxr_hvd.study.labels import BLANK, LABELS

_LABEL_VALUES = {"1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0, "-1": -1.0, "-1.0": -1.0, "": BLANK}


class Row(NamedTuple):
    """One row: the cells of the wanted columns by name, and `TABLE row N` for messages."""

    cells: dict[str, str]
    where: str


def read_rows(path: Path, columns: Sequence[str], delimiter: str | None = None) -> Iterator[Row]:
    """Yield each row of the table at `path`, with the given columns; others are passed over.

    A byte order mark, line ends of any kind and quotes are as they may be; blank lines are passed over.

    Args:
        path: the table; read in UTF-8, unpacked where its name ends in `.gz`.
        columns: names of the wanted columns. delimiter: None stands for a tab in `.tsv` and a comma elsewhere.

    Raises:
        DataError: the table is missing or damaged, or lacks one of the columns, or a row is cut short.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as text:
            if delimiter is None:
                delimiter = "\t" if ".tsv" in path.suffixes[-2:] else ","
            reader = csv.reader(text, delimiter=delimiter)
            header = [cell.strip() for cell in next(reader, [])]
            positions = {column: _position(path, header, column) for column in columns}
            for number, row in enumerate(reader, start=2):
                where = f"{path.name} row {number}"
                if not row:
                    continue
                if len(row) != len(header):
                    raise DataError(
                        f"{where}: expected {len(header)} cells as in the header, found {len(row)}; repair the row"
                    )
                yield Row({column: row[position].strip() for column, position in positions.items()}, where)
    except FileNotFoundError as error:
        raise DataError(f"{path}: expected a table here, found none; check ROOT") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path}: not a readable table ({type(error).__name__}); copy it again from its source"
        ) from error


def labels_of(row: Row) -> tuple[float, ...]:
    """Return the labels of a row in the order of `LABELS`: 1, 0, -1 or NaN.

    Raises:
        DataError: a cell holds anything else.
    """
    labels = []
    for name in LABELS:
        value = _LABEL_VALUES.get(row.cells[name])
        if value is None:
            raise DataError(
                f"{row.where}: column '{name}': expected 1, 0, -1 or blank, found '{row.cells[name][:20]}'; "
                "repair the table"
            )
        labels.append(value)
    return tuple(labels)


def tables_sha256(paths: Sequence[Path]) -> str:
    """SHA-256 over the names and bytes of the tables, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({type(error).__name__}); check ROOT") from error
        digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()


def _position(path: Path, header: list[str], column: str) -> int:
    """Return where `column` stands in the header."""
    if header.count(column) == 1:
        return header.index(column)
    if column in header:
        raise DataError(
            f"{path}: expected one column '{column}', found {header.count(column)}; remove all but one"
        )
    near = nearest(column, header)
    found = f"'{near.split(chr(39))[1]}'" if near else f"{len(header)} others"
    raise DataError(
        f"{path}: expected a column '{column}', nearest found: {found}; "
        "name the columns as the published table does"
    )
