"""The record of `plan.json`: what a run promises to share. `partial.plan` writes it, the audit reads it."""

from collections.abc import Sequence
from math import prod
from typing import Annotated

from pydantic import Field

from cxr_hvd.record import MAX_COUNT, Count, Name, Record, Shape

MIN_ROW = 64
"""The fewest numbers that have a scale in common on the int8 wire, where a tensor has as many."""
PADDING, SCALES = "padding of ", "scales of "
"""How names begin of what a short wire adds to a model's numbers."""


def row_lengths(shape: Sequence[int]) -> list[int]:
    """Return how many numbers of a tensor have each of its scales in common, on the int8 wire.

    A row is what leads to one output: of a weight (outputs, ...) one output's numbers, or as many outputs' as make
    `MIN_ROW` numbers; a tensor of one dimension is one row.
    """
    size = prod(shape)
    length = prod(shape[1:]) if len(shape) > 1 else size
    if not size:
        return []
    length *= max(1, -(-MIN_ROW // length))
    return [min(length, size - start) for start in range(0, size, length)]


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
        block: the buffer's name: its block, `statistics.BLOCK`, `MOMENT.BLOCK`, or `BLOCK (1 of 2)`.
        of_block: the block that its tensors belong to; empty in plans of earlier versions.
        dtype: the type that its numbers travel in.
        fragment: of an overlapped average, from 0.
    """

    purpose: Name
    block: Name
    num_elements: Count
    dtype: Name
    scope: Name
    bytes_per_exchange: Count = 0
    of_block: Name = ""
    fragment: Count = 0


class PlanRecord(Record):
    """What `plan.json` holds; for its words see `partial.plan.SharingPlan`."""

    overlap: bool = False
    delay: Count = 0

    exchange: Name
    wire: Name
    every: Annotated[int, Field(ge=1, le=MAX_COUNT)]
    moments: list[Name]
    tensors: list[TensorRecord]
    buffers: list[BufferRecord]
