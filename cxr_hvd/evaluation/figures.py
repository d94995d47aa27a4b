"""The figures of a comparison: how good each set-up is, how set-ups differ, and what each hands over.

Owns what is drawn and how. The same comparison gives the same bytes: no date, fixed ids, matplotlib's own font.
The set-ups themselves are `setup_figure`'s. A figure for which nothing is defined is not drawn.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cxr_hvd.evaluation.cells import (
    UNDEFINED,
    as_difference,
    as_p,
    as_percent,
    as_points,
    as_score,
    is_number,
    shown,
)
from cxr_hvd.evaluation.curves import COLORS, FAINT, INK, LINES
from cxr_hvd.evaluation.placing import Box, place_labels
from cxr_hvd.evaluation.setup_figure import DIM, WIDTH_IN, canvas, color_of, draw_setups, fitted
from cxr_hvd.evaluation.tables import (
    Comparison,
    chosen,
    institutions,
    main_differences,
    said_place,
    site_names,
)

DPI = 180
STYLE: Any = {
    "text.parse_math": False,  # a dollar sign in a site's name is one
    "svg.fonttype": "none",
    "svg.hashsalt": "cxr-hvd",
    "font.sans-serif": ["DejaVu Sans"],
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.labelsize": 8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
}
# Set-ups have other colours than sites, which have those of `curves`.
SETUP_COLORS = (INK, "#E69F00", "#56B4E9", "#CC79A7")
COLUMNS = 4
ROW_IN = 0.25
MAX_NAME, LETTER_IN = 24, 0.066
CELL_IN, CELL_HEIGHT_IN, NETWORK_IN = 0.58, 0.28, 0.92
LIGHT, DARK = np.array([0xF1, 0xF5, 0xF9]), np.array([0x0B, 0x3C, 0x66])
NUM_BINS = 10
LABEL_PT, TICK_IN = 7.5, 0.25
UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes"))

Write = Callable[[float], str]
Found = Mapping[str, Any]


@dataclass(frozen=True)
class Drawn:
    """A figure as files hold it."""

    svg: str
    png: bytes


def render_figures(comparison: Comparison) -> dict[str, Drawn]:
    """Draw all figures of a comparison for which anything is defined, by name."""
    makers: dict[str, Callable[[Comparison], Figure | None]] = {
        "set-ups": draw_setups,
        "overview": draw_overview,
        "differences": draw_differences,
        "matrix": draw_matrix,
        "exchange": draw_exchange,
        "calibration": draw_calibration,
        "curves": draw_losses,
    }
    with drawing():
        figures = {name: make(comparison) for name, make in makers.items()}
        for number, site in enumerate(site_names(comparison), start=1):
            figures[f"roc-{number}"] = draw_roc(comparison, site)
        return {name: render(figure) for name, figure in figures.items() if figure}


@contextmanager
def drawing() -> Iterator[None]:
    """Draw with this module's style, whatever the user's matplotlibrc says."""
    with rc_context(), warnings.catch_warnings():
        rcdefaults()
        rcParams.update(STYLE)
        warnings.simplefilter("ignore")  # of a name in letters that the font has not
        yield


def render(figure: Figure) -> Drawn:
    """Write a figure as SVG and as PNG, the same bytes each time."""
    svg, png = BytesIO(), BytesIO()
    figure.savefig(svg, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
    return Drawn(svg.getvalue().decode(), png.getvalue())


def draw_overview(comparison: Comparison) -> Figure | None:
    """Draw macro AUROC and accuracy of every set-up on every test set, with the all-negative accuracy."""
    sites, names = site_names(comparison), [one["name"] for one in comparison["experiments"]]
    found = {(one["site"], one["experiment"]): one for one in comparison["results"]}
    if not found or not names:
        return None
    labels = [shown(name, MAX_NAME) for name in names]
    left = _width_of(labels)
    figure, panels = _grid(len(sites), 2, ROW_IN * len(names), left=left, right=0.55, between=0.8)
    for site, (aurocs, accuracies) in zip(sites, panels, strict=True):
        rows = [found.get((site, name)) for name in names]
        _draw_estimates(aurocs, labels, [row and row["macro_auroc"] for row in rows], as_score)
        _draw_estimates(accuracies, [], [row and row["mean_accuracy"] for row in rows], as_percent)
        accuracies.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{round(100 * share, 2):g}%"))
        _draw_all_negative(accuracies, {row["mean_all_negative_accuracy"] for row in rows if row})
        _title(aurocs, f"{shown(site, 28)}: macro AUROC")
        _title(accuracies, "accuracy at 0.5")
    return figure


def _draw_all_negative(panel: Axes, values: set[Any]) -> None:
    known = sorted(filter(is_number, values))
    for value in known:
        _widen(panel, value)
        panel.axvline(value, color=COLORS[1], linewidth=1.2, linestyle="--", zorder=1)
    said = f"dashed: all negative, {', '.join(map(as_percent, known))}" if known else "all negative: undefined"
    panel.text(0, 1.0, said, transform=panel.transAxes, fontsize=7, color="#A84300", va="bottom")


def draw_differences(comparison: Comparison) -> Figure | None:
    """Draw the main paired differences as a forest plot, with interval, p and the line of no difference."""
    rows = main_differences(comparison)
    if not rows:
        return None
    places = list(dict.fromkeys(one["site"] for one in rows))
    pairs = list(dict.fromkeys((one["a"], one["b"]) for one in rows))
    labels = [f"{shown(a, MAX_NAME)} − {shown(b, MAX_NAME)}" for a, b in pairs]
    left = _width_of(labels)
    figure, panels = _grid(len(places), 2, ROW_IN * len(pairs), left=left, right=1.15, between=1.25)
    for place, (aurocs, points) in zip(places, panels, strict=True):
        of_pair = {(one["a"], one["b"]): one for one in rows if one["site"] == place}
        here = [of_pair.get(pair) for pair in pairs]
        _draw_estimates(aurocs, labels, [one and one["macro_auroc"] for one in here], as_difference)
        _draw_estimates(points, [], [one and one["mean_accuracy"] for one in here], as_points)
        for panel, factor in ((aurocs, 1), (points, 100)):
            _widen(panel, 0.0)
            panel.axvline(0.0, color=FAINT, linewidth=1.0, zorder=1)
            panel.xaxis.set_major_formatter(FuncFormatter(lambda at, _, factor=factor: _signed(factor * at)))
        _title(aurocs, f"{said_place(shown(place, 22), rows[0]['split'])}: macro AUROC")
        _title(points, "accuracy, points")
    return figure


def _signed(value: float) -> str:
    return f"{round(value, 4):+g}".replace("-", "−") if abs(value) > 1e-9 else "0"


def _draw_estimates(panel: Axes, names: Sequence[str], estimates: Sequence[Found | None], write: Write) -> None:
    """Draw a row each: value, interval as a line, seeds as dots below, and the value in words on the right.

    A value whose interval holds 0 is drawn hollow. Where it is undefined its note stands in the row.
    """
    beside = panel.get_yaxis_transform()
    reach: list[float] = []
    for row, found in enumerate(estimates):
        if found is None or not is_number(found["value"]):
            why = shown((found and found["note"]) or UNDEFINED, 44)
            panel.text(0.5, row, why, transform=beside, fontsize=7, color=DIM, ha="center", va="center")
            continue
        seeds = [seed for seed in found["by_seed"] if is_number(seed)]
        ends = [end for end in (found["low"], found["high"]) if is_number(end)]
        reach += [found["value"], *seeds, *ends]
        panel.plot(ends, [row] * len(ends), color=INK, linewidth=1.6, zorder=2, solid_capstyle="butt")
        is_clear = len(ends) == 2 and not ends[0] <= 0 <= ends[1]
        style: dict[str, Any] = {"markerfacecolor": INK if is_clear else "white", "markeredgecolor": INK}
        panel.plot([found["value"]], [row], "o", markersize=5, zorder=3, **style)
        if len(seeds) > 1:
            below = [row + 0.3] * len(seeds)
            panel.plot(seeds, below, "o", markersize=2.6, color=COLORS[5], markeredgewidth=0, zorder=2)
        p = f"  p {as_p(found['p_value'])}" if is_number(found.get("p_value")) else ""
        panel.text(1.02, row, write(found["value"]) + p, transform=beside, fontsize=7.5, va="center_baseline")
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(estimates) - 0.45, -0.55)
    if reach:
        air = max(0.004, 0.05 * (max(reach) - min(reach)))
        panel.set_xlim(min(reach) - air, max(reach) + air)
        panel.xaxis.set_major_locator(MaxNLocator(nbins=4, min_n_ticks=3))
    else:
        panel.set_xticks([])
    panel.grid(axis="x", color=FAINT, alpha=0.22, linewidth=0.5)
    panel.tick_params(axis="y", length=0)
    panel.spines[["top", "right", "left"]].set_visible(False)


def draw_matrix(comparison: Comparison) -> Figure | None:
    """Draw macro AUROC of every network on every test set, a small table of shades for each set-up."""
    found = {
        (one["experiment"], one["network"], one["site"]): one["macro_auroc"]["value"]
        for one in comparison["matrix"]
    }
    values = [value for value in found.values() if is_number(value)]
    sites = institutions(comparison)
    if not values or not sites:
        return None
    networks: dict[str, list[str]] = {}
    for name, network in dict.fromkeys((name, network) for name, network, _ in found):
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
                said = fitted(network, NETWORK_IN - 0.1, LABEL_PT)
                middle = top + (down + 0.5) * CELL_HEIGHT_IN
                paper.text(left - 0.06, middle, said, fontsize=LABEL_PT, ha="right", va="center")
                for across, site in enumerate(sites):
                    corner = left + across * CELL_IN, top + down * CELL_HEIGHT_IN
                    _draw_cell(paper, corner, found.get((name, network, site)), values, network == site)
            below = top + len(networks[name]) * CELL_HEIGHT_IN + 0.08
            for across, site in enumerate(sites):
                center = left + (across + 0.48) * CELL_IN
                said = fitted(site, CELL_IN, 6.5)
                paper.text(center, below, said, fontsize=6.5, color=DIM, ha="center", va="center")
    return figure


def _draw_cell(
    paper: Axes, corner: tuple[float, float], value: object, values: Sequence[float], is_own: bool
) -> None:
    left, top = corner
    color: Any = "white"
    ink, said, size = DIM, UNDEFINED, 6.5
    if is_number(value):
        share = (value - min(values)) / ((max(values) - min(values)) or 1.0)
        color = tuple((LIGHT + share * (DARK - LIGHT)) / 255)
        ink, said, size = "white" if share > 0.67 else "black", as_score(value), 8
    edge: dict[str, Any] = {"edgecolor": COLORS[1] if is_own else "#D8DEE4", "linewidth": 1.6 if is_own else 0.6}
    width, height = CELL_IN - 0.04, CELL_HEIGHT_IN - 0.04
    paper.fill_between([left, left + width], top, top + height, facecolor=color, zorder=2 + is_own, **edge)
    center = left + width / 2, top + height / 2
    paper.text(*center, said, fontsize=size, color=ink, ha="center", va="center_baseline", zorder=4)


def draw_exchange(comparison: Comparison) -> Figure | None:
    """Draw macro AUROC against the bytes that a rank hands over in a run, a panel for each test set."""
    sizes = {one["name"]: one["bytes_per_run"] for one in comparison["experiments"]}
    sites = site_names(comparison)
    results = [
        one
        for one in comparison["results"]
        if is_number(one["macro_auroc"]["value"]) and is_number(sizes.get(one["experiment"]))
    ]
    if not results:
        return None
    most = max(sizes[one["experiment"]] for one in results)
    factor, unit = next((unit for unit in UNITS if most >= unit[0]), UNITS[-1])
    columns = min(2, len(sites))
    figure, panels = _grid(
        -(-len(sites) // columns), columns, 2.9, left=0.6, right=0.1, between=0.6, below=0.75, bottom=0.45
    )
    for site, panel in zip(sites, _used(panels, len(sites)), strict=True):
        _title(panel, shown(site, 36))
        panel.set_xlabel(f"{unit} that one rank hands over in a run")
        panel.set_ylabel("macro AUROC")
        _tidy(panel)
        panel.set_xlim(-0.06 * (most or 1) / factor, 1.38 * (most or 1) / factor)
        panel.xaxis.set_major_locator(MaxNLocator(nbins=6))
        here = [one for one in results if one["site"] == site]
        if here:
            _draw_points(
                panel,
                [sizes[one["experiment"]] / factor for one in here],
                [one["macro_auroc"] for one in here],
                [shown(one["experiment"], MAX_NAME) for one in here],
            )
        else:
            panel.set_yticks([])
            _say_empty(panel, f"{UNDEFINED} on this test set")
    return figure


def _draw_points(panel: Axes, places: Sequence[float], estimates: Sequence[Found], names: Sequence[str]) -> None:
    """Draw points with intervals, and names beside them that cover none of them."""
    bounds = [(found["low"], found["value"], found["high"]) for found in estimates]
    reach = [bound for row in bounds for bound in row if is_number(bound)]
    air = max(0.01, 0.08 * (max(reach) - min(reach)))
    panel.set_ylim(min(reach) - air, max(reach) + air)
    for at, (low, value, high) in zip(places, bounds, strict=True):
        if is_number(low) and is_number(high):
            panel.plot([at, at], [low, high], color=FAINT, linewidth=0.9, alpha=0.45, zorder=1)
        panel.plot([at], [value], "o", markersize=5.5, color=COLORS[0], markeredgecolor="white", zorder=3)
    points_per_pixel = 72 / panel.get_figure(root=True).dpi  # type: ignore[union-attr]
    values = [found["value"] for found in estimates]
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


def draw_roc(comparison: Comparison, site: str) -> Figure | None:
    """Draw the ROC curve of each label that is defined on a site's test studies, set-ups over each other."""
    names = chosen(comparison)
    curves = {
        (one["experiment"], label["label"]): label
        for one in comparison["results"]
        if one["site"] == site and one["experiment"] in names
        for label in one["labels"]
        if label["roc"]
    }
    labels = {label: one for (_, label), one in reversed(curves.items())}
    if not labels:
        return None
    labels = dict(reversed(labels.items()))
    num_rows = -(-len(labels) // COLUMNS)
    figure, panels = _grid(
        num_rows, COLUMNS, 1.5, left=0.4, right=0.1, between=0.18, below=0.42, top=0.86, bottom=TICK_IN
    )
    for number, (panel, label) in enumerate(zip(_used(panels, len(labels)), labels, strict=True)):
        for index, name in enumerate(names):
            if one := curves.get((name, label)):
                roc, line = one["roc"], _line(index)
                at = roc["false_positive"]
                panel.fill_between(at, roc["low"], roc["high"], color=line["color"], alpha=0.16, linewidth=0)
                panel.plot(at, roc["true_positive"], linewidth=1.2, **line)
        panel.set_title(shown(label, 27), fontsize=7.5, loc="left", pad=12)
        present = f"{labels[label]['num_present']:,} of {labels[label]['num_studies']:,} present"
        panel.text(0, 1.03, present, transform=panel.transAxes, fontsize=6.8, color=DIM)
        _unit_square(panel, number % COLUMNS == 0, number + COLUMNS >= len(labels))
    heading = f"{shown(site, 40)}: true against false positive share"
    figure.text(0.012, 1 - 0.15 / figure.get_figheight(), heading, fontsize=9, weight="bold", va="center")
    _legend(figure, 0.24, [(shown(name, MAX_NAME), _line(index)) for index, name in enumerate(names)])
    return figure


def draw_calibration(comparison: Comparison) -> Figure | None:
    """Draw how often a label is present where a network gives it some probability, over all labels and each."""
    names, sites = chosen(comparison), site_names(comparison)
    found = {
        (one["site"], one["experiment"]): [label["calibration"] for label in one["labels"] if label["calibration"]]
        for one in comparison["results"]
        if one["experiment"] in names
    }
    if not any(found.values()):
        return None
    figure, panels = _grid(
        len(sites), COLUMNS, 1.6, left=0.75, right=0.1, between=0.18, below=0.18, top=0.3, bottom=0.45
    )
    for down, (site, row) in enumerate(zip(sites, panels, strict=True)):
        for across, (panel, name) in enumerate(zip(_used([row], len(names)), names, strict=True)):
            curves = found.get((site, name), [])
            for bins in curves:
                predicted, present = [one[0] for one in bins], [one[1] for one in bins]
                panel.plot(predicted, present, color=FAINT, alpha=0.45, linewidth=0.7)
            if pooled := pool_bins(curves):
                predicted, present, counts = map(list, zip(*pooled, strict=True))
                panel.plot(predicted, present, color=COLORS[0], linewidth=1.4)
                areas = 4 + 50 * np.sqrt(np.array(counts) / max(counts))
                panel.scatter(predicted, present, s=areas, color=COLORS[0], edgecolor="white", lw=0.5, zorder=3)
            else:
                _say_empty(panel, UNDEFINED)
            _unit_square(panel, across == 0, down == len(sites) - 1)
            if down == 0:
                panel.set_title(shown(name, MAX_NAME), fontsize=9, weight="bold")
            if down == len(sites) - 1:
                panel.set_xlabel("predicted")
            if across == 0:
                panel.set_ylabel(f"{shown(site, 22)}\nshare present")
    return figure


def pool_bins(
    curves: Sequence[Sequence[Sequence[float]]], num_bins: int = NUM_BINS
) -> list[tuple[float, float, float]]:
    """Return the calibration of all labels together, from that of each.

    Args:
        curves: of each label (mean predicted, share present, number of studies) in bins of equal width.
    """
    sums = np.zeros((num_bins, 3))
    for predicted, present, count in (each for bins in curves for each in bins):
        sums[min(int(predicted * num_bins), num_bins - 1)] += (predicted * count, present * count, count)
    return [(at / count, present / count, count) for at, present, count in sums.tolist() if count]


def draw_losses(comparison: Comparison) -> Figure | None:
    """Draw the training loss of every site, a panel for each set-up: seeds thin, their mean thick."""
    rows = [one for one in comparison["curves"] if any(map(is_number, one["loss"]))]
    losses = {id(one): [loss if is_number(loss) else np.nan for loss in one["loss"]] for one in rows}
    drawn = {one["experiment"] for one in rows}
    names = [one["name"] for one in comparison["experiments"] if one["name"] in drawn]
    if not names:
        return None
    known = [site["name"] for site in comparison["sites"]]
    trained = dict.fromkeys(one["site"] for one in rows)
    sites = [*(site for site in known if site in trained), *(site for site in trained if site not in known)]
    num_rows = -(-len(names) // COLUMNS)
    figure, panels = _grid(
        num_rows, COLUMNS, 1.35, left=0.5, right=0.1, between=0.16, below=0.5, top=0.55, bottom=0.45
    )
    reach = np.concatenate(list(losses.values()))
    low, high = np.nanpercentile(reach, [0.2, 99.8])
    for number, (panel, name) in enumerate(zip(_used(panels, len(names)), names, strict=True)):
        for index, site in enumerate(sites):
            runs = [one for one in rows if one["experiment"] == name and one["site"] == site]
            for one in runs:
                panel.plot(one["steps"], losses[id(one)], color=color_of(index), alpha=0.4, linewidth=0.6)
            alike = [losses[id(one)] for one in runs if one["steps"] == runs[0]["steps"]]
            if runs:
                panel.plot(runs[0]["steps"], np.mean(alike, axis=0), color=color_of(index), linewidth=1.5)
        panel.set_title(shown(name, MAX_NAME), fontsize=9, weight="bold", loc="left")
        panel.set_ylim(low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1))
        _tidy(panel)
        panel.xaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
        panel.tick_params(labelleft=number % COLUMNS == 0)
        if number % COLUMNS == 0:
            panel.set_ylabel("training loss")
        if number + COLUMNS >= len(names):
            panel.set_xlabel("step")
    _legend(figure, 0.02, [(shown(site, 28), {"color": color_of(index)}) for index, site in enumerate(sites)])
    return figure


def _grid(
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


def _used(panels: Sequence[Sequence[Axes]], number: int) -> list[Axes]:
    """Return the first panels of a grid, and take the others away."""
    flat = [panel for row in panels for panel in row]
    for panel in flat[number:]:
        panel.remove()
    return flat[:number]


def _width_of(labels: Sequence[str]) -> float:
    return 0.2 + LETTER_IN * max(map(len, labels))


def _line(index: int) -> dict[str, Any]:
    return {"color": SETUP_COLORS[index % len(SETUP_COLORS)], "linestyle": LINES[index % len(LINES)]}


def _title(panel: Axes, text: str) -> None:
    panel.set_title(text, fontsize=8.5, weight="bold", loc="left", pad=11)


def _tidy(panel: Axes) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(color=FAINT, alpha=0.22, linewidth=0.5)
    panel.set_axisbelow(True)


def _unit_square(panel: Axes, is_left: bool, is_bottom: bool) -> None:
    panel.plot([0, 1], [0, 1], color=FAINT, linewidth=0.7, linestyle=":", zorder=1)
    panel.set_xlim(-0.02, 1.02)
    panel.set_ylim(-0.02, 1.02)
    panel.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    panel.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    panel.tick_params(labelleft=is_left, labelbottom=is_bottom, length=2)
    _tidy(panel)


def _widen(panel: Axes, value: float) -> None:
    """Let a panel reach as far as a value, with air."""
    low, high = panel.get_xlim()
    air = 0.05 * (high - low)
    panel.set_xlim(min(low, value - air), max(high, value + air))


def _say_empty(panel: Axes, why: str) -> None:
    panel.text(0.5, 0.5, why, transform=panel.transAxes, ha="center", va="center", color=DIM, fontsize=8)


def _legend(figure: Figure, down: float, lines: Sequence[tuple[str, dict[str, Any]]]) -> None:
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
