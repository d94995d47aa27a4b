"""Draw the healthy chest, seen from the front and from the left, on a small canvas.

A film is a density map (H, W) of float32: 0 is air around the body, about 1 is the thickest bone. Lengths and
positions are fractions of the canvas, x to the image's right (the patient's left), y down; blurs and widths of
lines are in pixels of the canvas. What is drawn depends on the given generator alone. Nothing here pretends to be
anatomy beyond what a model can be seen to learn from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from preprocess.phantom.hospital import Body

HEIGHT_PX, WIDTH_PX = 272, 224
Film = NDArray[np.float32]
_SUBPIXEL_BITS = 4
# Weights (8, 4) of four neighbouring points at 8 steps between the middle two.
_STEPS = np.linspace(0, 1, 8, endpoint=False)[:, None] ** np.arange(4)
_CATMULL_ROM = _STEPS @ (0.5 * np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]]))


def area(points: Sequence[tuple[float, float]], blur_px: float) -> Film:
    """Return a mask (H, W) of 0 to 1 of a smooth closed outline through the points (x, y)."""
    mask = blank_film()
    cv2.fillPoly(mask, [_pixels(_smooth(np.array(points), closed=True))], 1.0, cv2.LINE_8, _SUBPIXEL_BITS)
    return blurred(mask, blur_px)


def ellipse(x: float, y: float, half_width: float, half_height: float, blur_px: float, turn: float = 0.0) -> Film:
    """Return a mask (H, W) of 0 to 1 of an ellipse, turned clockwise by `turn` radians."""
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    along, across = half_width * np.cos(angle), half_height * np.sin(angle)
    xs, ys = x + along * np.cos(turn) - across * np.sin(turn), y + along * np.sin(turn) + across * np.cos(turn)
    return area(list(zip(xs, ys, strict=True)), blur_px)


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


@dataclass(frozen=True)
class Frontal:
    """A healthy frontal film in parts, for findings to change before `density` adds them up.

    Attributes:
        lungs: masks of 0 to 1 of the lung on the image's left and of the one on its right.
        vessels, ribs: what is drawn over the lungs.
        soft: everything else.
    """

    soft: Film
    lungs: tuple[Film, Film]
    vessels: Film
    ribs: Film

    def density(self) -> Film:
        """Add the parts up."""
        air = self.lungs[0] + self.lungs[1]
        return np.asarray(self.soft - 0.50 * air + 0.17 * self.vessels * air + 0.15 * self.ribs, np.float32)


def draw_healthy_frontal(
    rng: np.random.Generator, body: Body, heart: float = 1.0, mediastinum: float = 1.0
) -> Frontal:
    """Draw a healthy frontal film; `heart` and `mediastinum` widen those shadows."""
    girth, top, bottom, width = body.girth, body.lung_top, body.lung_bottom, body.lung_width
    left, right = 0.5 - 0.49 * girth, 0.5 + 0.49 * girth
    torso = area(
        [
            (0.40, -0.1), (0.39, 0.05), (0.25, 0.09), (left + 0.06, 0.16), (left, 0.32), (left + 0.02, 0.7),
            (left, 1.1), (right, 1.1), (right - 0.02, 0.7), (right, 0.32), (right - 0.06, 0.16), (0.75, 0.09),
            (0.61, 0.05), (0.60, -0.1),
        ],
        2.0,
    )  # fmt: skip
    # Thickness falls off towards the skin.
    soft = 0.50 * torso + 0.26 * blurred(torso, 14.0) * torso
    outer = 0.5 - width - 0.05
    lung = [
        (0.36, top), (0.27, top + 0.06), (outer + 0.07, top + 0.22), (outer + 0.02, 0.55), (outer, bottom),
        (outer + 0.03, bottom + 0.045), (0.22, bottom - 0.03), (0.32, bottom - 0.06), (0.43, bottom - 0.02),
        (0.455, 0.58), (0.44, 0.36), (0.43, top + 0.06),
    ]  # fmt: skip
    lower = [(x, y + (0.03 if y > 0.65 else 0.0)) for x, y in lung]
    lungs = area(lung, 1.6), area([(1.0 - x, y) for x, y in lower], 1.6)
    half = 0.060 * mediastinum
    upper = area(
        [
            (0.455, 0.02), (0.5 - half, 0.24), (0.44, 0.42), (0.45, 0.8),
            (0.55, 0.8), (0.57, 0.42), (0.5 + 1.25 * half, 0.25), (0.545, 0.02),
        ],
        2.2,
    )  # fmt: skip
    size = body.heart * heart
    right_border = [(0.47, 0.47), (0.5 - 0.07 * size, 0.58), (0.5 - 0.07 * size, 0.69), (0.5 - 0.02 * size, 0.76)]
    left_border = [(0.5 + 0.12 * size, 0.775), (0.5 + 0.195 * size, 0.74), (0.5 + 0.18 * size, 0.66)]
    shadow = area([*right_border, *left_border, (0.5 + 0.115 * size, 0.56), (0.55, 0.46)], 2.4)
    domes = [(0.0, 0.88), (0.22, bottom), (0.5, bottom - 0.02), (0.78, bottom + 0.03), (1.0, 0.88)]
    abdomen = area([*domes, (1.0, 1.2), (0.0, 1.2)], 6.0)
    air = np.asarray(1 - 0.97 * np.maximum(upper, shadow), np.float32)
    soft += 0.05 * upper + 0.06 * shadow + 0.08 * abdomen * torso + _spine(rng) * torso
    bubble = ellipse(0.70, bottom + 0.075, 0.055, 0.03, 3.0)
    soft += _shoulders(rng) * torso - 0.16 * bubble + 0.02 * clouds(rng, 9) * torso
    return Frontal(soft, (lungs[0] * air, lungs[1] * air), _vessels(rng), _ribs(rng, body) * (1 - 0.75 * abdomen))


def draw_healthy_lateral(rng: np.random.Generator, body: Body, heart: float = 1.0) -> tuple[Film, Film]:
    """Draw a healthy film from the left, the patient facing the image's left. Return (density, lung mask)."""
    torso = area(
        [
            (0.36, -0.1), (0.30, 0.1), (0.12, 0.25), (0.08, 0.5), (0.1, 0.8), (0.08, 1.1),
            (0.93, 1.1), (0.92, 0.7), (0.95, 0.4), (0.86, 0.15), (0.70, 0.06), (0.64, -0.1),
        ],
        2.0,
    )  # fmt: skip
    density = 0.46 * torso + 0.24 * blurred(torso, 14.0) * torso
    bottom = body.lung_bottom + 0.02
    lung = area(
        [
            (0.50, body.lung_top), (0.36, 0.2), (0.22, 0.34), (0.19, 0.55), (0.22, bottom - 0.06),
            (0.40, bottom - 0.08), (0.60, bottom - 0.05), (0.80, bottom + 0.08), (0.83, 0.55),
            (0.78, 0.3), (0.66, body.lung_top + 0.02),
        ],
        1.8,
    )  # fmt: skip
    size = body.heart * heart
    shadow = ellipse(0.36 + 0.03 * size, 0.62, 0.14 * size, 0.16 * (0.5 + 0.5 * size), 3.0, turn=-0.4) * lung
    aorta = ellipse(0.56, 0.32, 0.12, 0.14, 6.0) * lung
    density += -0.42 * lung * (1 - 0.85 * shadow) + 0.13 * aorta
    bones = blank_film()
    for step in range(13):
        y = 0.05 + 0.078 * step
        x = 0.83 - 0.10 * np.sin(np.pi * (y - 0.05) / 1.1)
        stroke(bones, [(x - 0.03, y - 0.022), (x + 0.05, y - 0.022)], 3, 0.9)
        stroke(bones, [(x + 0.01, y - 0.02), (x + 0.01, y + 0.02)], 13, 0.5)
        y = 0.14 + body.rib_step * 0.9 * step
        stroke(bones, [(0.84, y), (0.62, y + 0.11), (0.36, y + 0.16)], 4, 0.32)
    stroke(bones, [(0.27, 0.2), (0.17, 0.38), (0.15, 0.6)], 6, 0.7)
    bones = 0.26 * blurred(bones, 1.1) * torso * (0.3 + 0.7 * blurred(lung, 6.0))
    density += bones + 0.10 * _vessels(rng) * lung + 0.02 * clouds(rng, 9) * torso
    return density, lung


def rib_curves(body: Body) -> list[list[tuple[float, float]]]:
    """Return the posterior ribs of the image's left side, from the spine outwards, uppermost first."""
    outer = 0.5 - body.lung_width - 0.055
    curves = []
    for rib in range(9):
        y = body.lung_top - 0.01 + body.rib_step * rib
        reach = outer + 0.17 * max(0.0, 1 - rib / 3) ** 1.3
        x = (0.46 + reach) / 2
        curves.append([(0.465, y + 0.015), (x + 0.03, y - 0.012), (x - 0.09, y + 0.03), (reach, y + 0.10)])
    return curves


def stroke_rib(film: Film, points: Sequence[tuple[float, float]]) -> None:
    """Draw one rib: a band with brighter edges."""
    stroke(film, points, 7, 0.95)
    stroke(film, points, 4, 0.60)


def _ribs(rng: np.random.Generator, body: Body) -> Film:
    ribs, front = blank_film(), blank_film()
    for curve in rib_curves(body):
        stroke_rib(ribs, curve)
        stroke_rib(ribs, mirrored(curve))
        (_, y), outer = curve[0], curve[-1][0]
        # The same rib's front half comes back inwards, lower and fainter.
        returning = [(outer, y + 0.10), (outer + 0.06, y + 0.17), (outer + 0.17, y + 0.22)]
        if y < 0.5:
            stroke(front, returning, 6, 0.35)
            stroke(front, mirrored(returning), 6, 0.35)
    return blurred(np.maximum(ribs, front), 1.0) * np.float32(rng.uniform(0.85, 1.1))


def _shoulders(rng: np.random.Generator) -> Film:
    """Draw clavicles and the inner edges of the shoulder blades."""
    bones = blank_film()
    drop = rng.uniform(-0.015, 0.015)
    clavicle = [(0.455, 0.185), (0.36, 0.155), (0.24, 0.135 + drop), (0.10, 0.10 + drop)]
    blade = [(0.13, 0.16), (0.11, 0.28), (0.135, 0.42)]
    humerus = [(0.045, 0.16), (0.03, 0.35)]
    for points, width_px, value in ((clavicle, 8, 1.0), (clavicle, 4, 0.7), (blade, 4, 0.35), (humerus, 14, 0.8)):
        stroke(bones, points, width_px, value)
        stroke(bones, mirrored(points), width_px, value)
    return 0.20 * blurred(bones, 1.2)


def _spine(rng: np.random.Generator) -> Film:
    spine = blank_film()
    start = rng.uniform(-0.02, 0.02)
    for step in range(18):
        y = start + 0.058 * step
        stroke(spine, [(0.465, y), (0.535, y)], 11, 0.75)
        stroke(spine, [(0.5, y + 0.008), (0.5, y + 0.016)], 4, 1.0)
    fade = np.linspace(0.6, 1.2, HEIGHT_PX, dtype=np.float32)[:, None]
    return np.asarray(0.09 * fade * blurred(spine, 1.4), np.float32)


def _vessels(rng: np.random.Generator) -> Film:
    """Draw branches from both hila outwards, thinner and fainter on the way."""
    vessels = blank_film()
    for side in (-1.0, 1.0):
        hilum = (0.5 + side * 0.085, 0.42)
        angles = np.linspace(-1.3, 1.35, 13) + rng.normal(0, 0.08, 13)
        for angle, length in zip(angles, rng.uniform(0.16, 0.34, 13), strict=True):
            reach = np.array([side * np.cos(angle), np.sin(angle)]) * length
            bend = rng.normal(0, 0.02, 2)
            points = [np.array(hilum) + part * reach + bend * np.sin(3 * part) for part in (0.0, 0.33, 0.66, 1.0)]
            line = [(float(x), float(y)) for x, y in points]
            stroke(vessels, line, 1, 0.55)
            stroke(vessels, line[:3], 2, 0.75)
            stroke(vessels, line[:2], 4, 0.9)
    return blurred(vessels, 1.2)
