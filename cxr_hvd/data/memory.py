"""Where batches lie: memory that is used again and again, on the CPU and on the way to a GPU."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Pages:
    """Float32 memory for the images of one batch, used again: fresh memory costs more than filling it."""

    def __init__(self, num_pages: int, size: int) -> None:
        # Zeros that were never written take neither time nor memory; what is known to be zero is not zeroed again.
        self._pages_PHW = np.zeros((num_pages, size, size), dtype=np.float32)
        self._is_zero_P = np.ones(num_pages, dtype=bool)

    def batch(self, num_studies: int, num_channels: int) -> NDArray[np.float32]:
        """Return the first pages as (B, M, H, W), with whatever is in them."""
        pages_PHW = self._pages_PHW[: num_studies * num_channels]
        return pages_PHW.reshape(num_studies, num_channels, *pages_PHW.shape[1:])

    def claim(self, row: int, num_channels: int, num_images: int) -> NDArray[np.float32]:
        """Return the pages (n, H, W) of a row's images in a batch of M channels; its other pages become zero."""
        first, empty, stop = row * num_channels, row * num_channels + num_images, (row + 1) * num_channels
        for page in range(empty, stop):
            if not self._is_zero_P[page]:
                self._pages_PHW[page] = 0.0
        self._is_zero_P[first:empty] = False
        self._is_zero_P[empty:stop] = True
        return self._pages_PHW[first:empty]


class PinnedBuffer:
    """Memory for the images of one batch that a GPU reads by itself, while threads fill the next buffer.

    Claimed, filled and sent, then claimed again: `claim` waits until the GPU has read what was sent.
    """

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self._device = device
        self._bytes = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._read: torch.cuda.Event | None = None

    def claim(self, num_images: int, size: int) -> Tensor:
        """Return room for images (K, H, W) uint8, with whatever was in it. Blocking, while its last copy runs."""
        if self._read is not None:
            self._read.synchronize()
        return self._bytes[: num_images * size**2].view(num_images, size, size)

    def send(self, images_KHW: Tensor) -> Tensor:
        """Copy what was claimed, and filled, to the device; does not wait for a GPU."""
        sent_KHW = images_KHW.to(self._device, non_blocking=True, copy=True)
        if self._device.type == "cuda":
            self._read = torch.cuda.current_stream(self._device).record_event()
        return sent_KHW


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a small tensor to a GPU without waiting; torch keeps its pinned copy until the GPU has read it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
