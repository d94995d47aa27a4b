"""Histograms of a network's probabilities, with a label and without, as drawings for a page.

A cell is as wide as the bins that were merged in it, and as high as its share of the studies by its width: the
areas of both outlines are alike, whatever the numbers of studies. Pure.
"""

from dataclasses import dataclass

from markupsafe import Markup

from cxr_hvd.experiment.across.comparison import AcrossComparison, AcrossHistogram

WIDTH, HEIGHT = 200, 80
COLORS = ("#b35900", "#3a6ea5")


@dataclass(frozen=True)
class DrawnHistogram:
    """A drawing, and what it is of.

    Attributes:
        title: test set, set-up and label.
        words: the same as a sentence, with numbers of studies.
    """

    title: str
    words: str
    svg: Markup


def draw_histograms(comparison: AcrossComparison) -> list[DrawnHistogram]:
    """Draw all histograms of labels of which something was sent."""
    return [_draw(one) for one in comparison.histograms if any(one.present) and any(one.absent)]


def _draw(one: AcrossHistogram) -> DrawnHistogram:
    densities = [_densities(counts) for counts in (one.present, one.absent)]
    highest = max(map(max, densities))
    outlines = Markup("").join(
        Markup('<path d="{}" fill="none" stroke="{}" stroke-width="1.5"/>').format(
            _outline(values, highest), color
        )
        for values, color in zip(densities, COLORS, strict=True)
    )
    title = f"{one.site}, {one.experiment}: {one.label}"
    words = f"{sum(one.present):,} studies with it (orange), {sum(one.absent):,} without (blue); seed {one.seed}"
    svg = Markup('<svg viewBox="0 0 {} {}" width="{}" height="{}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, WIDTH, HEIGHT, f"{title}: {words}", outlines
    )
    return DrawnHistogram(title, words, svg)


def _densities(counts: tuple[int, ...]) -> list[float]:
    """Return the height over each bin: its cell's share of the studies by the cell's number of bins."""
    heights: list[float] = []
    for end, count in enumerate(counts):
        if count:
            num_bins = end + 1 - len(heights)
            heights += [count / sum(counts) / num_bins] * num_bins
    return heights


def _outline(heights: list[float], highest: float) -> str:
    """Return the steps over the bins as an SVG path."""
    width, points = WIDTH / len(heights), [f"M0 {HEIGHT}"]
    for place, height in enumerate(heights):
        y = HEIGHT * (1 - 0.95 * height / highest)
        points.append(f"L{place * width:.1f} {y:.1f} L{(place + 1) * width:.1f} {y:.1f}")
    return " ".join([*points, f"L{WIDTH} {HEIGHT}"])
