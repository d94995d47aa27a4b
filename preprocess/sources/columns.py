"""The schema of a YAML file of columns: what a table's columns mean (`cxr-preprocess manifest --columns YAML`).

Everything in it is text: `0`, `No` and `null` stay what the table writes, and a key that is not named here, or
comes twice, is an error. docs/data-format.md explains the keys; preprocess/manifests/ holds files to start from.
"""

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from cxr_hvd.errors import ConfigError, UsageError, nearest
from cxr_hvd.study.labels import LABELS
from cxr_hvd.yaml_text import load_yaml

SHIPPED = Path(__file__).parents[1] / "manifests"
NOTHING = "none"


def _label(name: str) -> str:
    if name not in LABELS:
        raise ValueError(f"expected one of the 14 labels, found '{name}'{nearest(name, list(LABELS))}")
    return name


def _label_or_nothing(name: str) -> str:
    return name if name == NOTHING else _label(name)


def _list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _column(value: object) -> object:
    return {"column": value} if isinstance(value, str | list) else value


Label = Annotated[str, AfterValidator(_label)]
Column = Annotated[str, Field(min_length=1)]
OneOrMore = Annotated[list[Column], BeforeValidator(_list), Field(min_length=1)]
SplitName = Literal["train", "validate", "test"]
ViewName = Literal["PA", "AP", "LATERAL", "OTHER", "UNKNOWN"]
SexName = Literal["FEMALE", "MALE", "OTHER", "UNKNOWN"]
Meaning = Literal["present", "absent", "uncertain", "blank"]

STANDARD: dict[str, Meaning] = {
    **dict.fromkeys(("1", "1.0"), "present"),
    **dict.fromkeys(("0", "0.0"), "absent"),
    **dict.fromkeys(("-1", "-1.0"), "uncertain"),
    "": "blank",
}


class ColumnsSection(BaseModel):
    """A part of the file: frozen, and nothing in it that is not named here."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Images(ColumnsSection):
    """Where a row's image lies: `file` is a path with columns in braces, in one of `folders` (`*` allowed)."""

    file: Column
    folders: OneOrMore = ["."]


class Views(ColumnsSection):
    """From which side: the values of a column; `otherwise` is for all others, which else are errors."""

    column: Column
    values: dict[str, ViewName]
    otherwise: ViewName | None = None


class Sexes(ColumnsSection):
    """The patient's sex: the first of `column` that the table has, and what its values mean.

    Without `values`: F, M, O, female, male, other, unknown and blank cells, in letters of any size.
    """

    column: OneOrMore
    values: dict[str, SexName] = {}
    otherwise: SexName | None = None


class Ages(ColumnsSection):
    """The patient's age: the first of `column` that the table has, in years or as DICOM writes it (034Y, 018M)."""

    column: OneOrMore


class Negatives(ColumnsSection):
    """Which images are stored black for white, where their files (JPEG, PNG) cannot say so: values of a column."""

    column: Column
    values: OneOrMore


class Splits(ColumnsSection):
    """The published split: the values of a column, or files that list `images.file`, one a line."""

    column: Column | None = None
    values: dict[str, SplitName] = {}
    lists: dict[str, SplitName] = {}

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if bool(self.lists) == (self.column is not None) or bool(self.values) != (self.column is not None):
            raise ValueError("expected either column with values, or lists")
        return self


class LabelColumns(ColumnsSection):
    """A column (or several, of which any counts) for each label, and what their values mean."""

    columns: dict[Label, OneOrMore]
    values: dict[str, Meaning] = STANDARD


class Findings(ColumnsSection):
    """One column that lists the findings of an image, such as `Edema|Pneumonia`.

    Labels in `assessed` are absent where no term names them; all others are blank. Terms in `blank`, and empty
    ones, say nothing: where a cell holds no others, all labels are blank.
    """

    column: Column
    separator: Annotated[str, Field(min_length=1)]
    strip: str = ""
    terms: dict[str, Annotated[str, AfterValidator(_label_or_nothing)]]
    otherwise: Literal["ignore", "error"] = "error"
    assessed: list[Label]
    blank: list[str] = [""]

    @model_validator(mode="after")
    def _assesses_what_it_finds(self) -> Self:
        for label in self.terms.values():
            if label not in (*self.assessed, NOTHING):
                raise ValueError(f"expected '{label}', which terms name, in assessed too")
        return self


class Table(ColumnsSection):
    """One of several tables: the split of all its rows; `readers: majority` where an image has a row a reader.

    `reader` is the column that tells readers apart: each counts once.
    """

    split: SplitName | None = None
    readers: Literal["majority"] | None = None
    reader: Column | None = None


class Join(ColumnsSection):
    """A second table whose row has the same value in the column `on`."""

    table: Column
    on: Column


class Columns(ColumnsSection):
    """The whole file."""

    delimiter: Literal[",", ";", "|", "\t"] | None = None
    tables: dict[str, Table] = {}
    join: Join | None = None
    patient: OneOrMore
    study: OneOrMore
    images: Images
    view: Views | None = None
    sex: Annotated[Sexes, BeforeValidator(_column)] | None = None
    age: Annotated[Ages, BeforeValidator(_column)] | None = None
    negative: Negatives | None = None
    split: Splits | None = None
    labels: LabelColumns | None = None
    findings: Findings | None = None

    @model_validator(mode="after")
    def _has_labels_once(self) -> Self:
        if (self.labels is None) == (self.findings is None):
            raise ValueError("expected either labels or findings")
        return self


def find_columns(path: Path | None) -> Path:
    """Return the YAML file that `--columns` means: a file, or the name of one that ships with this program.

    Raises:
        UsageError: there is none.
    """
    shipped = sorted(file.stem for file in SHIPPED.glob("*.yaml"))
    if path is None:
        raise UsageError(f"--columns: expected a YAML file, or one of {', '.join(shipped)}; found none")
    if path.is_file():
        return path
    if path.name == str(path) and path.stem in shipped:
        return SHIPPED / f"{path.stem}.yaml"
    raise UsageError(f"--columns {path}: expected a YAML file or one of {', '.join(shipped)}; found none")


def load_columns(path: Path) -> Columns:
    """Read a YAML file of columns.

    Raises:
        ConfigError: it is no YAML, or a key or a value in it is not as `Columns` says.
    """
    try:
        return Columns.model_validate(load_yaml(path, is_text=True))
    except ValidationError as error:
        raise ConfigError(f"{path}: {_explain(error)}") from error


def _explain(error: ValidationError) -> str:
    """Say the first error in one line; the nearest valid key where one is misspelt."""
    first = min(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
    parts = [str(part) for part in first["loc"] if not str(part).startswith("function-")]
    dotted = ".".join(parts) or "columns"
    if first["type"] == "extra_forbidden":
        section: type[BaseModel] = _SECTIONS.get(parts[0], Columns) if len(parts) > 1 else Columns
        keys = list(section.model_fields)
        close = get_close_matches(parts[-1], keys, 1, 0.4)
        return f"unknown key '{dotted}'" + (f"; did you mean '{close[0]}'?" if close else f"; expected {keys}")
    if first["type"] == "missing":
        return f"expected a key '{dotted}', found none"
    return f"{dotted}: {first['msg'].removeprefix('Value error, ')}"


_SECTIONS: dict[str, type[BaseModel]] = {
    "tables": Table,
    "join": Join,
    "images": Images,
    "view": Views,
    "sex": Sexes,
    "age": Ages,
    "negative": Negatives,
    "split": Splits,
    "labels": LabelColumns,
    "findings": Findings,
}
