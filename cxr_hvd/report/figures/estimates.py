"""Figures of estimates: each set-up, and each pair of them, as a value with its interval and its seeds."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cxr_hvd.monitor.curves import COLORS, FAINT, INK
from cxr_hvd.report.figures.panels import (
    MAX_NAME,
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
    is_number,
    shown,
)
from cxr_hvd.report.tables import Comparison, main_differences, said_place, site_names

ROW_IN = 0.25

Write = Callable[[float], str]
Found = Mapping[str, Any]


def draw_overview(comparison: Comparison) -> Figure | None:
    """Draw macro AUROC and accuracy of every set-up on every test set, with the all-negative accuracy."""
    sites, names = site_names(comparison), [one["name"] for one in comparison["experiments"]]
    found = {(one["site"], one["experiment"]): one for one in comparison["results"]}
    if not found or not names:
        return None
    labels = [shown(name, MAX_NAME) for name in names]
    left = width_of(labels)
    figure, panels = grid(len(sites), 2, ROW_IN * len(names), left=left, right=0.55, between=0.8)
    for site, (aurocs, accuracies) in zip(sites, panels, strict=True):
        rows = [found.get((site, name)) for name in names]
        _draw_estimates(aurocs, labels, [row and row["macro_auroc"] for row in rows], as_score)
        _draw_estimates(accuracies, [], [row and row["mean_accuracy"] for row in rows], as_percent)
        accuracies.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{round(100 * share, 2):g}%"))
        _draw_all_negative(accuracies, {row["mean_all_negative_accuracy"] for row in rows if row})
        title(aurocs, f"{shown(site, 28)}: macro AUROC")
        title(accuracies, "accuracy at 0.5")
    return figure


def _draw_all_negative(panel: Axes, values: set[Any]) -> None:
    known = sorted(filter(is_number, values))
    for value in known:
        widen(panel, value)
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
    left = width_of(labels)
    figure, panels = grid(len(places), 2, ROW_IN * len(pairs), left=left, right=1.15, between=1.25)
    for place, (aurocs, points) in zip(places, panels, strict=True):
        of_pair = {(one["a"], one["b"]): one for one in rows if one["site"] == place}
        here = [of_pair.get(pair) for pair in pairs]
        _draw_estimates(aurocs, labels, [one and one["macro_auroc"] for one in here], as_difference)
        _draw_estimates(points, [], [one and one["mean_accuracy"] for one in here], as_points)
        for panel, factor in ((aurocs, 1), (points, 100)):
            widen(panel, 0.0)
            panel.axvline(0.0, color=FAINT, linewidth=1.0, zorder=1)
            panel.xaxis.set_major_formatter(FuncFormatter(lambda at, _, factor=factor: _signed(factor * at)))
        title(aurocs, f"{said_place(shown(place, 22), rows[0]['split'])}: macro AUROC")
        title(points, "accuracy, points")
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
