"""How float32 numbers are rounded to fewer bits for a short wire, and read back.

16 bits are torch's bfloat16 and float16. 8 bits are whole numbers from -127 to 127, times a scale for each row:
the greatest of a row is 127. A row is what leads to one output of a layer (`ledger.plan_record.row_lengths`):
numbers of different layers differ too much to have a scale in common (decision 0036).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from cxr_hvd.partial.buffers import Rows
from cxr_hvd.partial.plan import SCALE_BYTES, Wire

MAX_INT8 = 127
LARGEST = torch.finfo(torch.float32).max * (1 - 2.0**-20)


class Rounding(Protocol):
    """A form of fewer bits. What is not finite is read back as infinity or NaN.

    Attributes:
        dtype: of the payload.
    """

    dtype: torch.dtype

    def encode(self, values: Tensor, rows: Rows) -> Tensor:
        """Return the flat payload of (n,) float32 values, in these rows."""
        ...

    def decode(self, payload: Tensor, rows: Rows) -> Tensor:
        """Return the (n,) float32 values of a payload."""
        ...

    def num_added(self, rows: Rows) -> int:
        """Return how many elements a payload has beyond those of its values."""
        ...


class CastRounding:
    """Numbers in one of torch's types of 16 bits. A finite value beyond its range becomes the greatest in it."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def encode(self, values: Tensor, rows: Rows) -> Tensor:
        limit = torch.finfo(self.dtype).max
        return torch.where(values.isinf(), values, values.clamp(-limit, limit)).to(self.dtype)

    def decode(self, payload: Tensor, rows: Rows) -> Tensor:
        return payload.float()

    def num_added(self, rows: Rows) -> int:
        return 0


class RowRounding:
    """Whole numbers of 8 bits, behind them a float32 scale a row. A row with infinity or NaN is read as NaN."""

    dtype = torch.int8

    def encode(self, values: Tensor, rows: Rows) -> Tensor:
        scales = torch.empty(num_rows(rows), device=values.device)
        for run, scale in zip(_runs(values, rows), _scales_of_runs(scales, rows), strict=True):
            torch.linalg.vector_norm(run, torch.inf, dim=1, out=scale)
        # Not above what times 127 is still finite: the rest is sent later.
        scales = torch.where(scales.isfinite(), scales.clamp(max=LARGEST), torch.nan).div_(MAX_INT8)
        divisors = torch.where(scales == 0, 1.0, scales)
        whole = torch.empty_like(values)
        parts = (_runs(values, rows), _scales_of_runs(divisors, rows), _runs(whole, rows))
        for run, divisor, target in zip(*parts, strict=True):
            torch.div(run, divisor.unsqueeze(1), out=target)
        return torch.cat([whole.round_().to(torch.int8), scales.view(torch.int8)])

    def decode(self, payload: Tensor, rows: Rows) -> Tensor:
        size = payload.numel() - self.num_added(rows)
        # A copy: a payload need not begin at a multiple of four bytes.
        scales = payload[size:].clone().view(torch.float32)
        values = torch.empty(size, device=payload.device)
        parts = (_runs(payload[:size], rows), _scales_of_runs(scales, rows), _runs(values, rows))
        for whole, scale, target in zip(*parts, strict=True):
            torch.mul(whole, scale.unsqueeze(1), out=target)
        return values

    def num_added(self, rows: Rows) -> int:
        return SCALE_BYTES * num_rows(rows)


def num_rows(rows: Rows) -> int:
    """Return the number of rows."""
    return sum(count for count, _ in rows)


def _runs(values: Tensor, rows: Rows) -> Iterator[Tensor]:
    """Return each run of rows of one length as a view (count, length)."""
    parts = torch.split(values, [count * length for count, length in rows])
    for part, (count, length) in zip(parts, rows, strict=True):
        yield part.view(count, length)


def _scales_of_runs(scales: Tensor, rows: Rows) -> Sequence[Tensor]:
    return torch.split(scales, [count for count, _ in rows])


ROUNDINGS: Mapping[Wire, Rounding] = {
    "bfloat16": CastRounding(torch.bfloat16),
    "float16": CastRounding(torch.float16),
    "int8": RowRounding(),
}
