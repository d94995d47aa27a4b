"""Draft a YAML file of columns from a table's header: `cxr-preprocess manifest TABLE --draft YAML`.

It guesses by names what each column is. What it cannot guess stands there as `CHANGE-ME`, which no table has, so
that the next run says what is missing. No row is read, so that nothing of a patient stands in the file.
"""

import csv
import json
import re
from pathlib import Path

from cxr_hvd.errors import DataError, UsageError
from cxr_hvd.files import replaced_file
from cxr_hvd.study.labels import LABELS
from preprocess.sources.tables import DELIMITERS, guess_delimiter, split_header
from preprocess.sources.text import open_lines

MISSING = "CHANGE-ME"

# What a column's name, in small letters, holds for each role; the first pattern that fits any column counts.
_ROLES = {
    "patient": (
        "patient.?(id|nr|num)",
        "subject.?id",
        "patnr",
        "patid",
        "patient(?!.*(age|sex|gender|birth))",
        "mrn",
    ),
    "study": (
        "study.?(id|nr|num|uid)",
        "accession",
        "exam",
        "visit",
        "follow.?up",
        "study(?!.*date)",
        "report.?id",
    ),
    "file": ("path", "file", "image.?(index|id|name)", "dicom.?id", "sop.?instance", "image", "dicom"),
    "view": ("view", "projection", "position"),
    "split": ("split", "^set$", "fold", "partition"),
    "sex": ("(?<![a-z])sex", "gender"),
    "age": ("patient.?age", "(?<![a-z])age(?![a-z])"),
    "negative": ("photometric",),
    "findings": ("finding.?labels", "^labels$", "findings", "problems", "diagnos"),
}
_OTHER_NAMES = {"effusion": "Pleural Effusion", "pneumothrax": "Pneumothorax", "devices": "Support Devices"}


def write_draft(table: Path, out: Path, overwrite: bool) -> None:
    """Write the YAML file `out` for the table's columns.

    Raises:
        UsageError: there is a file already, and no `overwrite`, or it cannot be written.
        DataError: the table cannot be read.
    """
    if out.exists() and not (overwrite and out.is_file()):
        raise UsageError(f"--draft {out}: expected a new file, found one; choose another or add --overwrite")
    text = build_draft(table, out.name)
    try:
        with replaced_file(out) as beside:
            beside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"--draft {out}: cannot be written ({type(error).__name__}); choose another place"
        ) from error


def build_draft(table: Path, name: str) -> str:
    """Return the text of a YAML file `name` for the table's columns."""
    with open_lines(table, "TABLE") as lines:
        line = next(lines, "").rstrip("\r\n")
    try:
        headers = {delimiter: split_header(line, delimiter) for delimiter in (guess_delimiter(table), *DELIMITERS)}
    except csv.Error as error:
        raise DataError(f"{table.name} row 1: expected names of columns, found none; check TABLE") from error
    delimiter, header = max(headers.items(), key=lambda item: len(item[1]))
    header = [column for column in header if column]
    if not header:
        raise DataError(f"{table.name} row 1: expected names of columns, found a blank line; check TABLE")
    role = {role: _find(header, patterns) for role, patterns in _ROLES.items()}
    patient, study = role["patient"] or MISSING, role["study"] or MISSING
    parts = [
        f"# Columns of {_quoted(table.name)}: a draft, made of its header. Check every line; docs/data-format.md",
        "# explains the keys. Then:",
        f"#   cxr-preprocess manifest TABLE --columns {_quoted(name)} --out FILE --site NAME",
        f"# All columns: {', '.join(map(_quoted, header))}",
        *([f"delimiter: {json.dumps(delimiter)}"] if delimiter != guess_delimiter(table) else []),
        f"patient: {_quoted(patient)}",
        f"study: [{_quoted(patient)}, {_quoted(study)}]        # the study alone, where its ids are unique",
        "images:",
        f"  file: {_quoted('{' + (role['file'] or MISSING) + '}')}        # a path below TABLE's folder",
        *_view(role["view"]),
        *_split(role["split"]),
        *(f"{person}: {_quoted(column)}" for person in ("sex", "age") if (column := role[person])),
        *(
            [f"negative: {{column: {_quoted(role['negative'])}, values: [MONOCHROME1]}}"]
            if role["negative"]
            else []
        ),
        *_labels(header, role["findings"]),
    ]
    return "\n".join(parts) + "\n"


def _view(column: str | None) -> list[str]:
    if column is None:
        return []
    values = "{PA: PA, AP: AP, LATERAL: LATERAL, LL: LATERAL, L: LATERAL, Lateral: LATERAL}"
    return [f"view: {{column: {_quoted(column)}, values: {values}, otherwise: OTHER}}"]


def _split(column: str | None) -> list[str]:
    if column is None:
        return []
    return [f"split: {{column: {_quoted(column)}, values: {{train: train, validate: validate, test: test}}}}"]


def _labels(header: list[str], findings: str | None) -> list[str]:
    """Return the labels that have columns of their own, or else the column that lists the findings."""
    names = {_plain(label): label for label in LABELS} | _OTHER_NAMES
    columns = {names[_plain(column)]: column for column in header if _plain(column) in names}
    if not columns and findings is not None:
        return [
            "findings:",
            f"  column: {_quoted(findings)}",
            '  separator: "|"',
            '  blank: [""]               # what says nothing of any finding',
            "  terms:                    # the table's term on the left; none: known, not one of the 14",
            *[f"    {label}: {label}" for label in LABELS],
            f"  assessed: [{', '.join(LABELS)}]        # absent where not named",
        ]
    return [
        "labels:                     # of the 14, those that the table has",
        "  columns:",
        *[f"    {label}: {_quoted(column)}" for label, column in (columns or {LABELS[0]: MISSING}).items()],
        '  values: {"1": present, "1.0": present, "0": absent, "0.0": absent, "-1": uncertain, "-1.0": uncertain,'
        ' "": blank}',
    ]


def _find(header: list[str], patterns: tuple[str, ...]) -> str | None:
    matches = (column for pattern in patterns for column in header if re.search(pattern, column.lower()))
    return next(matches, None)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


def _quoted(name: str) -> str:
    """Return the name as YAML text; what is plain stays plain."""
    is_plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*( [A-Za-z0-9_-]+)*", name)
    return name if is_plain else json.dumps(name)
