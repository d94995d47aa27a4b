"""Panels of a report's figures: how they stand on the paper, and what all have alike."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cxr_hvd.monitor.curves import FAINT, INK, LINES
from cxr_hvd.report.figures.setups import DIM, WIDTH_IN

# Set-ups have other colours than sites, which have those of `curves`.
SETUP_COLORS = (INK, "#E69F00", "#56B4E9", "#CC79A7")
LETTER_IN, TICK_IN = 0.066, 0.25
NAMED_IN = 0.45  # below panels whose axis has a name
MAX_NAME = 24


def grid(
    num_rows: int,
    num_columns: int,
    height: float,
    *,
    left: float,
    right: float,
    between: float,
    below: float = 0.66,
    top: float = 0.4,
    bottom: float = TICK_IN,
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure with panels of a height, in inches, and room round them; `below` each but the last row."""
    total = top + num_rows * height + (num_rows - 1) * below + bottom
    figure = Figure(figsize=(WIDTH_IN, total))
    FigureCanvasAgg(figure)
    width = (WIDTH_IN - left - right - (num_columns - 1) * between) / num_columns
    size = width / WIDTH_IN, height / total
    panels = []
    for down in range(num_rows):
        y = 1 - (top + down * (height + below) + height) / total
        places = [(left + across * (width + between)) / WIDTH_IN for across in range(num_columns)]
        panels.append([figure.add_axes((x, y, *size)) for x in places])
    return figure, panels


def used(panels: Sequence[Sequence[Axes]], number: int) -> list[Axes]:
    """Return the first panels of a grid, and take the others away."""
    flat = [panel for row in panels for panel in row]
    for panel in flat[number:]:
        panel.remove()
    return flat[:number]


def width_of(labels: Sequence[str]) -> float:
    """Return the room that labels on the left take, in inches."""
    return 0.2 + LETTER_IN * max(map(len, labels))


def line_of(index: int) -> dict[str, Any]:
    """Return the colour and kind of line of a set-up."""
    return {"color": SETUP_COLORS[index % len(SETUP_COLORS)], "linestyle": LINES[index % len(LINES)]}


def title(panel: Axes, text: str) -> None:
    """Write over a panel what it shows."""
    panel.set_title(text, fontsize=8.5, weight="bold", loc="left", pad=11)


def tidy(panel: Axes) -> None:
    """Take a panel's frame away but for its axes, and draw a faint grid."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(color=FAINT, alpha=0.22, linewidth=0.5)
    panel.set_axisbelow(True)


def unit_square(panel: Axes, is_left: bool, is_bottom: bool, ends: tuple[float, float] = (0, 1)) -> None:
    """Make a panel of shares against shares, with a dotted line from one height to another: the diagonal."""
    panel.plot([0, 1], ends, color=FAINT, linewidth=0.7, linestyle=":", zorder=1)
    panel.set_xlim(-0.02, 1.02)
    panel.set_ylim(-0.02, 1.02)
    panel.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    panel.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    panel.tick_params(labelleft=is_left, labelbottom=is_bottom, length=2)
    tidy(panel)


def widen(panel: Axes, value: float) -> None:
    """Let a panel reach as far as a value, with air."""
    low, high = panel.get_xlim()
    air = 0.05 * (high - low)
    panel.set_xlim(min(low, value - air), max(high, value + air))


def say_empty(panel: Axes, why: str) -> None:
    """Write why a panel is empty."""
    panel.text(0.5, 0.5, why, transform=panel.transAxes, ha="center", va="center", color=DIM, fontsize=8)


def legend(figure: Figure, down: float, lines: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Name lines in one row, so far below the figure's upper edge, on the left: a phone shows that first."""
    figure.legend(
        [Line2D([], [], linewidth=1.8, **line) for _, line in lines],
        [name for name, _ in lines],
        loc="upper left",
        bbox_to_anchor=(0.0, 1 - down / figure.get_figheight()),
        ncols=len(lines),
        frameon=False,
        fontsize=7.5,
        borderaxespad=0.2,
        columnspacing=1.4,
        handlelength=2.2,
    )
