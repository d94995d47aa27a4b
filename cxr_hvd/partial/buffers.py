"""Model tensors side by side in one flat buffer, of which they are views (decisions 0005 and 0034).

A buffer is sent from where it lies, as one. `plan` says what stands in it, `means` how it becomes a mean over
ranks, and `exchanges` when.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from cxr_hvd.comm.communicator import Parts
from cxr_hvd.errors import TrainingError
from cxr_hvd.partial.plan import Buffer

Rows = tuple[tuple[int, int], ...]
"""Consecutive rows of values: runs of so many rows of one length."""


@dataclass(frozen=True)
class FlatBuffer:
    """Tensors of a model side by side in one piece of memory.

    Attributes:
        values: (n,) float32; a change to them changes the model.
        parts: what lies there, in order: the plan's names, and their numbers of elements.
        rows: which of the values have a scale of the int8 wire in common, in order.
    """

    values: Tensor
    parts: Parts
    rows: Rows


@torch.no_grad()
def flatten(model: nn.Module, buffers: Sequence[Buffer]) -> FlatBuffer:
    """Lay the tensors of these buffers side by side in one flat buffer, and make the model use them there."""
    tensors = _tensors(model)
    members = [tensors[spec.name] for buffer in buffers for spec in buffer.specs]
    values = torch.cat([tensor.reshape(-1) for tensor in members]) if members else torch.empty(0)
    for tensor, view in zip(members, split_like(values, members), strict=True):
        tensor.data = view
    return lay_out(values, buffers)


def lay_out(values: Tensor, buffers: Iterable[Buffer]) -> FlatBuffer:
    """Return values in which these buffers of a plan stand side by side as a flat buffer."""
    buffers = list(buffers)
    parts = {buffer.name: buffer.num_elements for buffer in buffers}
    return FlatBuffer(values, parts, run_lengths(length for buffer in buffers for length in buffer.rows))


def run_lengths(lengths: Iterable[int]) -> Rows:
    """Return rows of these lengths as runs of rows of one length; those without a number are left out."""
    return tuple((len(list(run)), length) for length, run in groupby(lengths) if length)


def cut(flat: FlatBuffer, buffers: Sequence[Sequence[Buffer]]) -> list[FlatBuffer]:
    """Return consecutive pieces of a flat buffer, each of the plan's buffers that stand in one of these lists."""
    sizes = [sum(buffer.num_elements for buffer in piece) for piece in buffers]
    pieces = torch.split(flat.values, sizes)
    return [lay_out(values, piece) for values, piece in zip(pieces, buffers, strict=True)]


def split_like(values: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return views of flat values with the shapes of these tensors, one after the other."""
    parts = torch.split(values, [tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


Address = tuple[str, Tensor, int]
"""A tensor's name, the tensor, and where it lies in memory."""


def note_addresses(model: nn.Module, buffers: Iterable[Buffer]) -> list[Address]:
    """Return where the tensors of these buffers lie, after `flatten`."""
    tensors = _tensors(model)
    names = [spec.name for buffer in buffers for spec in buffer.specs]
    return [(name, tensors[name], tensors[name].data_ptr()) for name in names]


def check_addresses(addresses: Iterable[Address]) -> None:
    """Check that no tensor was moved out of its flat buffer: what is averaged would not be the model.

    Raises:
        TrainingError: one was, as `model.to(...)` does.
    """
    for name, tensor, address in addresses:
        if tensor.data_ptr() != address:
            raise TrainingError(
                f"{name} was moved in memory after the averager was created: create it after model.to(device), "
                "and load weights with load_state_dict"
            )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
