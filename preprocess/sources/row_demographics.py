"""Turn a row of a hospital's own table into sex and age, as its YAML file says (columns.py)."""

from cxr_hvd.errors import DataError
from cxr_hvd.study.layout import UNKNOWN_AGE, Sex
from preprocess.records import Demographics
from preprocess.sources.collector import StudyCollector
from preprocess.sources.columns import Columns
from preprocess.sources.demographics import parse_age, parse_sex
from preprocess.sources.row_labels import unknown_value
from preprocess.sources.tables import Row


class DemographicsReader:
    """Reads sex and age from rows. A table that lacks their columns is noted, and they stay unknown.

    Attributes:
        columns: which may hold them.
    """

    def __init__(self, columns: Columns, collector: StudyCollector) -> None:
        self._sex, self._age = columns.sex, columns.age
        self._collector = collector
        self.columns = [name for one in (self._sex, self._age) if one is not None for name in one.column]

    def read(self, row: Row) -> Demographics:
        """Return what a row says.

        Raises:
            DataError: a value has no meaning.
        """
        return Demographics(self._read_sex(row), self._read_age(row))

    def _read_sex(self, row: Row) -> Sex:
        if self._sex is None or (column := self._present(row, self._sex.column, "sex")) is None:
            return Sex.UNKNOWN
        cell, values = row.cells[column], self._sex.values
        if cell in values:
            return Sex[values[cell]]
        sex = parse_sex(cell) if not values or not cell else None
        if sex is not None:
            return sex
        if self._sex.otherwise is None:
            raise unknown_value(row, column, "sex.values")
        return Sex[self._sex.otherwise]

    def _read_age(self, row: Row) -> int:
        if self._age is None or (column := self._present(row, self._age.column, "age")) is None:
            return UNKNOWN_AGE
        age = parse_age(row.cells[column])
        if age is None:
            raise DataError(
                f"{row.where}: column '{column}': expected an age as 58, 058Y or 18M, or a blank cell, found "
                "another value; repair the row, or take 'age' out of a copy of the YAML file"
            )
        if age == UNKNOWN_AGE and row.cells[column]:
            self._collector.add_note("ages above 120 years are taken for unknown")
        return age

    def _present(self, row: Row, names: list[str], what: str) -> str | None:
        column = next((name for name in names if name in row.cells), None)
        if column is None:
            table = row.where.rpartition(" row ")[0]
            self._collector.add_note(f"{table} has no column '{names[0]}': the {what} stays unknown")
        return column
