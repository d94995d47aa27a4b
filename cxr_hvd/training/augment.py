"""From a study's stored images to the channels that the network sees.

Every image is moved on its own, the order of the images is drawn anew, and the rest of the 20 channels stays
zero, as in the published study. What is drawn (`draw_motion`) is kept apart from how it is applied
(`apply_motion`), so that either can be tested without the other.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_hvd.config import Augmentation

cv2.setNumThreads(0)  # the ranks of a node share its cores; OpenCV would take them all


@dataclass(frozen=True)
class Motion:
    """One image's change: a (2, 3) map from output to input pixels, and output = gain * input / 255 + offset."""

    inverse_map: NDArray[np.float64]
    gain: float
    offset: float


def draw_motion(strength: Augmentation, size: int, rng: np.random.Generator) -> Motion:
    """Draw how an image of `size` pixels a side is flipped, turned, scaled, shifted and exposed.

    Always draws the same number of values, so that one strength does not change what another draws.
    """
    flip, turn, zoom, right, down, bright, steep = rng.random(7)
    angle = np.deg2rad(strength.rotation_deg * (2 * turn - 1))
    scale = 1 + strength.scale * (2 * zoom - 1)
    mirror = -1.0 if flip < strength.flip else 1.0
    linear = np.array([[mirror * np.cos(angle), -np.sin(angle)], [mirror * np.sin(angle), np.cos(angle)]]) / scale
    centre = np.full(2, (size - 1) / 2)
    shift = size * strength.shift * (2 * np.array([right, down]) - 1)
    offset_XY = centre + shift - linear @ centre
    contrast = 1 + strength.contrast * (2 * steep - 1)
    brightness = strength.brightness * (2 * bright - 1)
    # Contrast pivots on mid-gray, so that it changes contrast and not brightness.
    return Motion(np.column_stack([linear, offset_XY]), contrast, brightness + 0.5 * (1 - contrast))


def apply_motion(image_HW: NDArray[np.uint8], motion: Motion, out_HW: NDArray[np.float32]) -> None:
    """Write the moved image, 0 to 1 where nothing is brightened, into `out_HW`; black where it left."""
    size = (out_HW.shape[1], out_HW.shape[0])
    moved = cv2.warpAffine(image_HW, motion.inverse_map, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    np.multiply(moved, np.float32(motion.gain / 255), out=out_HW, dtype=np.float32)
    np.add(out_HW, np.float32(motion.offset), out=out_HW)
    np.clip(out_HW, 0.0, 1.0, out=out_HW)


def scaled(image_HW: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Bring a stored image to `size` pixels a side; averages areas, so that fine structure does not alias."""
    if image_HW.shape == (size, size):
        return image_HW
    result: NDArray[np.uint8] = cv2.resize(image_HW, (size, size), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    return result


def fill_augmented(
    images_NHW: NDArray[np.uint8], strength: Augmentation, rng: np.random.Generator, out_MHW: NDArray[np.float32]
) -> None:
    """Fill the channels of one study: each image moved on its own, in a new order, then zeros."""
    num_images, size = len(images_NHW), out_MHW.shape[-1]
    for channel, position in enumerate(rng.permutation(num_images)):
        apply_motion(scaled(images_NHW[position], size), draw_motion(strength, size, rng), out_MHW[channel])
    out_MHW[num_images:] = 0.0


def fill_plain(images_NHW: NDArray[np.uint8], out_MHW: NDArray[np.float32]) -> None:
    """Fill the channels of one study for evaluation: images as stored, in their order, 0 to 1, then zeros."""
    for channel, image_HW in enumerate(images_NHW):
        np.multiply(scaled(image_HW, out_MHW.shape[-1]), np.float32(1 / 255), out=out_MHW[channel])
    out_MHW[len(images_NHW) :] = 0.0
