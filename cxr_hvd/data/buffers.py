"""The memory in which batches are made: threads fill it study by study, and it becomes a batch on the device.

A `CpuBuffer` is filled with augmented images, where the batch stays. A `GpuBuffer` is filled with images as stored
and with the changes that are drawn for them; the GPU augments them. Both are used again for later batches.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxr_hvd.data.augment import Change, fill_augmented, fill_plain, scaled
from cxr_hvd.data.augment_gpu import move_images, place_images, stack_changes, to_device


class BatchBuffer(Protocol):
    """Room for one batch at a time: claimed, filled row by row, made a batch, then claimed again."""

    def claim(self, num_images: Sequence[int]) -> None:
        """Make room for studies of so many images each. Blocking, while a GPU reads the batch before."""
        ...

    def fill(self, row: int, images_NHW: NDArray[np.uint8], changes: Sequence[Change] | None) -> None:
        """Put a study's images in; several threads may, each its own rows. No changes: images as stored."""
        ...

    def to_batch(self) -> Tensor:
        """Return the batch (B, M, H, W) float32 on the device, 0 to 1; does not wait for a GPU."""
        ...


class CpuBuffer:
    """Float32 pages for the images of one batch, used again: fresh memory costs more than filling it.

    Args:
        max_images: studies times channels of the largest batch.
        size: pixels a side.
    """

    def __init__(self, max_images: int, size: int) -> None:
        # Zeros that were never written take neither time nor memory; what is known to be zero is not zeroed again.
        self._pages_PHW = np.zeros((max_images, size, size), dtype=np.float32)
        self._is_zero_P = np.ones(max_images, dtype=bool)
        self._shape = (0, 0)

    def claim(self, num_images: Sequence[int]) -> None:
        """Make room for studies of so many images each."""
        self._shape = (len(num_images), max(num_images))

    def fill(self, row: int, images_NHW: NDArray[np.uint8], changes: Sequence[Change] | None) -> None:
        """Augment a study's images into its row; the row's other channels become zero."""
        num_channels = self._shape[1]
        first, empty, stop = row * num_channels, row * num_channels + len(images_NHW), (row + 1) * num_channels
        for page in range(empty, stop):
            if not self._is_zero_P[page]:
                self._pages_PHW[page] = 0.0
        self._is_zero_P[first:empty] = False
        self._is_zero_P[empty:stop] = True
        if changes is None:
            fill_plain(images_NHW, self._pages_PHW[first:empty])
        else:
            fill_augmented(images_NHW, changes, self._pages_PHW[first:empty])

    def to_batch(self) -> Tensor:
        """Return the pages that were filled as (B, M, H, W), where they are."""
        num_studies, num_channels = self._shape
        pages_PHW = self._pages_PHW[: num_studies * num_channels]
        return torch.from_numpy(pages_PHW.reshape(*self._shape, *pages_PHW.shape[1:]))


class GpuBuffer:
    """Pinned memory for the images of one batch, which a GPU reads by itself while threads fill the next buffer.

    K counts the images of a batch, which lie one after another: empty channels neither travel nor are computed.

    Args:
        max_images: images of the largest batch.
        size: pixels a side.
        device: where batches are to be.
    """

    def __init__(self, max_images: int, size: int, device: torch.device) -> None:
        self._device = device
        self._size = size
        self._images = torch.empty((max_images, size, size), dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._num_images: list[int] = []
        self._first_image: list[int] = []
        self._changes: list[Sequence[Change]] = []
        self._is_read: torch.cuda.Event | None = None

    def claim(self, num_images: Sequence[int]) -> None:
        """Make room for studies of so many images each. Blocking, while the last copy out of it runs."""
        if self._is_read is not None:
            self._is_read.synchronize()
        self._num_images = list(num_images)
        self._first_image = np.cumsum([0, *num_images]).tolist()
        self._changes = [() for _ in num_images]

    def fill(self, row: int, images_NHW: NDArray[np.uint8], changes: Sequence[Change] | None) -> None:
        """Put a study's images in, scaled, in the order of the channels that they come to."""
        order: Sequence[int] = range(len(images_NHW))
        if changes is not None:
            self._changes[row] = changes
            order = [change.position for change in changes]
        rows_NHW = self._images.numpy()[self._first_image[row] : self._first_image[row + 1]]
        for out_HW, position in zip(rows_NHW, order, strict=True):
            out_HW[:] = scaled(images_NHW[position], self._size)

    def to_batch(self) -> Tensor:
        """Copy what was filled to the device, augment it there and lay it out as (B, M, H, W)."""
        images_KHW = self._images[: self._first_image[-1]].to(self._device, non_blocking=True, copy=True)
        if self._device.type == "cuda":
            self._is_read = torch.cuda.current_stream(self._device).record_event()
        changes = [change for of_study in self._changes for change in of_study]
        moved_KHW = move_images(images_KHW, stack_changes(changes, self._device)) if changes else images_KHW / 255
        shape = (len(self._num_images), max(self._num_images))
        places = [
            row * shape[1] + channel for row, count in enumerate(self._num_images) for channel in range(count)
        ]
        return place_images(moved_KHW, to_device(torch.tensor(places), self._device), shape)
