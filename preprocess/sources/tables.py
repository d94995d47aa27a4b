"""Read the tables of a source: CSV or TSV, plain or gzipped, columns bound by name, rows numbered for messages.

Rows are numbered as a spreadsheet shows them: the header is row 1. Messages quote a table's name, a row and a
column, and a cell only where it cannot identify anybody (labels, views, splits).
"""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cxr_hvd.errors import DataError, nearest
from cxr_hvd.study.labels import BLANK, LABELS
from preprocess.sources.text import open_lines

DELIMITERS = (",", ";", "\t", "|")
_LABEL_VALUES = {"1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0, "-1": -1.0, "-1.0": -1.0, "": BLANK}


class Row(NamedTuple):
    """One row: the cells of the wanted columns by name, and `TABLE row N` for messages."""

    cells: dict[str, str]
    where: str


def read_rows(
    path: Path,
    columns: Sequence[str],
    delimiter: str | None = None,
    yaml: str | None = None,
    optional: Sequence[str] = (),
) -> Iterator[Row]:
    """Yield each row of the table at `path`, with the given columns; others are passed over.

    A byte order mark, line ends of any kind and quotes are as they may be; rows without a cell are passed over.

    Args:
        path: the table; read in UTF-8, unpacked where its name ends in `.gz`.
        columns: names of the wanted columns.
        delimiter: None stands for a tab in `.tsv` and a comma elsewhere.
        yaml: the file that names the columns, for messages; None where a published layout does.
        optional: names of columns that a table may lack.

    Raises:
        DataError: the table is missing, damaged, endless or no text, or lacks one of the columns, or a row is cut
            short.
    """
    delimiter = delimiter or guess_delimiter(path)
    with open_lines(path, f"TABLE and {yaml}" if yaml else "ROOT") as lines:
        reader = csv.reader(lines, delimiter=delimiter)
        number = 0
        try:
            header = [cell.strip() for cell in next(reader, [])]
            _check_header(path, header, columns, delimiter, yaml)
            present = [column for column in optional if column in header]
            positions = {column: header.index(column) for column in (*columns, *present)}
            number = 1
            lines.start_row()
            for number, row in enumerate(reader, start=2):
                lines.start_row()
                if not any(map(str.strip, row)):
                    continue
                where = f"{path.name} row {number}"
                if len(row) != len(header):
                    raise DataError(
                        f"{where}: expected {len(header)} cells as in the header, found {len(row)}; repair the row"
                    )
                yield Row({column: row[position].strip() for column, position in positions.items()}, where)
        except csv.Error as error:
            raise DataError(
                f"{path.name} row {number + 1}: expected cells of at most {csv.field_size_limit():,} characters, "
                "found a longer one: an unclosed quote? Repair the row"
            ) from error


def guess_delimiter(path: Path) -> str:
    """Return the delimiter that a table's name says: a tab in `.tsv`, a comma elsewhere."""
    return "\t" if ".tsv" in path.suffixes[-2:] else ","


def parse_labels(row: Row) -> tuple[float, ...]:
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


def _check_header(path: Path, header: list[str], columns: Sequence[str], delimiter: str, yaml: str | None) -> None:
    """Raise `DataError` where a column is not in the header exactly once, with what is there instead."""
    repair = f"name it in {yaml} as the table does" if yaml else "name the columns as the published table does"
    for column in columns:
        if header.count(column) == 1:
            continue
        if column in header:
            raise DataError(
                f"{path}: expected one column '{column}', found {header.count(column)}; remove all but one"
            )
        if not any(header):
            raise DataError(f"{path}: expected a header with a column '{column}', found an empty line or table")
        if header[0].lower().startswith("sep="):
            raise DataError(f"{path}: expected a header, found Excel's line 'sep='; remove the line")
        for other in DELIMITERS:
            if other != delimiter and column in split_header(delimiter.join(header), other):
                one, two = json.dumps(delimiter), json.dumps(other)
                repair = f"set delimiter: {two} in {yaml}" if yaml else "save it with commas"
                raise DataError(f"{path}: expected columns parted by {one}, found {two}; {repair}")
        near = nearest(column, header)
        nearest_column = f"'{near.split(chr(39))[1]}'" if near else f"{len(header)} others"
        raise DataError(f"{path}: expected a column '{column}', nearest found: {nearest_column}; {repair}")


def split_header(line: str, delimiter: str) -> list[str]:
    """Return the names of the columns in a table's first line."""
    line = line.replace("\n", " ").replace("\r", " ")
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
