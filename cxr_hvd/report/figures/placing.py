"""Labels beside points, so that none lies on another, on a point or outside of the panel. Pure geometry.

Greedy: each label in turn takes the nearest free place round its point. All lengths have one unit.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

GAP, DOT = 3.0, 4.0
TRAIL = 24
RADII = (5, 9, 14, 20, 27, 35, 44, 54, 66, 80, 96, 114, 134, 156, 180)
NUM_ANGLES = 16


@dataclass(frozen=True)
class Box:
    """A rectangle: its lower left corner, width and height."""

    x: float
    y: float
    width: float
    height: float

    def overlaps(self, other: "Box") -> bool:
        """Whether the two have a point in common that is on neither's edge."""
        is_beside = self.x >= other.x + other.width or other.x >= self.x + self.width
        return not (is_beside or self.y >= other.y + other.height or other.y >= self.y + self.height)

    def holds(self, other: "Box") -> bool:
        """Whether all of the other lies in this one."""
        is_within = self.x <= other.x and other.x + other.width <= self.x + self.width
        return is_within and self.y <= other.y and other.y + other.height <= self.y + self.height


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    taken: Sequence[Box],
    within: Box,
) -> list[Box]:
    """Return a place for the label of each point; where none is free, the nearest inside of the panel.

    The rightmost point comes first. A line from a label to its point crosses no other where that can be had.

    Args:
        points: where the labels belong to. sizes: width and height of each label.
        taken: what no label may cover.
        within: the panel.
    """
    placed: dict[int, Box] = {}
    trails: list[Box] = []
    for number in sorted(range(len(points)), key=lambda number: (-points[number][0], points[number][1])):
        inside = [box for box in _candidates(points[number], sizes[number]) if within.holds(box)]
        others = list(placed.values())
        apart = [box for box in inside if not _meet([box], others)]
        free = [box for box in apart if not _meet([box], taken)]
        apart_points = [point for point in points if math.dist(point, points[number]) > 2 * DOT]
        dots = [Box(x - DOT / 2, y - DOT / 2, DOT, DOT) for x, y in apart_points]
        clear = (
            box
            for box in free
            if not _meet([box], trails) and not _meet(_trail(points[number], box), [*others, *dots])
        )
        nearest = [*free, *apart, *inside, Box(points[number][0] + GAP, points[number][1] + GAP, *sizes[number])][
            0
        ]
        placed[number] = next(clear, nearest)
        trails += _trail(points[number], placed[number])
    return [placed[number] for number in range(len(points))]


def _meet(boxes: Sequence[Box], others: Sequence[Box]) -> bool:
    return any(box.overlaps(other) for box in boxes for other in others)


def _trail(point: tuple[float, float], box: Box) -> list[Box]:
    """Return small boxes along the line from a point to the middle of its label."""
    x, y = box.x + box.width / 2, box.y + box.height / 2
    shares = [number / TRAIL for number in range(1, TRAIL)]
    return [
        Box(point[0] + share * (x - point[0]) - 1, point[1] + share * (y - point[1]) - 1, 2, 2) for share in shares
    ]


def _candidates(point: tuple[float, float], size: tuple[float, float]) -> Iterator[Box]:
    """Yield boxes round a point, the nearest first: right, left, above, below, then between."""
    order = sorted(range(NUM_ANGLES), key=lambda turn: (turn % (NUM_ANGLES // 4), turn % (NUM_ANGLES // 2), turn))
    for radius in RADII:
        for turn in order:
            angle = 2 * math.pi * turn / NUM_ANGLES
            toward_x, toward_y = math.cos(angle), math.sin(angle)
            # The label's edge or corner that looks at the point lies on the circle.
            x = point[0] + radius * toward_x + (toward_x - 1) / 2 * size[0]
            y = point[1] + radius * toward_y + (toward_y - 1) / 2 * size[1]
            yield Box(x, y, *size)
