"""Augment images with torch, on the device where they are: on a GPU, all images of a batch at once.

The drawn changes are the same as on the CPU. What comes out differs by less than a gray of 255, as OpenCV rounds a
moved image to whole grays and this does not. K counts the images of a batch, which lie one after another, without
the channels that are empty: these neither travel nor are computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cxr_hvd.data.augment import Change, noise_table


@dataclass(frozen=True)
class StackedChanges:
    """The changes of K images.

    Attributes:
        inverse_maps: (K, 2, 3) float32, from output to input pixels, whose centres have whole coordinates.
        gains, offsets: (K,) float32; output = gain * input / 255 + offset.
        noises: (K,) float32, the noise's standard deviation; None where no image has any.
        noise_starts: for each image where in `noise_table` its noise begins.
        squares: (K, 4) int64, top, bottom, left, right of what is blackened; None where nothing is.
    """

    inverse_maps: Tensor
    gains: Tensor
    offsets: Tensor
    noises: Tensor | None
    noise_starts: Sequence[int]
    squares: Tensor | None


def stack_changes(changes: Sequence[Change], device: torch.device) -> StackedChanges:
    """Bring the changes of K images to a device."""
    motions, blemishes = [change.motion for change in changes], [change.blemish for change in changes]
    numbers_8K = np.empty((8, len(changes)), dtype=np.float32)
    numbers_8K[:6] = np.stack([motion.inverse_map.ravel() for motion in motions], axis=1)
    numbers_8K[6] = [motion.gain for motion in motions]
    numbers_8K[7] = [motion.offset for motion in motions]
    noises_K = np.array([blemish.noise for blemish in blemishes], dtype=np.float32)
    squares_K4 = np.array([blemish.square for blemish in blemishes], dtype=np.int64)
    numbers = to_device(torch.from_numpy(numbers_8K), device)
    return StackedChanges(
        inverse_maps=numbers[:6].T.reshape(-1, 2, 3),
        gains=numbers[6],
        offsets=numbers[7],
        noises=to_device(torch.from_numpy(noises_K), device) if noises_K.any() else None,
        noise_starts=[blemish.noise_start for blemish in blemishes],
        squares=to_device(torch.from_numpy(squares_K4), device) if squares_K4.any() else None,
    )


def move_images(images_KHW: Tensor, changes: StackedChanges) -> Tensor:
    """Return the images (K, H, W) uint8 moved and spoiled, float32 of 0 to 1, each as if it were alone."""
    size = images_KHW.shape[-1]
    axis = torch.arange(size, device=images_KHW.device, dtype=torch.float32)
    across, down, start = changes.inverse_maps[:, None, None].unbind(-1)
    # Not as a product of matrices: these may be computed in TensorFloat-32, which is off by whole pixels.
    points_KHW2 = across * axis[:, None] + down * axis[:, None, None] + start
    # Torch counts from -1 to 1, border to border; its pixel centres lie half a pixel inside.
    moved_KHW = functional.grid_sample(
        images_KHW[:, None].float(),
        (2 * points_KHW2 + 1) / size - 1,
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )[:, 0]
    moved_KHW.mul_(changes.gains[:, None, None] / 255).add_(changes.offsets[:, None, None]).clamp_(0, 1)
    if changes.noises is not None:
        table_N = _noise_table_on(images_KHW.device, size)
        noise_KHW = torch.stack([table_N[start : start + size**2] for start in changes.noise_starts])
        moved_KHW.addcmul_(noise_KHW.view_as(moved_KHW), changes.noises[:, None, None]).clamp_(0, 1)
    if changes.squares is not None:
        top, bottom, left, right = changes.squares[:, :, None].unbind(1)
        is_row_KH, is_column_KW = (top <= axis) & (axis < bottom), (left <= axis) & (axis < right)
        moved_KHW.masked_fill_(is_row_KH[:, :, None] & is_column_KW[:, None], 0)
    return moved_KHW


def place_images(images_KHW: Tensor, places_K: Tensor, shape: tuple[int, int]) -> Tensor:
    """Lay K images out as (B, M, H, W): image k in channel `places_K[k]` of all B * M, zeros in the others."""
    out = images_KHW.new_zeros(shape[0] * shape[1], *images_KHW.shape[1:])
    return out.index_copy_(0, places_K, images_KHW).view(*shape, *images_KHW.shape[1:])


@lru_cache(maxsize=1)
def _noise_table_on(device: torch.device, size: int) -> Tensor:
    # Not from pinned memory: such a copy has ended when it returns, for whichever stream asks for the table next.
    return torch.tensor(noise_table(size)).to(device)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a small tensor to a GPU without waiting; torch keeps its pinned copy until the GPU has read it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
