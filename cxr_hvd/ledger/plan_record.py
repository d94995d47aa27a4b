"""The record of `plan.json`: what a run promises to share. `partial.plan` writes it, the audit reads it."""

from math import prod
from typing import Annotated

from pydantic import Field

from cxr_hvd.record import MAX_COUNT, Count, Name, Record, Shape


class TensorRecord(Record):
    """One tensor of the network, and whether it is shared, private or local."""

    name: Name
    block: Name
    kind: Name
    shape: Shape
    dtype: Name = ""
    scope: Name

    @property
    def num_elements(self) -> int:
        return prod(self.shape)


class BufferRecord(Record):
    """One buffer: what a collective is given at a time.

    Attributes:
        purpose: what travels, as the traffic table knows it.
        block: the buffer's name: its block, or `statistics.BLOCK` or `MOMENT.BLOCK`.
        dtype: the type that its numbers travel in.
    """

    purpose: Name
    block: Name
    num_elements: Count
    dtype: Name
    scope: Name
    bytes_per_exchange: Count = 0


class PlanRecord(Record):
    """What `plan.json` holds; for its words see `partial.plan.SharingPlan`."""

    exchange: Name
    wire: Name
    every: Annotated[int, Field(ge=1, le=MAX_COUNT)]
    moments: list[Name]
    tensors: list[TensorRecord]
    buffers: list[BufferRecord]
