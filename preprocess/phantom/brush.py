"""Synthetic chest films, the tools: soft areas, lines and clouds on a small canvas.

A film is a density map (H, W) of float32: 0 is air around the body, about 1 is the thickest bone. Lengths and
positions are fractions of the canvas, x to the image's right (the patient's left), y down; blurs and widths of
lines are in pixels of the canvas.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

HEIGHT_PX, WIDTH_PX = 272, 224
Film = NDArray[np.float32]
_SUBPIXEL_BITS = 4
# Weights (8, 4) of four neighbouring points at 8 steps between the middle two.
_STEPS = np.linspace(0, 1, 8, endpoint=False)[:, None] ** np.arange(4)
_CATMULL_ROM = _STEPS @ (0.5 * np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]]))


def area(points: Sequence[tuple[float, float]], blur_px: float) -> Film:
    """Return a mask (H, W) of 0 to 1 of a smooth closed outline through the points (x, y)."""
    mask = np.zeros((HEIGHT_PX, WIDTH_PX), dtype=np.float32)
    cv2.fillPoly(mask, [_pixels(_smooth(np.array(points), closed=True))], 1.0, cv2.LINE_8, _SUBPIXEL_BITS)
    return blurred(mask, blur_px)


def ellipse(x: float, y: float, half_width: float, half_height: float, blur_px: float, turn: float = 0.0) -> Film:
    """Return a mask (H, W) of 0 to 1 of an ellipse, turned clockwise by `turn` radians."""
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    along, across = half_width * np.cos(angle), half_height * np.sin(angle)
    points = np.stack(
        [x + along * np.cos(turn) - across * np.sin(turn), y + along * np.sin(turn) + across * np.cos(turn)], 1
    )
    return area([(float(a), float(b)) for a, b in points], blur_px)


def stroke(film: Film, points: Sequence[tuple[float, float]], width_px: int, value: float) -> None:
    """Draw a smooth open line through the points (x, y) into the film, over what is there."""
    curve = _pixels(_smooth(np.array(points), closed=False))
    cv2.polylines(film, [curve], False, value, width_px, cv2.LINE_8, _SUBPIXEL_BITS)


def blank_film() -> Film:
    """Return a film of zeros."""
    return np.zeros((HEIGHT_PX, WIDTH_PX), dtype=np.float32)


def blurred(film: Film, blur_px: float) -> Film:
    """Return the film after a Gaussian of standard deviation `blur_px`; 0 leaves it as it is."""
    if blur_px > 4:
        # A wide Gaussian says the same at a quarter of the scale, many times faster.
        small = cv2.resize(film, (WIDTH_PX // 4, HEIGHT_PX // 4), interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), blur_px / 4)
        return np.asarray(cv2.resize(small, (WIDTH_PX, HEIGHT_PX), interpolation=cv2.INTER_CUBIC), np.float32)
    return np.asarray(cv2.GaussianBlur(film, (0, 0), blur_px), np.float32) if blur_px else film


def clouds(rng: np.random.Generator, cell: int) -> Film:
    """Return smooth noise (H, W) of about -1 to 1 whose grains are `cell` to the canvas's width."""
    grains = rng.uniform(-1, 1, (cell + 2, cell)).astype(np.float32)
    return np.asarray(cv2.resize(grains, (WIDTH_PX, HEIGHT_PX), interpolation=cv2.INTER_CUBIC), np.float32)


def mirrored(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points on the other side of the body."""
    return [(1.0 - x, y) for x, y in points]


def _smooth(points: NDArray[np.float64], closed: bool) -> NDArray[np.float64]:
    """Return a Catmull-Rom curve (n, 2) through the points (Catmull and Rom, 1974)."""
    if len(points) == 2 and not closed:
        return points
    if closed:
        padded = np.concatenate([points[-1:], points, points[:2]])
    else:
        padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    knots = np.stack([padded[:-3], padded[1:-2], padded[2:-1], padded[3:]])
    flat = np.einsum("tk,knd->ntd", _CATMULL_ROM, knots).reshape(-1, 2)
    return flat if closed else np.concatenate([flat, points[-1:]])


def _pixels(points: NDArray[np.float64]) -> NDArray[np.int32]:
    scale = np.array([WIDTH_PX, HEIGHT_PX]) * (1 << _SUBPIXEL_BITS)
    return np.asarray(np.round(points * scale), np.int32)
