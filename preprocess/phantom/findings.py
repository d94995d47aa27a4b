"""Draw the findings: each is a pattern that can be seen and learned.

A finding looks the same at every site; what differs between sites stands in hospital.py. Effects are large, so
that a small model learns something within a hundred steps.
"""

import numpy as np

from cxr_hvd.study.labels import LABELS
from preprocess.phantom.anatomy import (
    HEIGHT_PX,
    WIDTH_PX,
    Film,
    area,
    blank_film,
    blurred,
    clouds,
    draw_healthy_frontal,
    draw_healthy_lateral,
    ellipse,
    mirrored,
    rib_curves,
    stroke,
    stroke_rib,
)
from preprocess.phantom.hospital import OPACITIES, Body

_X = np.linspace(0, 1, WIDTH_PX, dtype=np.float32)[None, :]
_Y = np.linspace(0, 1, HEIGHT_PX, dtype=np.float32)[:, None]


def draw_frontal(
    rng: np.random.Generator, places: np.random.Generator, body: Body, findings: frozenset[str]
) -> Film:
    """Draw a frontal film (H, W) of a body with the named findings.

    `places` decides sides, places and extent of the findings, and should start alike for all films of a study;
    `rng` decides the rest.
    """
    unknown = findings - set(LABELS)
    if unknown:
        raise ValueError(f"no such finding: {sorted(unknown)}")
    parts = draw_healthy_frontal(
        rng,
        body,
        heart=places.uniform(1.5, 1.75) if "Cardiomegaly" in findings else 1.0,
        mediastinum=places.uniform(2.1, 2.6) if "Enlarged Cardiomediastinum" in findings else 1.0,
    )
    sides = places.permutation(2)
    lung, side = parts.lungs[sides[0]], int(sides[0])
    collapsed, opacity, over = blank_film(), blank_film(), blank_film()
    if "Pneumothorax" in findings:
        collapsed = _pneumothorax(places, body, side, over) * lung
    if "Fracture" in findings:
        _break_ribs(places, parts.ribs, body, int(sides[1]), over)
    if "Edema" in findings:
        opacity += _edema(places) * (parts.lungs[0] + parts.lungs[1])
    if "Consolidation" in findings:
        opacity += _consolidation(places, side) * lung
    if "Pneumonia" in findings:
        opacity += _pneumonia(places, int(sides[1])) * parts.lungs[sides[1]]
    if "Atelectasis" in findings:
        opacity += _atelectasis(places, body) * (parts.lungs[0] + parts.lungs[1])
    if "Lung Lesion" in findings:
        radius = places.uniform(0.05, 0.07)
        opacity += 0.42 * ellipse(*_place(places, side, 0.30, 0.55), radius, 0.8 * radius, 1.2)
    if "Lung Opacity" in findings and not findings & OPACITIES:
        opacity += 0.26 * ellipse(*_place(places, side, 0.30, 0.55), 0.14, 0.15, 9.0) * lung
    if "Pleural Other" in findings:
        opacity += _thick_pleura(body) * (parts.lungs[0] + parts.lungs[1])
    if "Pleural Effusion" in findings:
        opacity += _effusion(places, body, int(sides[1])) * parts.lungs[sides[1]]
    if "Support Devices" in findings:
        _devices(places, over)
    density = parts.density() - collapsed * (0.10 + 0.17 * parts.vessels) + np.minimum(opacity, 0.46)
    return np.maximum(density, blurred(over, 0.6))


def draw_lateral(
    rng: np.random.Generator, places: np.random.Generator, body: Body, findings: frozenset[str]
) -> Film:
    """Draw a film from the side (H, W) of a body with those of the findings that show there."""
    density, lung = draw_healthy_lateral(rng, body, heart=1.6 if "Cardiomegaly" in findings else 1.0)
    over, opacity = blank_film(), blank_film()
    if "Pleural Effusion" in findings:
        level = body.lung_bottom - 0.10 - 0.10 * _X
        opacity += 0.9 * np.clip((_Y - level) * 25, 0, 1)
    if "Edema" in findings:
        opacity += 0.6 * ellipse(0.52, 0.45, 0.22, 0.2, 14.0)
    if findings & {"Consolidation", "Pneumonia", "Lung Opacity"}:
        opacity += 0.7 * ellipse(0.62, places.uniform(0.5, 0.6), 0.12, 0.10, 5.0)
    if "Lung Lesion" in findings:
        opacity += 0.9 * ellipse(places.uniform(0.4, 0.65), places.uniform(0.35, 0.5), 0.055, 0.045, 1.2)
    if "Support Devices" in findings:
        stroke(over, [(0.52, 0.0), (0.53, 0.2), (0.50, 0.36)], 2, 1.05)
        stroke(over, [(0.30, 0.1), (0.42, 0.3), (0.38, 0.65)], 2, 1.05)
    # An opaque lung is as dense as soft tissue, not denser.
    density += np.minimum(opacity, 0.9) * lung * np.maximum(0.62 - density, 0)
    return np.maximum(density, blurred(over, 0.6))


def _place(rng: np.random.Generator, side: int, low: float, high: float) -> tuple[float, float]:
    """Return a point (x, y) in the middle of a lung, of the image's left (0) or right (1)."""
    x = rng.uniform(0.24, 0.32)
    return (x if side == 0 else 1 - x), rng.uniform(low, high)


def _pneumothorax(rng: np.random.Generator, body: Body, side: int, over: Film) -> Film:
    """Return the mask of the air outside a collapsed lung, darker and without vessels; draw the lung's edge."""
    inward = rng.uniform(0.10, 0.14)
    outer = 0.5 - body.lung_width - 0.05
    edge = [
        (0.40, body.lung_top + 0.10), (0.31, body.lung_top + 0.14), (outer + inward + 0.03, 0.40),
        (outer + inward, 0.55), (outer + inward + 0.02, body.lung_bottom - 0.05),
    ]  # fmt: skip
    rim = [*edge, (outer - 0.05, body.lung_bottom), (outer - 0.05, 0.3), (0.25, 0.02), (0.42, 0.02)]
    line = edge if side == 0 else mirrored(edge)
    stroke(over, line, 1, 0.75)
    return 1.2 * area(rim if side == 0 else mirrored(rim), 0.8)


def _break_ribs(rng: np.random.Generator, ribs: Film, body: Body, side: int, over: Film) -> None:
    """Give three neighbouring ribs a gap and a step in their outer third, and callus around it."""
    curves = rib_curves(body)
    first = int(rng.integers(3, 6))
    for curve in curves[first : first + 3]:
        if side == 1:
            curve = mirrored(curve)
        (x, y), (end_x, end_y) = curve[2], curve[3]
        x, y = 0.6 * x + 0.4 * end_x, 0.6 * y + 0.4 * end_y
        ribs *= 1 - ellipse(x, y, 0.035, 0.03, 1.0)
        stroke_rib(ribs, [(end_x, end_y + 0.035), ((x + end_x) / 2, (y + end_y) / 2 + 0.035)])
        stroke(over, [(x - 0.02, y - 0.012), (x + 0.02, y + 0.018)], 4, 0.80)


def _edema(rng: np.random.Generator) -> Film:
    """Draw haze around both hila, like a butterfly, and short lines at the bases."""
    haze = ellipse(0.33, 0.44, 0.15, 0.20, 11.0) + ellipse(0.67, 0.44, 0.15, 0.20, 11.0)
    lines = blank_film()
    for _ in range(14):
        x, y = rng.uniform(0.12, 0.20), rng.uniform(0.5, 0.74)
        stroke(lines, [(x, y), (x + 0.04, y)], 2, 0.6)
        stroke(lines, [(1 - x, y), (1 - x - 0.04, y)], 2, 0.6)
    return np.asarray((0.34 + 0.08 * clouds(rng, 22)) * haze + 0.35 * blurred(lines, 0.7), np.float32)


def _consolidation(rng: np.random.Generator, side: int) -> Film:
    """Draw a dense wedge of the upper or middle lung with a straight lower border and dark airways in it."""
    y = rng.uniform(0.40, 0.50)
    wedge = [(0.44, y), (0.40, y - 0.20), (0.26, y - 0.24), (0.14, y - 0.10), (0.12, y), (0.28, y + 0.005)]
    airways = blank_film()
    for part in (0.02, 0.08, 0.14):
        stroke(airways, [(0.43, y - 0.09), (0.33, y - part), (0.22, y - part - 0.02)], 2, 1.0)
    dense = 0.44 * area(wedge, 1.2) * (1 - 0.55 * blurred(airways, 0.7))
    return dense if side == 0 else np.ascontiguousarray(dense[:, ::-1])


def _pneumonia(rng: np.random.Generator, side: int) -> Film:
    """Draw many soft blots that run together in the lower half of one lung."""
    blots = blank_film()
    for _ in range(11):
        x, y = rng.uniform(0.15, 0.38), rng.uniform(0.48, 0.74)
        width, height = rng.uniform(0.02, 0.05), rng.uniform(0.02, 0.05)
        blots = np.maximum(blots, ellipse(x if side == 0 else 1 - x, y, width, height, 3.0))
    return 0.36 * blots


def _atelectasis(rng: np.random.Generator, body: Body) -> Film:
    """Draw three straight, slanting, bright plates above each dome of the diaphragm."""
    plates = blank_film()
    for step in range(3):
        y = body.lung_bottom - 0.09 - 0.055 * step
        tilt = rng.uniform(-0.02, 0.03)
        stroke(plates, [(0.14, y + tilt), (0.40, y)], 4, 1.0)
        stroke(plates, [(0.86, y + tilt), (0.66, y)], 4, 1.0)
    return 0.40 * blurred(plates, 0.8)


def _thick_pleura(body: Body) -> Film:
    """Draw bright rims along the side walls and caps over the tops of both lungs."""
    outer = 0.5 - body.lung_width - 0.045
    rims = blank_film()
    rim = [
        (0.38, body.lung_top + 0.015),
        (0.28, body.lung_top + 0.06),
        (outer + 0.09, 0.34),
        (outer + 0.035, 0.62),
    ]
    for points in (rim, mirrored(rim)):
        stroke(rims, points, 15, 1.0)
    return 0.38 * blurred(rims, 1.3)


def _effusion(rng: np.random.Generator, body: Body, side: int) -> Film:
    """Draw fluid at the base of one lung: level inside, climbing the outer wall."""
    level = body.lung_bottom - rng.uniform(0.12, 0.20)
    out = (0.45 - _X if side == 0 else _X - 0.55) / 0.35
    surface = level - 0.16 * np.clip(out, 0, 1.2) ** 3
    return np.asarray(0.48 * np.clip((_Y - surface) * 30, 0, 1), np.float32)


def _devices(rng: np.random.Generator, over: Film) -> None:
    """Draw a pacemaker with leads, a tube in the trachea, a central line, and electrodes on the skin."""
    x, y = rng.uniform(0.74, 0.80), rng.uniform(0.20, 0.25)
    over[:] = np.maximum(over, 1.15 * ellipse(x, y, 0.055, 0.042, 0.6))
    stroke(over, [(x, y), (0.62, 0.22), (0.47, 0.32), (0.46, 0.55), (0.56, 0.70)], 2, 1.1)
    stroke(over, [(0.495, 0.0), (0.50, 0.15), (0.50, 0.30)], 3, 1.05)
    stroke(over, [(0.20, 0.02), (0.30, 0.17), (0.44, 0.22), (0.45, 0.42)], 2, 1.0)
    for dot in ((0.16, 0.24), (0.30, 0.80), (0.82, 0.74)):
        over[:] = np.maximum(over, 1.1 * ellipse(*dot, 0.018, 0.015, 0.5))
