"""The set-ups as a picture: which blocks all sites share, which stay at a site, and what each network trains on.

Drawn from the sharing plan of each set-up, for any number of sites and blocks. All lengths are inches on paper.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from cxr_hvd.experiment.comparison import Comparison, SetUp, SiteDescription
from cxr_hvd.monitor.curves import COLORS, INK
from cxr_hvd.report.format import as_bytes, as_count, shown

WIDTH_IN = 8.0
SHARED, BAND, DIM, MERGED = "#3B5068", "#B9C5D1", "#5F6670", "#E8EBEF"
NAMES_IN, PANEL_GAP_IN, MIN_PANEL_IN = 1.3, 0.24, 1.38
TITLE_IN, ARROW_IN, DATA_IN, WORDS_IN, LEGEND_IN = 0.56, 0.12, 0.34, 0.66, 0.3
TALL_BLOCK_IN, LOW_BLOCK_IN, MAX_TALL = 0.24, 0.19, 6
PRIVATE_SHARE = 0.32
"""Of a block's height, for the private tensors of a block that is shared but for them."""
CHARACTER_IN = 0.64 / 72
"""Mean width of a letter at a font size of one point."""


@dataclass(frozen=True)
class FigureColumns:
    """Where the sites' columns stand in a panel.

    Attributes:
        width: of a column.
        lefts: left edge of each column, from the panel's left.
        panel: width of a panel.
    """

    width: float
    lefts: tuple[float, ...]
    panel: float

    @property
    def right(self) -> float:
        return self.lefts[-1] + self.width


@dataclass(frozen=True)
class Panel:
    """Where a set-up is drawn: its upper left corner, and how high a block is, with the gap below it."""

    left: float
    top: float
    block_height: float
    columns: FigureColumns


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure with one panel over all of it, in inches from its upper left corner."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    paper = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    paper.set_xlim(0, width)
    paper.set_ylim(height, 0)
    paper.set_axis_off()
    return figure, paper


def fitted(text: object, width: float, size: float) -> str:
    """Return text cut to a width in inches, at a font size in points."""
    return shown(text, max(3, int(width / (size * CHARACTER_IN))))


def color_of(index: int) -> str:
    """Return the colour of a site."""
    return COLORS[index % len(COLORS)]


def draw_setups(comparison: Comparison) -> Figure | None:
    """Draw every set-up: a column of blocks for each site that trains, joined where they are shared."""
    setups = comparison.experiments
    judged = comparison.site_names
    sites = [site for site in comparison.sites if site.name in judged] or list(comparison.sites)
    if not setups or not sites:
        return None
    blocks = list(dict.fromkeys(part.block for setup in setups for part in setup.blocks))
    columns = _columns(len(sites))
    per_row = max(1, int((WIDTH_IN - NAMES_IN + PANEL_GAP_IN) // (columns.panel + PANEL_GAP_IN)))
    num_rows = -(-len(setups) // per_row)
    per_row = -(-len(setups) // num_rows)  # rows of like length
    pitch = min(columns.panel + 2 * PANEL_GAP_IN, (WIDTH_IN - NAMES_IN - 0.2 + PANEL_GAP_IN) / per_row)
    block_height = TALL_BLOCK_IN if len(blocks) <= MAX_TALL else LOW_BLOCK_IN
    row_height = TITLE_IN + len(blocks) * block_height + ARROW_IN + DATA_IN + WORDS_IN
    figure, paper = canvas(WIDTH_IN, num_rows * row_height + LEGEND_IN)
    start = (WIDTH_IN - NAMES_IN - per_row * pitch + pitch - columns.panel) / 2 + NAMES_IN
    for number, setup in enumerate(setups):
        down, across = divmod(number, per_row)
        if across == 0:
            _draw_names(paper, start - 0.1, down * row_height + TITLE_IN, block_height, blocks, setups)
        panel = Panel(start + across * pitch, down * row_height, block_height, columns)
        _draw_setup(paper, panel, setup, blocks, sites)
    _draw_legend(paper, num_rows * row_height + 0.06, sites)
    return figure


def _columns(num_sites: int) -> FigureColumns:
    width, gap = (0.56, 0.26) if num_sites <= 2 else (0.56, 0.15)
    tower = num_sites * width + (num_sites - 1) * gap
    panel = max(MIN_PANEL_IN, tower)
    first = (panel - tower) / 2
    return FigureColumns(width, tuple(first + index * (width + gap) for index in range(num_sites)), panel)


def _draw_names(
    paper: Axes, right: float, top: float, height: float, blocks: Sequence[str], setups: Sequence[SetUp]
) -> None:
    """Write the blocks' names, the network's end on top, with their numbers of parameters."""
    sizes: dict[str, float] = {}
    for setup in setups:
        of_setup: dict[str, float] = {}
        for part in setup.blocks:
            if part.num_parameters is not None:
                of_setup[part.block] = of_setup.get(part.block, 0) + part.num_parameters
        sizes = of_setup | sizes
    for row, block in enumerate(reversed(blocks)):
        middle = top + (row + 0.4) * height
        _write(paper, right - 0.4, middle, fitted(block, NAMES_IN - 0.5, 7.5), 7.5, ha="right")
        if block in sizes:
            _write(paper, right, middle, _as_size(sizes[block]), 6.5, color=DIM, ha="right")


def _as_size(num_parameters: float) -> str:
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if num_parameters >= factor:
            return (
                f"{num_parameters / factor:.2g}{unit}"
                if num_parameters < 10 * factor
                else (f"{num_parameters / factor:,.0f}{unit}")
            )
    return f"{num_parameters:,.0f}"


def _draw_setup(
    paper: Axes, panel: Panel, setup: SetUp, blocks: Sequence[str], sites: Sequence[SiteDescription]
) -> None:
    width = panel.columns.panel
    middle = panel.left + width / 2
    _write(paper, middle, panel.top + 0.14, fitted(setup.name, width + 0.2, 10.5), 10.5, weight="bold")
    for number, line in enumerate(_lines(f"private: {shown(setup.private)}", width + 0.1)):
        _write(paper, middle, panel.top + 0.32 + 0.13 * number, line, 7, color=DIM)
    for row, block in enumerate(reversed(blocks)):
        scopes = {part.scope for part in setup.blocks if part.block == block}
        _draw_block(paper, panel, panel.top + TITLE_IN + row * panel.block_height, scopes)
    below = panel.top + TITLE_IN + len(blocks) * panel.block_height
    _draw_data(paper, panel, below, setup, sites)
    words = below + ARROW_IN + DATA_IN + 0.1
    trains_on = _lines(setup.trains_on, width + 0.26)
    for number, line in enumerate(trains_on):
        _write(paper, middle, words + 0.13 * number, line, 7, color=DIM)
    num_bytes = setup.bytes_per_exchange
    leaves = f"{as_bytes(num_bytes)} an exchange" if num_bytes else "no exchange"
    _write(paper, middle, words + 0.13 * len(trains_on) + 0.03, leaves, 7.5, weight="bold")


def _lines(text: object, width: float) -> list[str]:
    """Break small text into two lines at most."""
    letters = max(8, int(width / (7 * CHARACTER_IN)))
    lines = wrap(shown(text), letters)
    return lines if len(lines) <= 2 else [lines[0], shown(" ".join(lines[1:]), letters)]


def _draw_block(paper: Axes, panel: Panel, top: float, scopes: set[str]) -> None:
    """Draw a block: joined over all columns where it is shared, in each site's colour where it is private."""
    columns, height = panel.columns, 0.8 * panel.block_height
    is_mixed = scopes >= {"shared", "private"}
    shared_height = height * (1 - PRIVATE_SHARE) if is_mixed else height
    if "shared" in scopes:
        width = columns.right - columns.lefts[0]
        band = 0.2 * shared_height
        _box(paper, panel.left + columns.lefts[0], top + band, width, shared_height - 2 * band, BAND)
        for at in columns.lefts:
            _box(paper, panel.left + at, top, columns.width, shared_height, SHARED)
    if "private" in scopes:
        start = top + shared_height if is_mixed else top
        for index, at in enumerate(columns.lefts):
            _box(paper, panel.left + at, start, columns.width, top + height - start, color_of(index))


def _draw_data(paper: Axes, panel: Panel, top: float, setup: SetUp, sites: Sequence[SiteDescription]) -> None:
    """Draw what the networks train on below them: one box for all sites where studies are merged."""
    columns = panel.columns
    counts = [site.num_studies.get("train") for site in sites]
    centers = [panel.left + at + columns.width / 2 for at in columns.lefts]
    ends = {"arrowstyle": "-|>", "color": DIM, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 7}
    for center in centers:
        paper.annotate("", (center, top - 0.02), (center, top + ARROW_IN), arrowprops=ends)
    top += ARROW_IN
    if "merged" in setup.trains_on:
        width = columns.right - columns.lefts[0]
        _frame(paper, panel.left + columns.lefts[0], top, width, DIM, MERGED)
        known = [count for count in counts if count is not None]
        total = sum(known) if len(known) == len(counts) else None
        words = [(panel.left + columns.panel / 2, "merged", total)]
    else:
        words = []
        for index, (site, at) in enumerate(zip(sites, columns.lefts, strict=True)):
            _frame(paper, panel.left + at, top, columns.width, color_of(index), "white")
            name = fitted(site.name, columns.width, 6.5)
            words.append((centers[index], name, counts[index]))
    for center, name, count in words:
        _write(paper, center, top + 0.11, name, 6.5)
        _write(paper, center, top + 0.24, as_count(count), 6.5, color=DIM)


def _draw_legend(paper: Axes, top: float, sites: Sequence[SiteDescription]) -> None:
    room = int((WIDTH_IN - 3.2) / len(sites) / (7.5 * CHARACTER_IN)) - 6
    words: list[tuple[str, str | None]] = [("averaged over all sites", SHARED), ("private to", None)]
    words += [(shown(site.name, min(26, max(8, room))), color_of(index)) for index, site in enumerate(sites)]
    lengths = [(0.4 if color else 0.1) + len(word) * 7.5 * CHARACTER_IN for word, color in words]
    left = (WIDTH_IN - sum(lengths)) / 2
    for (word, color), length in zip(words, lengths, strict=True):
        if color:
            _box(paper, left, top, 0.16, 0.12, color)
        _write(paper, left + (0.22 if color else 0), top + 0.065, word, 7.5, ha="left")
        left += length


def _box(paper: Axes, left: float, top: float, width: float, height: float, color: str) -> None:
    paper.add_patch(Rectangle((left, top), width, height, facecolor=color, edgecolor="none", linewidth=0))


def _frame(paper: Axes, left: float, top: float, width: float, edge: str, face: str) -> None:
    paper.add_patch(
        FancyBboxPatch(
            (left, top),
            width,
            DATA_IN,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=face,
            edgecolor=edge,
            linewidth=1.0,
        )
    )


def _write(paper: Axes, x: float, y: float, text: str, size: float, **how: Any) -> None:
    paper.text(x, y, text, fontsize=size, **({"color": INK, "ha": "center", "va": "center"} | how))
