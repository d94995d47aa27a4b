"""A boundary of the host's memory for tests without a GPU: what lies beyond is a tensor like any other."""

from collections.abc import Callable

import torch
from torch import Tensor


class CopyingBoundary:
    """Copies as a GPU's boundary does, and notes in which order.

    Attributes:
        events: `allocate`, `to_host` or `to_device`, for each call.
    """

    def __init__(self, is_beyond: Callable[[Tensor], bool] = lambda tensor: True) -> None:
        self.events: list[str] = []
        self._is_beyond = is_beyond

    def is_beyond(self, tensor: Tensor) -> bool:
        return self._is_beyond(tensor)

    def allocate(self, tensor: Tensor) -> Tensor:
        self.events.append("allocate")
        return torch.empty_like(tensor)

    def to_host(self, tensor: Tensor, host: Tensor) -> None:
        self.events.append("to_host")
        host.copy_(tensor)

    def to_device(self, host: Tensor, tensor: Tensor) -> None:
        self.events.append("to_device")
        tensor.copy_(host)
