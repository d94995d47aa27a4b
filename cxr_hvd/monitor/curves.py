"""The curves of a run as one picture: losses, validations, learning rate, and where the time goes, over its steps.

Owns what is drawn and how. A long run is thinned for drawing; its means are taken over all rows that were read.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from cxr_hvd.errors import CheckpointError, UsageError
from cxr_hvd.files import replaced_file
from cxr_hvd.monitor.view import Rows, RunView, SiteView, Values

MAX_POINTS = 2000
MEAN_OVER = 1 / 50  # of the rows
MAX_STRIPS = 4
MAX_NAMED_SITES = 16
DPI = 150
WIDTH_IN = 10.0

# Okabe and Ito's palette, told apart with every kind of colour vision. Beyond it, sites differ by their line.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES = ("-", "--", "-.", ":")
# Light to dark, so that gray is enough to tell them apart.
SHADES = {"averaging": "#3B5068", "data": "#93A8BD", "compute": "#D5DCE4"}
INK, FAINT = "#222222", "#8A8A8A"

Style = Mapping[str, Any]
"""How matplotlib draws the line of a site."""


def thinned(num_rows: int, max_points: int = MAX_POINTS) -> NDArray[np.int64]:
    """Return at most so many indices, evenly spread, the first and the last of them always."""
    return np.unique(np.linspace(0, num_rows - 1, min(num_rows, max_points)).round().astype(np.int64))


def running_mean(values: Values, width: int) -> Values:
    """Return the mean over `width` values round each; fewer at the ends. NaN counts as not there.

    NaN where there is nothing in reach.
    """
    half = width // 2
    is_there = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(is_there, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(is_there)])
    centers = np.arange(len(values))
    first, behind = np.maximum(centers - half, 0), np.minimum(centers + half + 1, len(values))
    count = counts[behind] - counts[first]
    return np.where(count > 0, (sums[behind] - sums[first]) / np.maximum(count, 1), np.nan)


def mean_width(num_rows: int) -> int:
    """Return over how many rows a running mean is taken."""
    return max(1, round(num_rows * MEAN_OVER))


def write_curves(view: RunView, path: Path) -> None:
    """Draw a run's curves and write them as the whole file `path`, a PNG.

    Raises:
        UsageError: `path` does not end in .png.
        CheckpointError: it cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"--out {path}: expected a name that ends in .png")
    try:
        with warnings.catch_warnings(), replaced_file(path) as beside:
            warnings.simplefilter("ignore")  # of a run's name in letters that the font has not
            draw_curves(view).savefig(beside, format="png", dpi=DPI)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot write the curves ({error.strerror}); name a place in a folder that you may write to"
        ) from error


def draw_curves(view: RunView) -> Figure:
    """Draw panels over the same steps: losses, validations, learning rate, and shares of the time by site."""
    strips = {site.name: site.rows for site in view.read_sites if site.rows is not None}
    strips = dict(list(strips.items())[:MAX_STRIPS])
    heights = [3.0, 2.4, 1.1, *([0.75] * len(strips))]
    layout = ConstrainedLayoutEngine(h_pad=0.06, hspace=0.02)
    figure = Figure(figsize=(WIDTH_IN, sum(heights) + 1.9), layout=layout)
    FigureCanvasAgg(figure)
    panels: list[Axes] = list(figure.subplots(len(heights), sharex=True, height_ratios=heights))
    figure.suptitle(_title(view), x=0.012, ha="left", fontsize=13, fontweight="bold", color=INK)
    styles = {site.name: _style(index) for index, site in enumerate(view.sites)}
    _draw_losses(panels[0], view.furthest, styles)
    _draw_validations(panels[1], view, styles)
    _draw_learning_rate(panels[2], view.furthest)
    for panel, (name, rows) in zip(panels[3:], strips.items(), strict=True):
        _draw_times(panel, name, rows)
    if strips:
        # Taller than a strip: it may hang over the next ones.
        _add_legend(panels[3], "share of time", reverse=True).set_in_layout(False)
    for panel in panels:
        _tidy(panel)
    panels[-1].set_xlabel("step")
    panels[-1].set_xlim(0, max([1, *(site.num_done or 0 for site in view.read_sites)]) * 1.02)
    figure.align_ylabels(panels)
    return figure


def _title(view: RunView) -> str:
    experiment = f"Experiment {view.experiment}" if view.experiment else "Experiment not known"
    length = f" of {view.num_steps:,}" if view.num_steps else ""
    progress = f"{view.num_done:,}{length} steps" if view.num_done else "no step yet"
    return _plain(f"{experiment}, run {view.run.absolute().name}: {progress}")


def _plain(text: str) -> str:
    """Return text as it stands: a pair of dollar signs would otherwise be typeset as a formula."""
    return text.replace("$", r"\$")


def _style(index: int) -> Style:
    """Return the colour and kind of line of a site."""
    return {"color": COLORS[index % len(COLORS)], "linestyle": LINES[index // len(COLORS) % len(LINES)]}


def _draw_losses(panel: Axes, site: SiteView | None, styles: Mapping[str, Style]) -> None:
    panel.set_ylabel("training loss")
    rows = site.rows if site else None
    finite = {
        name: losses for name, losses in (rows.loss_of_site.items() if rows else ()) if np.isfinite(losses).any()
    }
    if rows is None or not finite:
        _say_empty(panel, "no finite loss yet" if rows else "no step yet")
        return
    width = mean_width(len(rows.steps))
    shown = thinned(len(rows.steps))
    bounds = []
    for name, losses in finite.items():
        means = running_mean(losses, width)
        style = styles.get(name, _style(len(styles)))
        panel.plot(rows.steps[shown], losses[shown], color=style["color"], alpha=0.16, linewidth=0.6, zorder=1)
        _plot(panel, rows.steps[shown], means[shown], label=_plain(name), zorder=3, **style)
        # One bad batch shall not flatten all curves.
        bounds += [*np.nanpercentile(losses, [0.5, 99.5]), np.nanmin(means), np.nanmax(means)]
    low, high = min(bounds), max(bounds)
    air = 0.06 * (high - low) or max(0.05, 0.05 * abs(high))
    panel.set_ylim(low - air, high + air)
    _add_legend(panel, f"loss by site\n({f'mean over {width:,} steps' if width > 1 else 'each step'})")


def _draw_validations(panel: Axes, view: RunView, styles: Mapping[str, Style]) -> None:
    panel.set_ylabel("validation,\nmacro AUROC")
    agreed: dict[int, float] = {}
    for site in view.read_sites:
        agreed |= {row.step: row.agreed_auroc for row in site.validations if row.agreed_auroc is not None}
        aurocs = {row.step: row.macro_auroc for row in site.validations if row.macro_auroc is not None}
        if aurocs:
            points: Style = {"marker": "o", "markersize": 2.5, "linewidth": 1.1, **styles[site.name]}
            panel.plot(list(aurocs), list(aurocs.values()), label=_plain(site.name), **points)
    if agreed:
        steps = sorted(agreed)
        panel.plot(steps, [agreed[step] for step in steps], color=INK, linewidth=2.0, label="agreed", zorder=4)
    best = view.best_step
    if best in agreed:
        label = f"best: {agreed[best]:.3f}\nafter step {best:,}"
        star: Style = {"marker": "*", "markersize": 14, "linestyle": "none", "markeredgecolor": INK}
        panel.plot([best], [agreed[best]], markerfacecolor="#F0E442", label=label, clip_on=False, zorder=5, **star)
    if not panel.lines:
        _say_empty(panel, "no validation yet")
        return
    _add_legend(panel, "macro AUROC")


def _draw_learning_rate(panel: Axes, site: SiteView | None) -> None:
    panel.set_ylabel("learning\nrate")
    if site is None or site.rows is None:
        _say_empty(panel, "no step yet")
        return
    shown = thinned(len(site.rows.steps))
    _plot(panel, site.rows.steps[shown], site.rows.learning_rate[shown], color=INK)
    panel.set_ylim(bottom=0)
    panel.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    panel.yaxis.get_offset_text().set(size=8, color=INK)


def _draw_times(panel: Axes, name: str, rows: Rows) -> None:
    """Draw the share of the time that each part of a step took, running means in per cent."""
    width, shown = mean_width(len(rows.steps)), thinned(len(rows.steps))
    parts = {"averaging": rows.averaging_s, "data": rows.data_s, "compute": rows.compute_s}
    times_s = {part: running_mean(seconds, width)[shown] for part, seconds in parts.items()}
    total_s = np.sum(list(times_s.values()), axis=0)
    total_s[total_s == 0] = 1.0
    shares = [100 * part_s / total_s for part_s in times_s.values()]
    panel.stackplot(rows.steps[shown], *shares, colors=list(SHADES.values()), labels=list(SHADES))
    panel.set_ylim(0, 100)
    panel.set_yticks([0, 50, 100])
    panel.set_ylabel("time, %")
    panel.set_title(_plain(name), loc="left", fontsize=8, color=INK, pad=2)


def _plot(panel: Axes, steps: NDArray[np.int64], values: Values, **style: Any) -> None:
    """Draw a curve; a single point as a dot, which a line would not show."""
    panel.plot(steps, values, linewidth=1.6, marker="o" if len(steps) == 1 else "", **style)


def _add_legend(panel: Axes, title: str, reverse: bool = False) -> Any:
    """Add a legend on the right; of many sites it names the first."""
    handles, labels = panel.get_legend_handles_labels()
    if len(labels) > MAX_NAMED_SITES:
        handles, labels = handles[:MAX_NAMED_SITES], [*labels[: MAX_NAMED_SITES - 1], "… and others"]
    return panel.legend(
        handles,
        labels,
        title=title,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.02),
        frameon=False,
        fontsize=8.5,
        title_fontsize=8.5,
        alignment="left",
        borderaxespad=0.0,
        reverse=reverse,
    )


def _say_empty(panel: Axes, why: str) -> None:
    panel.set_yticks([])
    panel.text(0.5, 0.5, why, transform=panel.transAxes, ha="center", va="center", color=FAINT, fontsize=10)


def _tidy(panel: Axes) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(FAINT)
    panel.tick_params(colors=INK, labelsize=8, length=3)
    panel.yaxis.label.set(size=9, color=INK)
    panel.grid(axis="y", color=FAINT, alpha=0.22, linewidth=0.5)
    panel.set_axisbelow(True)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
