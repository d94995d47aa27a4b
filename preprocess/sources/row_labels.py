"""Turn a row of a hospital's own table into the 14 labels, as its YAML file says (columns.py)."""

from collections.abc import Callable

from cxr_hvd.errors import DataError
from cxr_hvd.study.labels import ABSENT, BLANK, LABELS, PRESENT, UNCERTAIN
from preprocess.sources.collector import Labels
from preprocess.sources.columns import NOTHING, Columns, Findings, LabelColumns
from preprocess.sources.tables import Row

_VALUES = {"present": PRESENT, "absent": ABSENT, "uncertain": UNCERTAIN, "blank": BLANK}


def label_columns(columns: Columns) -> list[str]:
    """Return the columns that hold labels."""
    if columns.findings is not None:
        return [columns.findings.column]
    assert columns.labels is not None
    return [name for names in columns.labels.columns.values() for name in names]


def build_label_reader(columns: Columns) -> Callable[[Row], Labels]:
    """Return a function from a row to its labels; it raises `DataError` on a value without a meaning."""
    if columns.findings is not None:
        findings = columns.findings
        return lambda row: _labels_by_terms(row, findings)
    assert columns.labels is not None
    by_column = columns.labels
    return lambda row: _labels_by_column(row, by_column)


def _labels_by_column(row: Row, labels: LabelColumns) -> Labels:
    """Return labels that stand in columns of their own: present where any says so, absent where all do."""
    values = dict.fromkeys(LABELS, BLANK)
    for label, names in labels.columns.items():
        meanings = []
        for name in names:
            meaning = labels.values.get(row.cells[name])
            if meaning is None:
                raise unknown_value(row, name, "labels.values")
            meanings.append(meaning)
        strongest = next(meaning for meaning in ("present", "uncertain", "blank", "absent") if meaning in meanings)
        values[label] = _VALUES[strongest]
    return tuple(values.values())


def _labels_by_terms(row: Row, findings: Findings) -> Labels:
    """Return labels that one column lists: present where a term says so, absent where assessed and not named."""
    cell = row.cells[findings.column]
    values = dict.fromkeys(LABELS, BLANK)
    terms = [term.strip(" " + findings.strip) for term in cell.split(findings.separator)]
    # A term that says nothing leaves the labels to the others; where there is no other, nothing is said of any.
    terms = [term for term in terms if term not in findings.blank and (term or term in findings.terms)]
    if cell in findings.blank or not terms:
        return tuple(values.values())
    values.update(dict.fromkeys(findings.assessed, ABSENT))
    for term in terms:
        label = findings.terms.get(term)
        if label is None and findings.otherwise == "error":
            raise unknown_value(row, findings.column, "findings.terms")
        if label not in (None, NOTHING):
            values[str(label)] = PRESENT
    return tuple(values.values())


def unknown_value(row: Row, column: str, key: str) -> DataError:
    """Return the error of a value that the YAML file does not name, without the value: it may be a name."""
    return DataError(
        f"{row.where}: column '{column}': expected a value that '{key}' of the YAML file names, found another; "
        "add it there or repair the row"
    )
