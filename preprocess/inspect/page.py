"""Write the page of `inspect --html`: one file, no script, nothing fetched; light and dark.

Sites stand side by side, each in a color of its own. Order and layout stand in page.html.jinja and page.css. All
that comes from a file is escaped.
"""

from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cxr_hvd.errors import DataError
from cxr_hvd.files import write_text
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile
from preprocess.inspect.contact_sheet import Tile, draw_tiles
from preprocess.inspect.distances import SHADES
from preprocess.inspect.inspection import InspectedFile, Inspection
from preprocess.inspect.tables import format_prevalence

_HERE = Path(__file__).parent
_NUM_COLORS = 4
# A distance of so many times what chance gives is set in bold.
_FAR = 3.0
_CURVE_WIDTH, _CURVE_HEIGHT = 1000, 180


def write_page(path: Path, inspection: Inspection, seed: int) -> None:
    """Write the page of one or more study files, readable by its owner only: it shows images of patients.

    Args:
        path: the page. seed: of the studies that are shown.

    Raises:
        DataError: the page cannot be written.
    """
    text = _build_page(inspection, seed)
    try:
        write_text(path, text)
    except OSError as error:
        raise DataError(f"{path}: cannot write the page here ({error.strerror}); choose another --html") from error


def _build_page(inspection: Inspection, seed: int) -> str:
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "fixed": lambda value, digits: f"{value:,.{digits}f}",
        "percent": lambda share, digits=1: f"{share:.{digits}%}",
        "prevalence": format_prevalence,
    }
    files, distances = inspection.files, inspection.distances
    return environment.get_template("page.html.jinja").render(
        files=files,
        distances=distances,
        pair=distances[0] if len(distances) == 1 else None,
        label_names=dict.fromkeys(name for file in files for name in file.summary.labels),
        site_by_file={file.summary.file: file.summary.site for file in reversed(files)},
        curves=_shade_curves(files),
        curve_width=_CURVE_WIDTH,
        curve_height=_CURVE_HEIGHT,
        sheets=[_draw_sheets(file.path, seed) for file in files],
        colors=[f"var(--s{number % _NUM_COLORS})" for number in range(len(files))],
        seed=seed,
        far=_FAR,
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
    )


def _shade_curves(files: tuple[InspectedFile, ...]) -> list[str]:
    """Return the points of each file's histogram of gray shades, on one scale, as SVG wants them."""
    histograms = [file.sample.shades_MS.mean(0) for file in files]
    top = max(np.quantile(shades_S, 0.985) for shades_S in histograms) * 1.15
    curves = []
    for shades_S in histograms:
        ys = _CURVE_HEIGHT - np.minimum(1.0, shades_S / top) * _CURVE_HEIGHT
        xs = np.arange(SHADES) * _CURVE_WIDTH / (SHADES - 1)
        curves.append(" ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True)))
    return curves


def _draw_sheets(path: Path, seed: int) -> dict[str, list[Tile]]:
    """Return the contact sheet of each split that has studies."""
    with StudyFile(path) as file:
        sheets = {split.name.lower(): draw_tiles(file, split, seed) for split in Split}
    return {split: tiles for split, tiles in sheets.items() if tiles}
