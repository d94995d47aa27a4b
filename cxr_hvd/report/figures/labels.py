"""Figures of curves: ROC and calibration of the labels, and the losses of training."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cxr_hvd.experiment.comparison import Comparison, JudgedLabel
from cxr_hvd.monitor.curves import COLORS, FAINT
from cxr_hvd.report.figures.panels import (
    MAX_NAME,
    NAMED_IN,
    grid,
    legend,
    line_of,
    say_empty,
    tidy,
    unit_square,
    used,
)
from cxr_hvd.report.figures.setups import DIM, color_of
from cxr_hvd.report.format import UNDEFINED, shown
from cxr_hvd.report.tables import choose_setups

COLUMNS = 4
NUM_BINS = 10


def draw_roc(comparison: Comparison, site: str) -> Figure | None:
    """Draw the ROC curve of each label that is defined on a site's test studies, set-ups over each other."""
    curves = {
        place: (label, (roc.false_positive, roc.true_positive, roc.low, roc.high))
        for place, label in _chosen_labels(comparison, site).items()
        if (roc := label.roc)
    }
    axes = ("false positive rate", "true positive rate")
    return _draw_curves(comparison, curves, f"{shown(site, 40)}: ROC curves", axes, False)


def draw_precision(comparison: Comparison, site: str) -> Figure | None:
    """Draw the precision-recall curve of each label that is defined on a site's test studies.

    The dotted line is the share of studies with the label: what guessing gives.
    """
    curves = {
        place: (label, (curve.recall, curve.precision, curve.low, curve.high))
        for place, label in _chosen_labels(comparison, site).items()
        if (curve := label.precision)
    }
    axes = ("recall (sensitivity)", "precision (PPV)")
    return _draw_curves(comparison, curves, f"{shown(site, 40)}: precision-recall curves", axes, True)


def _chosen_labels(comparison: Comparison, site: str) -> dict[tuple[str, str], JudgedLabel]:
    """Return the labels of the set-ups that are shown, by set-up and label."""
    names = choose_setups(comparison)
    return {
        (result.experiment, label.label): label
        for result in comparison.results
        if result.site == site and result.experiment in names
        for label in result.labels
    }


def _draw_curves(
    comparison: Comparison,
    curves: Mapping[tuple[str, str], tuple[JudgedLabel, tuple[Sequence[float], ...]]],
    heading: str,
    axes: tuple[str, str],
    is_precision: bool,
) -> Figure | None:
    """Draw a panel for each label: of every set-up across, the mean, the lowest and the highest seed."""
    names = choose_setups(comparison)
    labels: dict[str, JudgedLabel] = {}
    for (_, name), (label, _) in curves.items():
        labels.setdefault(name, label)
    if not labels:
        return None
    num_rows = -(-len(labels) // COLUMNS)
    figure, panels = grid(
        num_rows, COLUMNS, 1.5, left=0.55, right=0.1, between=0.18, below=0.42, top=0.86, bottom=NAMED_IN
    )
    for number, (panel, of_label) in enumerate(zip(used(panels, len(labels)), labels, strict=True)):
        for index, name in enumerate(names):
            if (name, of_label) in curves:
                (across, mean, low, high), line = curves[name, of_label][1], line_of(index)
                panel.fill_between(across, low, high, color=line["color"], alpha=0.16, linewidth=0)
                panel.plot(across, mean, linewidth=1.2, **line)
        panel.set_title(shown(of_label, 27), fontsize=7.5, loc="left", pad=12)
        num_present, num_studies = labels[of_label].num_present, labels[of_label].num_studies
        present = f"{num_present:,} of {num_studies:,} present"
        panel.text(0, 1.03, present, transform=panel.transAxes, fontsize=6.8, color=DIM)
        share = num_present / num_studies if num_studies else 0.0
        is_left, is_bottom = number % COLUMNS == 0, number + COLUMNS >= len(labels)
        unit_square(panel, is_left, is_bottom, (share, share) if is_precision else (0, 1))
        panel.set_xlabel(axes[0] if is_bottom else "", fontsize=7.5)
        panel.set_ylabel(axes[1] if is_left else "", fontsize=7.5)
    figure.text(0.012, 1 - 0.15 / figure.get_figheight(), heading, fontsize=9, weight="bold", va="center")
    legend(figure, 0.24, [(shown(name, MAX_NAME), line_of(index)) for index, name in enumerate(names)])
    return figure


def draw_calibration(comparison: Comparison) -> Figure | None:
    """Draw how often a label is present where a network gives it some probability, over all labels and each."""
    names, sites = choose_setups(comparison), comparison.site_names
    bins_of_labels = {
        (result.site, result.experiment): [label.calibration for label in result.labels if label.calibration]
        for result in comparison.results
        if result.experiment in names
    }
    if not any(bins_of_labels.values()):
        return None
    figure, panels = grid(
        len(sites), COLUMNS, 1.6, left=0.75, right=0.1, between=0.18, below=0.18, top=0.3, bottom=0.45
    )
    for down, (site, row) in enumerate(zip(sites, panels, strict=True)):
        for across, (panel, name) in enumerate(zip(used([row], len(names)), names, strict=True)):
            curves = bins_of_labels.get((site, name), [])
            for bins in curves:
                predicted, present = [point[0] for point in bins], [point[1] for point in bins]
                panel.plot(predicted, present, color=FAINT, alpha=0.45, linewidth=0.7)
            if pooled := pool_bins(curves):
                predicted, present, counts = map(list, zip(*pooled, strict=True))
                panel.plot(predicted, present, color=COLORS[0], linewidth=1.4)
                areas = 4 + 50 * np.sqrt(np.array(counts) / max(counts))
                panel.scatter(predicted, present, s=areas, color=COLORS[0], edgecolor="white", lw=0.5, zorder=3)
            else:
                say_empty(panel, UNDEFINED)
            unit_square(panel, across == 0, down == len(sites) - 1)
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
    for predicted, present, count in (point for bins in curves for point in bins):
        sums[min(int(predicted * num_bins), num_bins - 1)] += (predicted * count, present * count, count)
    return [(at / count, present / count, count) for at, present, count in sums.tolist() if count]


def draw_losses(comparison: Comparison) -> Figure | None:
    """Draw the training loss of every site, a panel for each set-up: seeds thin, their mean thick."""
    rows = [curve for curve in comparison.curves if any(loss is not None for loss in curve.loss)]
    losses = {id(curve): [np.nan if loss is None else loss for loss in curve.loss] for curve in rows}
    drawn = {curve.experiment for curve in rows}
    names = [setup.name for setup in comparison.experiments if setup.name in drawn]
    if not names:
        return None
    known = [site.name for site in comparison.sites]
    trained = dict.fromkeys(curve.site for curve in rows)
    sites = [*(site for site in known if site in trained), *(site for site in trained if site not in known)]
    num_rows = -(-len(names) // COLUMNS)
    figure, panels = grid(
        num_rows, COLUMNS, 1.35, left=0.5, right=0.1, between=0.16, below=0.5, top=0.55, bottom=0.45
    )
    reach = np.concatenate(list(losses.values()))
    low, high = np.nanpercentile(reach, [0.2, 99.8])
    for number, (panel, name) in enumerate(zip(used(panels, len(names)), names, strict=True)):
        for index, site in enumerate(sites):
            runs = [curve for curve in rows if curve.experiment == name and curve.site == site]
            for curve in runs:
                panel.plot(curve.steps, losses[id(curve)], color=color_of(index), alpha=0.4, linewidth=0.6)
            alike = [losses[id(curve)] for curve in runs if curve.steps == runs[0].steps]
            if runs:
                panel.plot(runs[0].steps, np.mean(alike, axis=0), color=color_of(index), linewidth=1.5)
        panel.set_title(shown(name, MAX_NAME), fontsize=9, weight="bold", loc="left")
        panel.set_ylim(low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1))
        tidy(panel)
        panel.xaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
        panel.tick_params(labelleft=number % COLUMNS == 0)
        if number % COLUMNS == 0:
            panel.set_ylabel("training loss")
        if number + COLUMNS >= len(names):
            panel.set_xlabel("step")
    legend(figure, 0.02, [(shown(site, 28), {"color": color_of(index)}) for index, site in enumerate(sites)])
    return figure
