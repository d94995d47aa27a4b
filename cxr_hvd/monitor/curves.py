"""The curves of a run as one picture: losses, validations, learning rate, and where the time goes, over its steps.

Owns what is drawn and how. A long run is thinned for drawing; its means are taken over all rows that were read.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from cxr_hvd.errors import CheckpointError, UsageError
from cxr_hvd.files import replaced_file
from cxr_hvd.monitor.view import Rows, RunView, SiteView, Values

MAX_POINTS = 2000
MEAN_OVER = 1 / 50  # of the rows
MAX_STRIPS = 4
MAX_EPOCH_MARKS = 40
MAX_NAMED_TWICE = 4
LEGEND_ROWS = 16
DPI = 150
WIDTH_IN = 10.0

# Okabe and Ito's palette, told apart with every kind of colour vision. Beyond it, sites differ by their line.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES = ("-", "--", "-.", ":")
# Light to dark, so that gray is enough to tell them apart.
SHADES = {"compute": "#D5DCE4", "data": "#93A8BD", "averaging": "#3B5068"}
INK, FAINT = "#222222", "#8A8A8A"


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
    """Draw four panels over the same steps: losses, validations, learning rate, and shares of the time by site."""
    told = [(site.name, site.rows) for site in view.read_sites if site.rows is not None]
    strips = told[:MAX_STRIPS]
    heights = [3.0, 2.4, 1.1, *([0.75] * max(1, len(strips)))]
    layout = ConstrainedLayoutEngine(h_pad=0.06, hspace=0.02)
    figure = Figure(figsize=(WIDTH_IN, sum(heights) + 1.9), layout=layout)
    FigureCanvasAgg(figure)
    panels: list[Axes] = list(figure.subplots(len(heights), sharex=True, height_ratios=heights))
    figure.suptitle(_title(view), x=0.012, ha="left", fontsize=13, fontweight="bold", color=INK)
    lines = {site.name: _line(index) for index, site in enumerate(view.sites)}
    _draw_losses(panels[0], view.furthest, lines)
    _draw_validations(panels[1], view, lines)
    _draw_learning_rate(panels[2], view.furthest)
    _draw_times(panels[3:], strips, len(told))
    _mark_epochs(panels, view)
    for panel in panels:
        _tidy(panel)
    panels[-1].set_xlabel("step")
    panels[-1].set_xlim(0, _last_step(view))
    figure.align_ylabels(panels)
    return figure


def _title(view: RunView) -> str:
    experiment = f"Experiment {view.experiment}" if view.experiment else "Experiment not known"
    of = f" of {view.num_steps:,}" if view.num_steps else ""
    far = f"{view.num_done:,}{of} steps" if view.num_done else "no step yet"
    return _shown(f"{experiment}, run {view.run.absolute().name}: {far}")


def _shown(text: str) -> str:
    """Return text as it stands: a pair of dollar signs would otherwise be typeset as a formula."""
    return text.replace("$", r"\$")


def _line(index: int) -> dict[str, Any]:
    """Return the colour and kind of line of a site."""
    return {"color": COLORS[index % len(COLORS)], "linestyle": LINES[index // len(COLORS) % len(LINES)]}


def _last_step(view: RunView) -> int:
    """Return the right end of all panels: what has been done, with a little air, but never past the last step."""
    done = max([site.num_done or 0 for site in view.read_sites], default=0)
    end = max(1, round(done * 1.02))
    return min(end, view.num_steps) if view.num_steps and view.num_steps >= done > 0 else end


def _draw_losses(panel: Axes, site: SiteView | None, lines: dict[str, dict[str, Any]]) -> None:
    panel.set_ylabel("training loss")
    if site is None or site.rows is None:
        _say_empty(panel, "no step yet")
        return
    rows = site.rows
    width = mean_width(len(rows.steps))
    shown = thinned(len(rows.steps))
    means, extremes = {}, []
    for name, losses in rows.loss_of_site.items():
        if not np.isfinite(losses).any():
            continue
        means[name] = running_mean(losses, width)
        line = lines.get(name, _line(len(lines)))
        raw = losses[shown]
        panel.plot(rows.steps[shown], raw, color=line["color"], alpha=0.16, linewidth=0.6, zorder=1)
        _plot(panel, rows.steps[shown], means[name][shown], label=_shown(name), zorder=3, **line)
        finite = losses[np.isfinite(losses)]
        # One bad batch shall not flatten all curves.
        extremes += [*np.percentile(finite, [0.5, 99.5]), np.nanmin(means[name]), np.nanmax(means[name])]
    if not means:
        _say_empty(panel, "no finite loss yet")
        return
    low, high = min(extremes), max(extremes)
    air = 0.06 * (high - low) or max(0.05, 0.05 * abs(high))
    panel.set_ylim(low - air, high + air)
    span = round((int(rows.steps[-1]) - int(rows.steps[0]) + 1) * width / len(rows.steps))
    over = f"mean over {span:,} steps" if span > 1 else "each step"
    _legend(panel, f"loss by site\n({over})")


def _draw_validations(panel: Axes, view: RunView, lines: dict[str, dict[str, Any]]) -> None:
    panel.set_ylabel("validation,\nmacro AUROC")
    agreed: dict[int, float] = {}
    for site in view.read_sites:
        rows = [site.validations[index] for index in thinned(len(site.validations))] if site.validations else []
        agreed |= {row.step: row.agreed_auroc for row in rows if row.agreed_auroc is not None}
        known = [(row.step, row.macro_auroc) for row in rows if row.macro_auroc is not None]
        if known:
            steps, aurocs = zip(*known, strict=True)
            line = lines[site.name]
            label = _shown(site.name) if len(view.sites) <= MAX_NAMED_TWICE else "_"
            panel.plot(steps, aurocs, marker="o", markersize=2.5, linewidth=1.1, label=label, **line)
    if agreed:
        steps_agreed = sorted(agreed)
        values = [agreed[step] for step in steps_agreed]
        panel.plot(steps_agreed, values, color=INK, linewidth=2.0, label="agreed", zorder=4)
        best = view.best_step
        if best in agreed:
            label = f"best: {agreed[best]:.3f}\nafter step {best:,}"
            panel.plot(
                [best],
                [agreed[best]],
                marker="*",
                markersize=14,
                linestyle="none",
                markerfacecolor="#F0E442",
                markeredgecolor=INK,
                label=label,
                clip_on=False,
                zorder=5,
            )
    if not panel.lines:
        _say_empty(panel, "no validation yet")
        return
    _legend(panel, "macro AUROC" if len(view.sites) <= MAX_NAMED_TWICE else "macro AUROC\n(sites as above)")


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


def _draw_times(panels: Sequence[Axes], strips: Sequence[tuple[str, Rows]], num_sites: int) -> None:
    if not strips:
        panels[0].set_ylabel("share of\ntime, %")
        _say_empty(panels[0], "no step yet")
        return
    for panel, (name, rows) in zip(panels, strips, strict=True):
        steps, shares = _shares_of(rows)
        panel.stackplot(steps, *shares.values(), colors=[SHADES[name] for name in shares], labels=list(shares))
        panel.set_ylim(0, 100)
        panel.set_yticks([0, 50, 100])
        panel.set_ylabel("time, %")
        panel.set_title(_shown(name), loc="left", fontsize=8, color=INK, pad=2)
    more = f"\n(first {len(strips)} of {num_sites} sites)" if num_sites > len(strips) else ""
    # Taller than a strip: it may hang over the next ones.
    _legend(panels[0], f"share of time{more}", reverse=True).set_in_layout(False)


def _shares_of(rows: Rows) -> tuple[NDArray[np.int64], dict[str, Values]]:
    """Return thinned steps and the share of the time that each part took, running means in per cent."""
    width = mean_width(len(rows.steps))
    shown = thinned(len(rows.steps))
    spent = {
        "averaging": running_mean(rows.averaging_s, width)[shown],
        "data": running_mean(rows.data_s, width)[shown],
        "compute": running_mean(rows.compute_s, width)[shown],
    }
    total = np.sum(list(spent.values()), axis=0)
    total[total == 0] = 1.0
    return rows.steps[shown], {name: 100 * part / total for name, part in spent.items()}


def _mark_epochs(panels: Sequence[Axes], view: RunView) -> None:
    """Draw a faint line where an epoch ends, with its number, where they are few enough to be told apart."""
    if not view.steps_per_epoch:
        return
    num_ended = _last_step(view) // view.steps_per_epoch
    if not 1 <= num_ended <= MAX_EPOCH_MARKS:
        return
    ends = [view.steps_per_epoch * number for number in range(1, num_ended + 1)]
    for panel in panels:
        for end in ends:
            panel.axvline(end, color=FAINT, linewidth=0.5, alpha=0.35, zorder=0)
    above = panels[0].secondary_xaxis("top")
    above.set_xticks(ends, ["epoch 1", *map(str, range(2, num_ended + 1))])
    above.tick_params(length=0, labelsize=7.5, colors=FAINT, pad=1)
    above.spines["top"].set_visible(False)


def _plot(panel: Axes, steps: NDArray[np.int64], values: Values, **line: Any) -> None:
    """Draw a curve; a single point as a dot, which a line would not show."""
    panel.plot(steps, values, linewidth=1.6, marker="o" if len(steps) == 1 else "", **line)


def _legend(panel: Axes, title: str, reverse: bool = False) -> Legend:
    return panel.legend(
        title=title,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.02),
        frameon=False,
        fontsize=8.5,
        title_fontsize=8.5,
        alignment="left",
        borderaxespad=0.0,
        reverse=reverse,
        ncols=1 + len(panel.get_legend_handles_labels()[0]) // LEGEND_ROWS,
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
