"""Read any table of images, with a YAML file that says what its columns mean (columns.py).

TABLE is a CSV or TSV, plain or gzipped, images beside it or below; or, where the YAML names several tables, the
folder that holds them. Errors name a table, a row and a column and never quote a cell: what a column of a
hospital's own table holds is not known here, and it may be a name.
"""

import filecmp
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from cxr_hvd.errors import ConfigError, DataError, UsageError
from cxr_hvd.study.layout import Split, View
from preprocess.records import ImageRecord, SourceOptions, StudyListing
from preprocess.sources.collector import StudyCollector, differing_label, forms_differ
from preprocess.sources.columns import Columns, Table, find_columns, load_columns
from preprocess.sources.folder import ImageFolder
from preprocess.sources.readings import Reading, merge_by_majority
from preprocess.sources.row_demographics import DemographicsReader
from preprocess.sources.row_labels import build_label_reader, label_columns, unknown_value
from preprocess.sources.tables import Row, read_rows
from preprocess.sources.text import open_lines, tables_sha256

_BRACES = re.compile(r"\{([^{}]+)\}")


def read_studies(table: Path, options: SourceOptions) -> StudyListing:
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
    tables = _tables(root, columns.tables) or {table: Table()}
    collector = StudyCollector(options.max_unlabelled)
    reader = _Reader(root, columns, source.name, collector)
    for path, about in tables.items():
        readings = reader.rows(path, about)
        for reading in merge_by_majority(readings, collector) if about.readers else readings:
            about_study = reading.split, reading.labels, reading.image, reading.demographics
            collector.add(reading.patient, reading.study, *about_study)
    return collector.listing(tables_sha256([*tables, *reader.other_files, source]))


def _tables(root: Path, names: dict[str, Table]) -> dict[Path, Table]:
    """Return the tables that the YAML file names, each once."""
    tables: dict[Path, Table] = {}
    for name, about in names.items():
        if tables.setdefault(_inside(root, name), about) != about:
            raise ConfigError(f"tables.{name}: expected each table once, found it under two names that differ")
    return tables


class _Reader:
    """Turns rows into what they say, with the tables and lists that stand beside.

    Attributes:
        other_files: the files that were read beside the tables.
    """

    def __init__(self, root: Path, columns: Columns, yaml: str, collector: StudyCollector) -> None:
        self._columns = columns
        self._yaml = yaml
        self._collector = collector
        self._find_image = _finder(root, columns.images.folders)
        self._read_labels = build_label_reader(columns)
        self._demographics = DemographicsReader(columns, collector)
        self._joined: dict[str, Row] = {}
        self._listed: dict[str, str] = {}
        self.other_files: list[Path] = []
        for name in columns.split.lists if columns.split else ():
            self.other_files.append(_inside(root, name))
            self._read_list(self.other_files[-1], name)
        self._wanted = [*columns.patient, *columns.study, *_BRACES.findall(columns.images.file)]
        self._wanted += [columns.view.column] if columns.view else []
        self._wanted += [columns.split.column] if columns.split and columns.split.column else []
        if columns.join is None:
            self._wanted += label_columns(columns)
        else:
            self.other_files.append(_inside(root, columns.join.table))
            self._read_joined(self.other_files[-1], columns.join.on)
            self._wanted.append(columns.join.on)

    def _read_list(self, path: Path, name: str) -> None:
        """Read a list of images, a name a line; the same name in a list of another split is an error."""
        assert self._columns.split is not None
        lists = self._columns.split.lists
        with open_lines(path, f"'split' in a copy of {self._yaml}") as lines:
            for number, line in enumerate(lines, start=1):
                lines.start_row()
                image = line.strip()
                if image and lists[self._listed.setdefault(image, name)] != lists[name]:
                    raise DataError(
                        f"{name} line {number}: expected each image in the lists of one split, found it in "
                        f"{self._listed[image]} too; remove it from one"
                    )

    def _read_joined(self, path: Path, on: str) -> None:
        """Read the table of labels by its column `on`; rows that repeat others are counted, others refused."""
        names = list(dict.fromkeys([on, *label_columns(self._columns)]))
        for row in read_rows(path, names, self._columns.delimiter, self._yaml):
            earlier = self._joined.setdefault(row.cells[on], row)
            # Other text may mean the same: 1 and 1.0.
            if earlier.cells != row.cells and differing_label(self._read_labels(earlier), self._read_labels(row)):
                raise DataError(
                    f"{row.where}: expected the labels of {earlier.where}, which has the same '{on}', found "
                    "others; repair the table"
                )
            if earlier is not row:
                self._collector.count_duplicate()

    def rows(self, path: Path, about: Table) -> Iterator[Reading]:
        """Yield what each row of a table says."""
        columns = self._columns
        wanted = [*self._wanted, *([about.reader] if about.reader else [])]
        negative = columns.negative.column if columns.negative else ""
        optional = [*([negative] if negative else []), *self._demographics.columns]
        for row in read_rows(path, list(dict.fromkeys(wanted)), columns.delimiter, self._yaml, optional):
            file = _filled(columns.images.file, row.cells)
            ids = [[row.cells[name] for name in names] for names in (columns.patient, columns.study)]
            # A blank part would make one patient of many.
            if not all(map(all, ids)):
                raise DataError(f"{row.where}: expected a patient and a study, found a blank cell; repair the row")
            patient, study = map("/".join, ids)
            labelled = row
            if columns.join is not None:
                key = row.cells[columns.join.on]
                # Blank cells of two tables are no match.
                if not key or key not in self._joined:
                    self._leave_out(study, row, columns.join.on)
                    continue
                labelled = Row(self._joined[key].cells, row.where)
            if negative and negative not in row.cells:
                self._collector.add_note(
                    f"{path.name} has no column '{negative}': no image is taken for a negative"
                )
            is_negative = columns.negative is not None and row.cells.get(negative) in columns.negative.values
            split = Split[about.split.upper()] if about.split else self._split(row, file)
            image = ImageRecord(self._find_image(file, row.where), self._view(row), row.where, is_negative)
            reader = row.cells[about.reader] if about.reader else ""
            labels, demographics = self._read_labels(labelled), self._demographics.read(row)
            yield Reading(patient, study, split, labels, image, reader, demographics)

    def _leave_out(self, study: str, row: Row, on: str) -> None:
        differing = forms_differ(row.cells[on], next(iter(self._joined), row.cells[on]))
        table = self.other_files[-1].name
        self._collector.leave_out(study, row.where, f"expected its '{on}' in {table} too, found none{differing}")

    def _view(self, row: Row) -> View:
        if self._columns.view is None:
            return View.UNKNOWN
        value = row.cells[self._columns.view.column]
        name = self._columns.view.values.get(value, self._columns.view.otherwise or ("" if value else "UNKNOWN"))
        if not name:
            raise unknown_value(row, self._columns.view.column, "view.values")
        return View[name]

    def _split(self, row: Row, file: str) -> Split | None:
        split = self._columns.split
        if split is None:
            return None
        if split.column is not None:
            if row.cells[split.column] not in split.values:
                raise unknown_value(row, split.column, "split")
            return Split[split.values[row.cells[split.column]].upper()]
        if file not in self._listed:
            raise DataError(
                f"{row.where}: expected this image, as 'images.file' of {self._yaml} names it, in "
                f"{' or '.join(split.lists)}, a name a line, found it in none; "
                "add it there, or take 'split' out of a copy of the YAML file"
            )
        return Split[split.lists[self._listed[file]].upper()]


def _filled(template: str, cells: dict[str, str]) -> str:
    return _BRACES.sub(lambda match: cells[match[1]], template)


def _inside(root: Path, name: str) -> Path:
    return ImageFolder(root, "TABLE").path(name, "--columns")


def _finder(root: Path, patterns: list[str]) -> Callable[[str, str], Path]:
    """Return a function from an image's relative path and its row to the resolved path in one of the folders."""
    folder = ImageFolder(root, "TABLE")
    if patterns == ["."]:
        return folder.path
    if any(pattern.startswith("/") or ".." in pattern.split("/") for pattern in patterns):
        raise UsageError("images.folders: expected folders below the table's, found others; nothing else is read")
    names = [
        str(folder_path.relative_to(root))
        for pattern in patterns
        for folder_path in (sorted(root.glob(pattern)) if pattern != "." else [root])
        if folder_path.is_dir()
    ]
    if not names:
        raise DataError(
            f"{root}: expected folders like {', '.join(patterns)} here, found none; check images.folders"
        )
    where: dict[str, str] = {}
    others: dict[str, list[str]] = {}
    try:
        for name in dict.fromkeys(names):
            for image in (root / name).iterdir():
                if where.setdefault(image.name, name) != name:
                    others.setdefault(image.name, []).append(name)
    except OSError as error:
        raise DataError(f"{root}: a folder of images cannot be read ({type(error).__name__})") from error

    def find(file: str, row: str) -> Path:
        path = folder.path(f"{where.get(file, names[0])}/{file}", row)
        for name in others.get(file, ()):
            _check_same_file(path, folder.path(f"{name}/{file}", row), where[file], name, row)
        return path

    return find


def _check_same_file(path: Path, other: Path, name: str, other_name: str, row: str) -> None:
    """Raise `DataError` where two folders hold different images of one name."""
    try:
        is_same = path == other or not path.is_file() or filecmp.cmp(path, other, shallow=False)
    except OSError:
        is_same = False
    if not is_same:
        raise DataError(
            f"{row}: expected one image of this name in images.folders, found another in {other_name} than in "
            f"{name}; remove one, or name one folder"
        )
