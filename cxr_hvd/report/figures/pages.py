"""The figures of a comparison: how good each set-up is, how set-ups differ, and what each hands over.

Owns which there are, and how they are written: what is in them is that of `estimate_figures`, `network_figures`
and `label_figures`. The same comparison gives the same bytes: no date, fixed ids, matplotlib's own font.
The set-ups themselves are `setup_figure`'s. A figure for which nothing is defined is not drawn.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.figure import Figure

from cxr_hvd.experiment.comparison import Comparison
from cxr_hvd.monitor.curves import FAINT, INK
from cxr_hvd.report.figures.estimates import draw_differences, draw_overview
from cxr_hvd.report.figures.labels import draw_calibration, draw_losses, draw_precision, draw_roc
from cxr_hvd.report.figures.networks import draw_exchange, draw_matrix
from cxr_hvd.report.figures.setups import draw_setups

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
        for number, site in enumerate(comparison.site_names, start=1):
            figures[f"roc-{number}"] = draw_roc(comparison, site)
            figures[f"precision-{number}"] = draw_precision(comparison, site)
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
