"""The ground of records that are read from JSON: types and ranges, nothing converted, nothing believed.

Every number is so small, and every name so short and printable, that adding numbers up and printing names is safe.
"""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from cxr_hvd.terminal import shown

MAX_COUNT = 1 << 53
MAX_RANKS = 1 << 16
MAX_SAID = 400

Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Ranks = Annotated[int, Field(ge=0, le=MAX_RANKS)]
Shape = Annotated[list[Count], Field(max_length=16)]


def _check_printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError("expected printable characters")
    return name


Name = Annotated[str, Field(max_length=256), AfterValidator(_check_printable)]


class Form(BaseModel):
    """Something read from JSON: types as they stand, nothing converted."""

    model_config = ConfigDict(strict=True, frozen=True)


def first_of(error: ValidationError) -> str:
    """Return in one line what is wrong first, and where."""
    first = error.errors(include_url=False, include_input=False)[0]
    return shown(f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": "), MAX_SAID)
