"""How float32 numbers are rounded to fewer bits for a short wire, and read back.

16 bits are torch's bfloat16 and float16. 8 bits are whole numbers from -127 to 127, times a scale for each row:
the greatest of a row is 127. A row is what leads to one output of a layer (`ledger.plan_record.row_lengths`):
numbers of different layers differ too much to have a scale in common (decision 0036).
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from cxr_hvd.partial.plan import SCALE_BYTES, Wire

MAX_INT8 = 127
LARGEST = torch.finfo(torch.float32).max * (1 - 2.0**-20)


class Rounding(Protocol):
    """A form of fewer bits. What is not finite is read back as infinity or NaN.

    Attributes:
        dtype: of the payload.
    """

    dtype: torch.dtype

    def encode(self, values: Tensor, rows: Tensor) -> Tensor:
        """Return the flat payload of (n,) float32 values, in rows of these lengths."""
        ...

    def decode(self, payload: Tensor, rows: Tensor) -> Tensor:
        """Return the (n,) float32 values of a payload."""
        ...

    def num_added(self, num_rows: int) -> int:
        """Return how many elements a payload has beyond those of its values."""
        ...


class CastRounding:
    """Numbers in one of torch's types of 16 bits. A finite value beyond its range becomes the greatest in it."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def encode(self, values: Tensor, rows: Tensor) -> Tensor:
        limit = torch.finfo(self.dtype).max
        return torch.where(values.isinf(), values, values.clamp(-limit, limit)).to(self.dtype)

    def decode(self, payload: Tensor, rows: Tensor) -> Tensor:
        return payload.float()

    def num_added(self, num_rows: int) -> int:
        return 0


class RowRounding:
    """Whole numbers of 8 bits, behind them a float32 scale a row. A row with infinity or NaN is read as NaN."""

    dtype = torch.int8

    def encode(self, values: Tensor, rows: Tensor) -> Tensor:
        # Not above what times 127 is still finite: the rest is sent later.
        greatest = torch.segment_reduce(values.abs().clamp_(max=LARGEST), "max", lengths=rows, unsafe=True)
        if not bool(values.isfinite().all()):
            is_bad = torch.segment_reduce((~values.isfinite()).float(), "max", lengths=rows, unsafe=True) > 0
            greatest = torch.where(is_bad, torch.nan, greatest)
        scales = greatest.div_(MAX_INT8)
        scale_of_value = scales.repeat_interleave(rows, output_size=values.numel())
        # A row of zeros has the scale 0, and 0 / 0 is NaN.
        whole = (values / scale_of_value).nan_to_num_(nan=0.0).clamp_(-MAX_INT8, MAX_INT8).round_()
        return torch.cat([whole.to(torch.int8), scales.view(torch.int8)])

    def decode(self, payload: Tensor, rows: Tensor) -> Tensor:
        num_values = payload.numel() - self.num_added(rows.numel())
        # A copy: a payload need not begin at a multiple of four bytes.
        scales = payload[num_values:].clone().view(torch.float32)
        return scales.repeat_interleave(rows, output_size=num_values).mul_(payload[:num_values])

    def num_added(self, num_rows: int) -> int:
        return SCALE_BYTES * num_rows


ROUNDINGS: Mapping[Wire, Rounding] = {
    "bfloat16": CastRounding(torch.bfloat16),
    "float16": CastRounding(torch.float16),
    "int8": RowRounding(),
}
