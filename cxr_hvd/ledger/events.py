"""The form of `plan.json` and of a ledger's events, as a reader expects them: types and ranges, nothing else.

Every number is so small, and every name so short and printable, that adding numbers up and printing names is safe.
`ledger` writes the events, `train` the plan; `records` reads them by these forms.
"""

from math import prod
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from cxr_hvd.ledger.allowed import Group, How, root_of
from cxr_hvd.ledger.writer import BEFORE_TRAINING
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


class Entry(Form):
    """One kind of thing that was sent, and how often."""

    model_config = ConfigDict(extra="forbid")
    purpose: Name
    name: Name
    shape: Shape
    dtype: Name
    bytes: Count
    group: Group
    group_size: Annotated[int, Field(ge=2, le=MAX_RANKS)]
    how: How
    count: Annotated[int, Field(ge=1, le=MAX_COUNT)]
    first_step: Annotated[int, Field(ge=BEFORE_TRAINING, le=MAX_COUNT)]
    last_step: Annotated[int, Field(ge=BEFORE_TRAINING, le=MAX_COUNT)]

    @property
    def root(self) -> str:
        return root_of(self.purpose)

    @property
    def num_elements(self) -> int:
        return prod(self.shape)


class Opening(Form):
    """Whose ledger it is, and under which plan."""

    site: Name
    rank: Ranks
    num_ranks: Ranks
    rank_in_site: Ranks
    num_ranks_of_site: Ranks
    plan_sha256: Name
    step: Count
    version: Name
    time: Name


class Closing(Form):
    """Calls and bytes by root of purpose."""

    totals: dict[Name, dict[Name, int]]


class Sent(Form):
    entries: list[Entry]


class Heads(Form):
    heads: dict[Name, Name]


class Cut(Form):
    bytes: Count


class Buffer(Form):
    """One buffer of the plan: what a collective is given at a time."""

    purpose: Name
    block: Name
    num_elements: Count
    dtype: Name
    scope: Name


class Tensor(Form):
    """One tensor of the plan."""

    name: Name
    block: Name
    kind: Name
    shape: Shape
    scope: Name

    @property
    def num_elements(self) -> int:
        return prod(self.shape)


class Plan(Form):
    """What `plan.json` promises."""

    exchange: Name
    wire: Name
    every: Annotated[int, Field(ge=1, le=MAX_COUNT)]
    moments: list[Name]
    tensors: list[Tensor]
    buffers: list[Buffer]
