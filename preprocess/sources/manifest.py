"""Any table of images, with a YAML file that says what its columns mean (preprocess/sources/columns.py).

TABLE is a CSV or TSV, plain or gzipped, images beside it or below; or, where the YAML names several tables, the
folder that holds them. Errors name a table, a row and a column and never quote a cell: what a column of a
hospital's own table holds is not known here, and it may be a name.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cxr_hvd.errors import DataError, UsageError
from cxr_hvd.study.labels import ABSENT, BLANK, LABELS, PRESENT, UNCERTAIN
from cxr_hvd.study.study_file import Split, View
from preprocess.records import ImageRecord, SourceOptions, StudyListing
from preprocess.sources import meanings
from preprocess.sources.columns import Columns, Table, find_columns, load_columns
from preprocess.sources.folder import ImageFolder
from preprocess.sources.gathering import Gathering, Labels
from preprocess.sources.tables import Row, read_rows, tables_sha256

_BRACES = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True)
class _Named:
    """What one row says."""

    patient: str
    study: str
    split: Split | None
    labels: Labels
    image: ImageRecord


def studies(table: Path, options: SourceOptions) -> StudyListing:
    """Read the table (or the folder of tables) with the meaning that `options.columns` gives to its columns.

    Raises:
        UsageError, ConfigError: the YAML file is missing or wrong.
        DataError: a table, a column, a value, a path or a study is not as the YAML file says.
    """
    source = find_columns(options.columns)
    columns = load_columns(source)
    root = table if columns.tables else table.parent
    if columns.tables and not table.is_dir():
        raise UsageError(f"{table}: expected the folder of the tables that {source.name} names, found no folder")
    tables = {_inside(root, name): about for name, about in columns.tables.items()} or {table: Table()}
    reader = _Reader(root, columns)
    gathering = Gathering()
    for path, about in tables.items():
        named = reader.rows(path, about)
        for one in _by_majority(named) if about.readers else named:
            gathering.add(one.patient, one.study, one.split, one.labels, one.image)
    return gathering.listing(tables_sha256([*tables, *reader.others, source]), len(reader.unlabelled))


class _Reader:
    """Turns rows into what they say, with the tables and lists that stand beside.

    Attributes:
        others: the files that were read beside the tables.
        unlabelled: studies without a row in the joined table.
    """

    def __init__(self, root: Path, columns: Columns) -> None:
        self._columns = columns
        self._root = root
        self._find_image = _finder(root, columns.images.folders)
        self._labels_of = meanings.reader(columns)
        self._joined: dict[str, dict[str, str]] | None = None
        self._listed: dict[str, Split] = {}
        self.others: list[Path] = []
        self.unlabelled: set[str] = set()
        for name, split in columns.split.lists.items() if columns.split else ():
            self.others.append(_inside(root, name))
            self._listed.update(dict.fromkeys(_lines(self.others[-1]), _split_of(split)))
        self._wanted = [*columns.patient, *columns.study, *_BRACES.findall(columns.images.file)]
        self._wanted += [columns.view.column] if columns.view else []
        self._wanted += [columns.split.column] if columns.split and columns.split.column else []
        label_columns = meanings.columns_of(columns)
        if columns.join is None:
            self._wanted += label_columns
        else:
            self.others.append(_inside(root, columns.join.table))
            self._joined = _joined(self.others[-1], columns.join.on, label_columns, columns.delimiter)
            self._wanted.append(columns.join.on)

    def rows(self, path: Path, about: Table) -> Iterator[_Named]:
        """Yield what each row of a table says."""
        columns = self._columns
        for row in read_rows(path, list(dict.fromkeys(self._wanted)), columns.delimiter):
            file = _filled(columns.images.file, row.cells)
            ids = [[row.cells[name] for name in names] for names in (columns.patient, columns.study)]
            # A blank part would make one patient of many.
            if not all(map(all, ids)):
                raise DataError(f"{row.where}: expected a patient and a study, found a blank cell; repair the row")
            patient, study = map("/".join, ids)
            labelled = row
            if self._joined is not None and columns.join is not None:
                cells = self._joined.get(row.cells[columns.join.on])
                if cells is None:
                    self.unlabelled.add(study)
                    continue
                labelled = Row(cells, row.where)
            split = _split_of(about.split) if about.split else self._split(row, file)
            image = ImageRecord(self._find_image(file, row.where), self._view(row), row.where)
            yield _Named(patient, study, split, self._labels_of(labelled), image)

    def _view(self, row: Row) -> View:
        if self._columns.view is None:
            return View.UNKNOWN
        value = row.cells[self._columns.view.column]
        name = self._columns.view.values.get(value, self._columns.view.otherwise or ("" if value else "UNKNOWN"))
        if not name:
            raise meanings.unknown(row, self._columns.view.column, "view.values")
        return View[name]

    def _split(self, row: Row, file: str) -> Split | None:
        split = self._columns.split
        if split is None:
            return None
        found = self._listed.get(file) if split.column is None else split.values.get(row.cells[split.column])
        if found is None:
            raise meanings.unknown(row, split.column or "image", "split")
        return found if isinstance(found, Split) else _split_of(found)


def _by_majority(rows: Iterator[_Named]) -> Iterator[_Named]:
    """Yield one row an image: what more than half of its readers say of a label; uncertain where they are even."""
    readings: dict[Path, list[_Named]] = defaultdict(list)
    for row in rows:
        readings[row.image.path].append(row)
    for same in readings.values():
        labels = []
        for column in range(len(LABELS)):
            said = [one.labels[column] for one in same if one.labels[column] in (PRESENT, ABSENT)]
            ones, zeros = said.count(PRESENT), said.count(ABSENT)
            labels.append(BLANK if not said else UNCERTAIN if ones == zeros else float(ones > zeros))
        yield _Named(same[0].patient, same[0].study, same[0].split, tuple(labels), same[0].image)


def _filled(template: str, cells: dict[str, str]) -> str:
    return _BRACES.sub(lambda match: cells[match[1]], template)


def _split_of(name: str) -> Split:
    return Split[name.upper()]


def _inside(root: Path, name: str) -> Path:
    return ImageFolder(root).path(name, "--columns")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8-sig").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: expected a list of images, found none ({type(error).__name__}); "
            "put it there, or take 'split' out of a copy of the YAML file"
        ) from error


def _joined(path: Path, on: str, names: list[str], delimiter: str | None) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for row in read_rows(path, list(dict.fromkeys([on, *names])), delimiter):
        if found.setdefault(row.cells[on], row.cells) != row.cells:
            raise DataError(f"{row.where}: expected one row for each '{on}', found another; repair the table")
    return found


def _finder(root: Path, patterns: list[str]) -> Callable[[str, str], Path]:
    """Return a function from an image's relative path and its row to the resolved path in one of the folders."""
    folder = ImageFolder(root)
    if patterns == ["."]:
        return folder.path
    if any(pattern.startswith("/") or ".." in pattern.split("/") for pattern in patterns):
        raise UsageError("images.folders: expected folders below the table's, found others; nothing else is read")
    names = [
        str(found.relative_to(root))
        for pattern in patterns
        for found in (sorted(root.glob(pattern)) if pattern != "." else [root])
        if found.is_dir()
    ]
    if not names:
        raise DataError(
            f"{root}: expected folders like {', '.join(patterns)} here, found none; check images.folders"
        )
    where: dict[str, str] = {}
    try:
        for name in reversed(names):
            where.update((image.name, name) for image in (root / name).iterdir())
    except OSError as error:
        raise DataError(f"{root}: a folder of images cannot be read ({type(error).__name__})") from error

    def find(file: str, row: str) -> Path:
        return folder.path(f"{where.get(file, names[0])}/{file}".removeprefix("./"), row)

    return find
