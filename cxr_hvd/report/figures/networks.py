"""Figures of networks: what each is worth on every test set, and what it took to make it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cxr_hvd.experiment.comparison import Comparison, Estimate
from cxr_hvd.monitor.curves import COLORS, FAINT
from cxr_hvd.report.figures.panels import MAX_NAME, grid, say_empty, tidy, title, used
from cxr_hvd.report.figures.placing import Box, place_labels
from cxr_hvd.report.figures.setups import DIM, WIDTH_IN, canvas, fitted
from cxr_hvd.report.format import UNDEFINED, as_score, shown

CELL_IN, CELL_HEIGHT_IN, NETWORK_IN = 0.58, 0.28, 0.92
LIGHT, DARK = np.array([0xF1, 0xF5, 0xF9]), np.array([0x0B, 0x3C, 0x66])
LABEL_PT = 7.5
UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes"))


def draw_matrix(comparison: Comparison) -> Figure | None:
    """Draw macro AUROC of every network on every test set, a small table of shades for each set-up."""
    aurocs = {(row.experiment, row.network, row.site): row.macro_auroc.value for row in comparison.matrix}
    values = [value for value in aurocs.values() if value is not None]
    sites = comparison.institutions
    if not values or not sites:
        return None
    networks: dict[str, list[str]] = {}
    for name, network in dict.fromkeys((name, network) for name, network, _ in aurocs):
        networks.setdefault(name, []).append(network)
    pitch = NETWORK_IN + CELL_IN * len(sites) + 0.2
    per_row = max(1, int((WIDTH_IN + 0.1) // pitch))
    per_row = -(-len(networks) // -(-len(networks) // per_row))
    names = list(networks)
    lines = [names[start : start + per_row] for start in range(0, len(names), per_row)]
    heights = [0.62 + CELL_HEIGHT_IN * max(len(networks[name]) for name in line) for line in lines]
    figure, paper = canvas(WIDTH_IN, sum(heights) + 0.05)
    start = (WIDTH_IN - per_row * pitch) / 2 + NETWORK_IN
    for number, line in enumerate(lines):
        for place, name in enumerate(line):
            left, top = start + place * pitch, sum(heights[:number]) + 0.28
            paper.text(left, top - 0.09, shown(name, MAX_NAME), fontsize=9, weight="bold")
            for down, network in enumerate(networks[name]):
                text = fitted(network, NETWORK_IN - 0.1, LABEL_PT)
                middle = top + (down + 0.5) * CELL_HEIGHT_IN
                paper.text(left - 0.06, middle, text, fontsize=LABEL_PT, ha="right", va="center")
                for across, site in enumerate(sites):
                    corner = left + across * CELL_IN, top + down * CELL_HEIGHT_IN
                    _draw_cell(paper, corner, aurocs.get((name, network, site)), values, network == site)
            below = top + len(networks[name]) * CELL_HEIGHT_IN + 0.08
            for across, site in enumerate(sites):
                center = left + (across + 0.48) * CELL_IN
                text = fitted(site, CELL_IN, 6.5)
                paper.text(center, below, text, fontsize=6.5, color=DIM, ha="center", va="center")
    return figure


def _draw_cell(
    paper: Axes, corner: tuple[float, float], value: float | None, values: Sequence[float], is_framed: bool
) -> None:
    left, top = corner
    color: Any = "white"
    ink, text, size = DIM, UNDEFINED, 6.5
    if value is not None:
        share = (value - min(values)) / ((max(values) - min(values)) or 1.0)
        color = tuple((LIGHT + share * (DARK - LIGHT)) / 255)
        ink, text, size = "white" if share > 0.67 else "black", as_score(value), 8
    edge: dict[str, Any] = {
        "edgecolor": COLORS[1] if is_framed else "#D8DEE4",
        "linewidth": 1.6 if is_framed else 0.6,
    }
    width, height = CELL_IN - 0.04, CELL_HEIGHT_IN - 0.04
    paper.fill_between([left, left + width], top, top + height, facecolor=color, zorder=2 + is_framed, **edge)
    center = left + width / 2, top + height / 2
    paper.text(*center, text, fontsize=size, color=ink, ha="center", va="center_baseline", zorder=4)


def draw_exchange(comparison: Comparison) -> Figure | None:
    """Draw macro AUROC against the bytes that a rank hands over in a run, a panel for each test set."""
    sizes = {setup.name: setup.bytes_per_run for setup in comparison.experiments}
    sites = comparison.site_names
    results = [
        result
        for result in comparison.results
        if result.macro_auroc.value is not None and result.experiment in sizes
    ]
    if not results:
        return None
    max_bytes = max(sizes[result.experiment] for result in results)
    factor, unit = next((unit for unit in UNITS if max_bytes >= unit[0]), UNITS[-1])
    columns = min(2, len(sites))
    figure, panels = grid(
        -(-len(sites) // columns), columns, 2.9, left=0.6, right=0.1, between=0.6, below=0.75, bottom=0.45
    )
    for site, panel in zip(sites, used(panels, len(sites)), strict=True):
        title(panel, shown(site, 36))
        panel.set_xlabel(f"{unit} that one rank hands over in a run")
        panel.set_ylabel("macro AUROC")
        tidy(panel)
        panel.set_xlim(-0.06 * (max_bytes or 1) / factor, 1.38 * (max_bytes or 1) / factor)
        panel.xaxis.set_major_locator(MaxNLocator(nbins=6))
        here = [result for result in results if result.site == site]
        if here:
            _draw_points(
                panel,
                [sizes[result.experiment] / factor for result in here],
                [result.macro_auroc for result in here],
                [shown(result.experiment, MAX_NAME) for result in here],
            )
        else:
            panel.set_yticks([])
            say_empty(panel, f"{UNDEFINED} on this test set")
    return figure


def _draw_points(
    panel: Axes, places: Sequence[float], estimates: Sequence[Estimate], names: Sequence[str]
) -> None:
    """Draw points with intervals, and names beside them that cover none of them."""
    values = [estimate.value or 0.0 for estimate in estimates]
    ends = [end for estimate in estimates for end in (estimate.low, estimate.high)]
    reach = [*values, *(end for end in ends if end is not None)]
    air = max(0.01, 0.08 * (max(reach) - min(reach)))
    panel.set_ylim(min(reach) - air, max(reach) + air)
    for at, value, estimate in zip(places, values, estimates, strict=True):
        if estimate.low is not None and estimate.high is not None:
            panel.plot([at, at], [estimate.low, estimate.high], color=FAINT, linewidth=0.9, alpha=0.45, zorder=1)
        panel.plot([at], [value], "o", markersize=5.5, color=COLORS[0], markeredgecolor="white", zorder=3)
    points_per_pixel = 72 / panel.get_figure(root=True).dpi  # type: ignore[union-attr]
    dots_N2 = panel.transData.transform(np.column_stack([places, values])) * points_per_pixel
    corners = panel.transAxes.transform([(0, 0), (1, 1)]) * points_per_pixel
    within = Box(*(corners[0] + 2), *(corners[1] - corners[0] - 4))
    dots = [(float(x), float(y)) for x, y in dots_N2]
    taken = [Box(x - 3.5, y - 3.5, 7, 7) for x, y in dots]
    sizes = [(len(name) * LABEL_PT * 0.62 + 2, LABEL_PT + 2) for name in names]
    boxes = place_labels(dots, sizes, taken, within)
    line = {"arrowstyle": "-", "color": DIM, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3}
    for name, at, value, (x, y), box in zip(names, places, values, dots, boxes, strict=True):
        toward = box.x + box.width / 2 - x, box.y + box.height / 2 - y
        gap = max(abs(toward[0]) - box.width / 2, abs(toward[1]) - box.height / 2)
        panel.annotate(
            name,
            (at, value),
            toward,
            textcoords="offset points",
            fontsize=LABEL_PT,
            ha="center",
            va="center",
            zorder=4,
            arrowprops=line if gap > 7 else None,
            bbox={"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )
