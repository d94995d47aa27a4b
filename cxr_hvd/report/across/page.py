"""The report of results across sites: a plain page of tables, and the overview for a terminal.

There are no curves, which need scores, and nothing of how runs were trained: a site sees its own run folders
alone. All that comes from a comparison is escaped.
"""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich.table import Table

from cxr_hvd.errors import CheckpointError
from cxr_hvd.experiment.across.comparison import AcrossComparison
from cxr_hvd.files import write_text
from cxr_hvd.report.across.histograms import draw_histograms
from cxr_hvd.report.across.tables import difference_rows, list_tables, overview_rows
from cxr_hvd.report.format import ReportTable, as_named
from cxr_hvd.report.page import PAGE
from cxr_hvd.report.text_tables import as_terminal_table

_HERE = Path(__file__).parents[1] / "templates"

EXPLANATION = (
    "Each site judged the networks on its own test patients and sent what they are worth and how chance moves "
    "that over these patients: no image, no score. Means are over the labels that at least 10 of a site's "
    "patients have and 10 have not; of other labels nothing was sent. Intervals are of 95%, over patients and "
    "seeds (Student's t); those of differences in single labels over patients alone (DeLong)."
)


def write_across_page(comparison: AcrossComparison, folder: Path) -> Path:
    """Write report.html into a folder; return its path.

    Raises:
        CheckpointError: it cannot be written there.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("across.html.jinja").render(
        style=Markup((_HERE / "report.css").read_text(encoding="utf-8")),
        title=f"{as_named(len(comparison.experiments), 'set-up')} compared across sites",
        explanation=EXPLANATION,
        comparison=comparison,
        tables=list_tables(comparison),
        histograms=draw_histograms(comparison),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / PAGE, page)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot write the report ({error.strerror}); name a folder that you may write to"
        ) from error
    return folder / PAGE


def across_console_tables(comparison: AcrossComparison) -> list[Table]:
    """Lay out the overview and the differences for a terminal."""
    tables: list[ReportTable] = [overview_rows(comparison), difference_rows(comparison)]
    return [as_terminal_table(table) for table in tables if table.rows]
