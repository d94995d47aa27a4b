"""Records: what a program writes as JSON, in one typed form for its writer and all its readers."""

from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from cxr_hvd.files import read_plain
from cxr_hvd.terminal import shown

MAX_TEXT = 1000

Step = Annotated[int, Field(ge=0, le=1 << 53)]
Rank = Annotated[int, Field(ge=0, le=1 << 20)]
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
UnixTime = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, AfterValidator(lambda text: shown(text, MAX_TEXT))]
"""One line without control characters."""


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
    return shown(f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": "), 400)
