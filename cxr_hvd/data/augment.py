"""Augment a study's images on the CPU: from images as stored to the channels that the network sees.

Every image is moved on its own, the order of the images is drawn anew, and the rest of the 20 channels stays
zero, as in the published study. What is drawn (`draw_changes`) is kept apart from how it is applied
(`apply_change`), so that either can be tested without the other; `augment_gpu` applies it on a GPU.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_hvd.config.sections import Augmentation

cv2.setNumThreads(0)  # the ranks of a node share its cores; OpenCV would take them all

GRAYS = np.arange(256, dtype=np.float32)
NOISE_TABLE = 16  # images long
NOISE_SEED = 0


@dataclass(frozen=True)
class Motion:
    """One image's change: a (2, 3) map from output to input pixels, and output = gain * input / 255 + offset."""

    inverse_map: NDArray[np.float64]
    gain: float
    offset: float


@dataclass(frozen=True)
class Blemish:
    """What spoils a moved image.

    Attributes:
        noise: standard deviation of what is added to each gray, which runs from 0 to 1.
        noise_start: where in the `noise_table` of the image's size its noise begins.
        square: top, bottom, left, right in pixels of the part that is blackened, the second and fourth exclusive.
    """

    noise: float
    noise_start: int
    square: tuple[int, int, int, int]


CLEAN = Blemish(0.0, 0, (0, 0, 0, 0))


@dataclass(frozen=True)
class Change:
    """All that happens to one image: `position` is its place in the study as stored."""

    position: int
    motion: Motion
    blemish: Blemish


def draw_changes(num_images: int, strength: Augmentation, size: int, rng: np.random.Generator) -> list[Change]:
    """Draw, channel by channel, which image of a study comes there and how it changes.

    Blemishes are drawn last and only where there may be any: they change nothing of order and motions.
    """
    order: list[int] = rng.permutation(num_images).tolist()
    motions = [draw_motion(strength, size, rng) for _ in order]
    has_blemishes = strength.noise > 0 or strength.cutout > 0
    blemishes = [draw_blemish(strength, size, rng) if has_blemishes else CLEAN for _ in order]
    return [Change(*drawn) for drawn in zip(order, motions, blemishes, strict=True)]


def draw_motion(strength: Augmentation, size: int, rng: np.random.Generator) -> Motion:
    """Draw how an image of `size` pixels a side is flipped, turned, scaled, shifted and exposed.

    Always draws the same number of values, so that one strength does not change what another draws.
    """
    flip, turn, zoom, right, down, bright, steep = rng.random(7).tolist()
    angle = math.radians(strength.rotation_deg * (2 * turn - 1))
    scale = 1 + strength.scale * (2 * zoom - 1)
    mirror = -1.0 if flip < strength.flip else 1.0
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    centre, reach = (size - 1) / 2, size * strength.shift
    # Turned about the centre. Plain numbers, as six of them take numpy longer than the rest of the drawing.
    start_x = centre + reach * (2 * right - 1) - (mirror * cos - sin) * centre
    start_y = centre + reach * (2 * down - 1) - (mirror * sin + cos) * centre
    inverse_map = np.array([[mirror * cos, -sin, start_x], [mirror * sin, cos, start_y]])
    contrast = 1 + strength.contrast * (2 * steep - 1)
    brightness = strength.brightness * (2 * bright - 1)
    # Contrast pivots on mid-gray, so that it changes contrast and not brightness.
    return Motion(inverse_map, contrast, brightness + 0.5 * (1 - contrast))


def draw_blemish(strength: Augmentation, size: int, rng: np.random.Generator) -> Blemish:
    """Draw an image's noise, and a square around any of its pixels, cut off at the border.

    The square is that of DeVries & Taylor (2017). Always draws the same number of values, as `draw_motion` does.
    """
    noise, start, side, down, right = rng.random(5).tolist()
    side_px = round(strength.cutout * side * size)
    top, left = int(down * size) - side_px // 2, int(right * size) - side_px // 2
    square = (max(top, 0), min(top + side_px, size), max(left, 0), min(left + side_px, size))
    return Blemish(strength.noise * noise, int(start * (NOISE_TABLE - 1) * size**2), square)


@lru_cache(maxsize=1)
def noise_table(size: int) -> NDArray[np.float32]:
    """Standard normal values, always the same, of which an image of `size` pixels a side gets a stretch as noise.

    Any two stretches are independent, pixel by pixel, unless they begin at the same place. Values drawn afresh
    would cost an image more than all else together, and would not be the same on a GPU.
    """
    table_N = np.random.default_rng(NOISE_SEED).standard_normal(NOISE_TABLE * size**2, dtype=np.float32)
    table_N.setflags(write=False)
    return table_N


def apply_change(image_HW: NDArray[np.uint8], change: Change, out_HW: NDArray[np.float32]) -> None:
    """Write the moved and spoiled image, 0 to 1, into `out_HW`."""
    apply_motion(image_HW, change.motion, out_HW)
    if change.blemish is not CLEAN:
        apply_blemish(out_HW, change.blemish)


def apply_motion(image_HW: NDArray[np.uint8], motion: Motion, out_HW: NDArray[np.float32]) -> None:
    """Write the moved image, 0 to 1 where nothing is brightened, into `out_HW`; black where it left."""
    size = (out_HW.shape[1], out_HW.shape[0])
    moved = cv2.warpAffine(image_HW, motion.inverse_map, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    # Gray by gray, as there are only 256: one pass over the image instead of three.
    grays = GRAYS * np.float32(motion.gain / 255) + np.float32(motion.offset)
    cv2.LUT(moved, np.clip(grays, 0.0, 1.0), dst=out_HW)


def apply_blemish(image_HW: NDArray[np.float32], blemish: Blemish) -> None:
    """Add noise to an image and blacken its square, in place; it stays within 0 to 1."""
    if blemish.noise:
        stretch = noise_table(len(image_HW))[blemish.noise_start : blemish.noise_start + image_HW.size]
        cv2.scaleAdd(stretch.reshape(image_HW.shape), blemish.noise, image_HW, dst=image_HW)
        np.clip(image_HW, 0.0, 1.0, out=image_HW)
    top, bottom, left, right = blemish.square
    image_HW[top:bottom, left:right] = 0.0


def scaled(image_HW: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Bring a stored image to `size` pixels a side; averages areas, so that fine structure does not alias."""
    if image_HW.shape == (size, size):
        return image_HW
    result: NDArray[np.uint8] = cv2.resize(image_HW, (size, size), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    return result


def fill_augmented(images_NHW: NDArray[np.uint8], changes: Sequence[Change], out_MHW: NDArray[np.float32]) -> None:
    """Fill the channels of one study: each image changed on its own, in the order of the changes, then zeros."""
    for channel, change in enumerate(changes):
        apply_change(scaled(images_NHW[change.position], out_MHW.shape[-1]), change, out_MHW[channel])
    out_MHW[len(changes) :] = 0.0


def fill_plain(images_NHW: NDArray[np.uint8], out_MHW: NDArray[np.float32]) -> None:
    """Fill the channels of one study for evaluation: images as stored, in their order, 0 to 1, then zeros."""
    for channel, image_HW in enumerate(images_NHW):
        np.multiply(scaled(image_HW, out_MHW.shape[-1]), np.float32(1 / 255), out=out_MHW[channel])
    out_MHW[len(images_NHW) :] = 0.0
