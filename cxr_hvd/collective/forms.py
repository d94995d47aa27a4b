"""The form of `plan.json` and of a ledger's events, as a reader expects them: types and ranges, nothing else.

`ledger` writes the events, `train` the plan; `records` reads them by these forms.
"""

from math import prod
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from cxr_hvd.collective.ledger import BEFORE_TRAINING
from cxr_hvd.collective.traffic import Group, How, root_of

Count = Annotated[int, Field(ge=0)]


class Form(BaseModel):
    """Something read from JSON: types as they stand, nothing converted."""

    model_config = ConfigDict(strict=True, frozen=True)


class Entry(Form):
    """One kind of thing that was sent, and how often."""

    model_config = ConfigDict(extra="forbid")
    purpose: str
    name: str
    shape: list[Count]
    dtype: str
    bytes: Count
    group: Group
    group_size: Annotated[int, Field(ge=2)]
    how: How
    count: Annotated[int, Field(ge=1)]
    first_step: Annotated[int, Field(ge=BEFORE_TRAINING)]
    last_step: Annotated[int, Field(ge=BEFORE_TRAINING)]

    @property
    def root(self) -> str:
        return root_of(self.purpose)

    @property
    def num_elements(self) -> int:
        return prod(self.shape)


class Opening(Form):
    """Whose ledger it is, and under which plan."""

    site: str
    rank: Count
    num_ranks: Count
    rank_in_site: Count
    num_ranks_of_site: Count
    plan_sha256: str
    step: Count
    version: str
    time: str


class Closing(Form):
    """Calls and bytes by root of purpose."""

    totals: dict[str, dict[str, int]]


class Sent(Form):
    entries: list[Entry]


class Heads(Form):
    heads: dict[str, str]


class Cut(Form):
    bytes: Count


class Buffer(Form):
    """One buffer of the plan: what a collective is given at a time."""

    purpose: str
    block: str
    num_elements: Count
    dtype: str
    scope: str


class Tensor(Form):
    """One tensor of the plan."""

    name: str
    block: str
    kind: str
    shape: list[Count]
    scope: str

    @property
    def num_elements(self) -> int:
        return prod(self.shape)


class Plan(Form):
    """What `plan.json` promises."""

    exchange: str
    wire: str
    every: Annotated[int, Field(ge=1)]
    moments: list[str]
    tensors: list[Tensor]
    buffers: list[Buffer]
