"""Bounce buffers: pinned memory of the host through which tensors of a GPU travel where NCCL cannot move them.

Owns the buffers, one for each name, shape and type, reused at every exchange, and the copies to and from them.
Left to others: when they are needed (`transport`), and Horovod, which is handed the buffers (`horovod`).
"""

from typing import Protocol

import torch
from torch import Tensor


class Boundary(Protocol):
    """Where the host's memory ends: what lies beyond, and how it is copied. Tests put another one in its place."""

    def is_beyond(self, tensor: Tensor) -> bool:
        """Return whether a tensor is not in the host's memory."""
        ...

    def allocate(self, tensor: Tensor) -> Tensor:
        """Return a buffer on the host for a tensor."""
        ...

    def to_host(self, tensor: Tensor, host: Tensor) -> None:
        """Copy a tensor to a buffer, after what the device does to the tensor so far. Blocking."""
        ...

    def to_device(self, host: Tensor, tensor: Tensor) -> None:
        """Copy a buffer to a tensor, before what the device does to the tensor from now on."""
        ...


class GpuBoundary:
    """The boundary of a CUDA GPU: pinned buffers, copies on the stream that computes, an event behind each."""

    def __init__(self) -> None:
        self._is_read: dict[int, torch.cuda.Event] = {}

    def is_beyond(self, tensor: Tensor) -> bool:
        return tensor.is_cuda

    def allocate(self, tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)

    def to_host(self, tensor: Tensor, host: Tensor) -> None:
        # The last result may have left the buffer on another stream.
        if is_read := self._is_read.pop(host.data_ptr(), None):
            is_read.synchronize()
        host.copy_(tensor, non_blocking=True)
        torch.cuda.current_stream(tensor.device).record_event().synchronize()

    def to_device(self, host: Tensor, tensor: Tensor) -> None:
        if not host.is_pinned():  # Horovod's own, of a gather: it ends with the copy
            tensor.copy_(host)
            return
        tensor.copy_(host, non_blocking=True)
        self._is_read[host.data_ptr()] = torch.cuda.current_stream(tensor.device).record_event()


class BounceBuffers:
    """Copies what lies beyond a boundary to the host and back; what is on the host already stays as it is.

    Args:
        boundary: where the host's memory ends; None where nothing is to be copied.
    """

    def __init__(self, boundary: Boundary | None = None) -> None:
        self._boundary = boundary
        self._buffers: dict[tuple[str, torch.Size, torch.dtype], Tensor] = {}

    def to_host(self, tensor: Tensor, name: str) -> Tensor:
        """Return a tensor's copy on the host, or the tensor itself where it is there.

        The copy is good until the next one of this name, shape and type is asked for.

        Args:
            tensor: contiguous; it is read, never changed.
            name: of the exchange: no two that are under way at a time have the same. Blocking, until the device
                has done what it was told to do before.
        """
        if self._boundary is None or not self._boundary.is_beyond(tensor):
            return tensor
        key = (name, tensor.shape, tensor.dtype)
        if key not in self._buffers:
            self._buffers[key] = self._boundary.allocate(tensor)
        host = self._buffers[key]
        self._boundary.to_host(tensor, host)
        return host

    def put_back(self, host: Tensor, tensor: Tensor) -> None:
        """Copy what `to_host` gave for a tensor into the tensor; nothing where it gave the tensor itself."""
        if self._boundary and host is not tensor:
            self._boundary.to_device(host, tensor)

    def to_device_of(self, tensor: Tensor, result: Tensor) -> Tensor:
        """Return a result that is on the host where a tensor is."""
        if self._boundary is None or not self._boundary.is_beyond(tensor):
            return result
        there = torch.empty(result.shape, dtype=result.dtype, device=tensor.device)
        self._boundary.to_device(result, there)
        return there
