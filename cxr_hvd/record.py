"""Records: what a program writes as JSON, in one typed form for its writer and all its readers.

Nothing is converted and nothing believed: every number is so small, and every name so short and printable, that
adding numbers up and printing names is safe.
"""

from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from cxr_hvd.files import read_plain
from cxr_hvd.terminal import shown

MAX_TEXT = 1000
MAX_COUNT = 1 << 53
MAX_RANKS = 1 << 16
MAX_PROBLEM = 400

Step = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Ranks = Annotated[int, Field(ge=0, le=MAX_RANKS)]
Shape = Annotated[list[Count], Field(max_length=16)]
Rank = Annotated[int, Field(ge=0, le=1 << 20)]
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
UnixTime = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, AfterValidator(lambda text: shown(text, MAX_TEXT))]
"""One line without control characters."""


def _check_printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError("expected printable characters")
    return name


Name = Annotated[str, Field(max_length=256), AfterValidator(_check_printable)]
"""A name that is short and printable, or the record is refused."""


class Record(BaseModel):
    """Base of all records: types as they stand, nothing converted, frozen. Unknown keys are left out."""

    model_config = ConfigDict(strict=True, frozen=True)


R = TypeVar("R", bound=BaseModel)


def read_record(path: Path, form: type[R], max_bytes: int) -> R:
    """Read a JSON file of one record.

    Raises:
        OSError: it is no plain file, is longer than `max_bytes`, or cannot be read.
        ValueError: it is not JSON of this form.
    """
    return form.model_validate_json(read_plain(path, max_bytes))


def first_problem(error: ValidationError) -> str:
    """Return in one line what is wrong first, and where."""
    first = error.errors(include_url=False, include_input=False)[0]
    return shown(f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": "), MAX_PROBLEM)
