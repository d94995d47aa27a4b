"""Figures of estimates: each set-up, and each pair of them, as a value with its interval and its seeds."""

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cxr_hvd.experiment.comparison import Comparison, Estimate, PairedEstimate
from cxr_hvd.monitor.curves import COLORS, FAINT, INK
from cxr_hvd.report.figures.panels import (
    MAX_NAME,
    NAMED_IN,
    grid,
    title,
    widen,
    width_of,
)
from cxr_hvd.report.figures.setups import DIM
from cxr_hvd.report.format import (
    UNDEFINED,
    as_difference,
    as_p,
    as_percent,
    as_points,
    as_score,
    has_p,
    shown,
)
from cxr_hvd.report.tables import main_differences, pair_name, place_name

ROW_IN = 0.25

Write = Callable[[float], str]


def draw_overview(comparison: Comparison) -> Figure | None:
    """Draw macro AUROC and accuracy of every set-up on every test set, with the all-negative accuracy."""
    sites, names = comparison.site_names, [setup.name for setup in comparison.experiments]
    results = {(result.site, result.experiment): result for result in comparison.results}
    if not results or not names:
        return None
    labels = [shown(name, MAX_NAME) for name in names]
    left = width_of(labels)
    figure, panels = grid(len(sites), 2, ROW_IN * len(names), left=left, right=0.55, between=0.8, bottom=NAMED_IN)
    for site, (aurocs, accuracies) in zip(sites, panels, strict=True):
        rows = [results.get((site, name)) for name in names]
        _draw_estimates(aurocs, labels, [row.macro_auroc if row else None for row in rows], as_score)
        _draw_estimates(accuracies, [], [row.mean_accuracy if row else None for row in rows], as_percent)
        accuracies.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{round(100 * share, 2):g}%"))
        _draw_all_negative(accuracies, [row.mean_all_negative_accuracy for row in rows if row])
        title(aurocs, f"{shown(site, 28)}: macro AUROC")
        title(accuracies, "accuracy at 0.5")
    panels[-1][0].set_xlabel("macro AUROC")
    panels[-1][1].set_xlabel("accuracy")
    return figure


def _draw_all_negative(panel: Axes, values: Sequence[float | None]) -> None:
    known = sorted({value for value in values if value is not None})
    for value in known:
        widen(panel, value)
        panel.axvline(value, color=COLORS[1], linewidth=1.2, linestyle="--", zorder=1)
    text = f"dashed: all negative, {', '.join(map(as_percent, known))}" if known else "all negative: undefined"
    panel.text(0, 1.0, text, transform=panel.transAxes, fontsize=7, color="#A84300", va="bottom")


def draw_differences(comparison: Comparison) -> Figure | None:
    """Draw the main paired differences as a forest plot, with interval, p and the line of no difference."""
    rows = main_differences(comparison)
    if not rows:
        return None
    places = list(dict.fromkeys(row.site for row in rows))
    pairs = list(dict.fromkeys((row.a, row.b) for row in rows))
    labels = [pair_name(a, b, MAX_NAME) for a, b in pairs]
    left = width_of(labels)
    figure, panels = grid(len(places), 2, ROW_IN * len(pairs), left=left, right=1.3, between=1.4, bottom=NAMED_IN)
    for place, (aurocs, points) in zip(places, panels, strict=True):
        of_pair = {(row.a, row.b): row for row in rows if row.site == place}
        here = [of_pair.get(pair) for pair in pairs]
        _draw_estimates(aurocs, labels, [row.macro_auroc if row else None for row in here], as_difference)
        _draw_estimates(points, [], [row.mean_accuracy if row else None for row in here], as_points)
        for panel, factor in ((aurocs, 1), (points, 100)):
            widen(panel, 0.0)
            panel.axvline(0.0, color=FAINT, linewidth=1.0, zorder=1)
            panel.xaxis.set_major_formatter(FuncFormatter(lambda at, _, factor=factor: _signed(factor * at)))
        title(aurocs, f"{place_name(shown(place, 22), rows[0].split)}: macro AUROC")
        title(points, "accuracy, points")
    panels[-1][0].set_xlabel("difference of macro AUROC")
    panels[-1][1].set_xlabel("difference of accuracy, percentage points")
    return figure


def _signed(value: float) -> str:
    return f"{round(value, 4):+g}".replace("-", "−") if abs(value) > 1e-9 else "0"


def _draw_estimates(panel: Axes, names: Sequence[str], estimates: Sequence[Estimate | None], write: Write) -> None:
    """Draw a row each: value, interval as a line, seeds as dots below, and the value in words on the right.

    A value whose interval holds 0 is drawn hollow. Where it is undefined its note stands in the row.
    """
    beside = panel.get_yaxis_transform()
    reach: list[float] = []
    for row, estimate in enumerate(estimates):
        if estimate is None or estimate.value is None:
            why = shown((estimate and estimate.note) or UNDEFINED, 44)
            panel.text(0.5, row, why, transform=beside, fontsize=7, color=DIM, ha="center", va="center")
            continue
        seeds = [seed for seed in estimate.by_seed if seed is not None]
        ends = [end for end in (estimate.low, estimate.high) if end is not None]
        reach += [estimate.value, *seeds, *ends]
        panel.plot(ends, [row] * len(ends), color=INK, linewidth=1.6, zorder=2, solid_capstyle="butt")
        is_clear = len(ends) == 2 and not ends[0] <= 0 <= ends[1]
        style: dict[str, Any] = {"markerfacecolor": INK if is_clear else "white", "markeredgecolor": INK}
        panel.plot([estimate.value], [row], "o", markersize=5, zorder=3, **style)
        if len(seeds) > 1:
            below = [row + 0.3] * len(seeds)
            panel.plot(seeds, below, "o", markersize=2.6, color=COLORS[5], markeredgewidth=0, zorder=2)
        p_value = estimate.p_value if isinstance(estimate, PairedEstimate) and has_p(estimate) else None
        p = "" if p_value is None else f"  {as_p(p_value)}"
        panel.text(1.02, row, write(estimate.value) + p, transform=beside, fontsize=7.5, va="center_baseline")
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
