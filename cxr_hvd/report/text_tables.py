"""A comparison's tables as text: Markdown for documents, and the overview for a terminal."""

import re
from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from cxr_hvd.experiment.comparison import Comparison
from cxr_hvd.report.format import Cell, ReportTable, as_count, shown
from cxr_hvd.report.tables import (
    MAIN,
    choose_setups,
    difference_rows,
    exchange_rows,
    label_rows,
    label_set_rows,
    matrix_rows,
    overview_rows,
    policy_rows,
)


def markdown(comparison: Comparison) -> str:
    """Write the main tables as GitHub Markdown: per label for experiments A to D alone."""
    parts = [
        label_set_rows(comparison),
        overview_rows(comparison),
        difference_rows(comparison),
        policy_rows(comparison, choose_setups(comparison)),
        matrix_rows(comparison),
        exchange_rows(comparison),
        *(label_rows(comparison, site, MAIN) for site in comparison.site_names),
    ]
    blocks = [_markdown_table(table) for table in parts if table.rows]
    notes = [f"- {_in_markdown(shown(note, 1000))}" for note in comparison.notes]
    return "\n\n".join([*blocks, *(["\n".join(notes)] if notes else [])]) + "\n"


def console_table(comparison: Comparison) -> Table:
    """Lay out the overview for a terminal."""
    resamples = as_count(comparison.num_resamples)
    drawn = "patients and seeds" if any(len(setup.seeds) > 1 for setup in comparison.experiments) else "patients"
    caption = f"{resamples} resamples of {drawn}"
    return as_terminal_table(overview_rows(comparison), "Mean over seeds [95% interval]", caption, 7)


def as_terminal_table(
    rows: ReportTable, title: str = "", caption: str = "", num_columns: int | None = None
) -> Table:
    """Lay out a table whose rows are grouped by their first column, or its first columns, for a terminal."""
    table = Table(title=title or rows.title, title_justify="left", caption=caption or None, caption_justify="left")
    for number, column in enumerate(rows.columns[:num_columns]):
        table.add_column(column, justify="left" if number < rows.num_texts else "right")
    site = None
    for row in rows.rows:
        if site not in (None, row[0].text):
            table.add_section()
        first = "" if row[0].text == site else row[0].text
        site = row[0].text
        table.add_row(Text(first), *(_in_terminal(cell) for cell in row[1:num_columns]))
    return table


def _markdown_table(table: ReportTable) -> str:
    sides = ["---"] * table.num_texts + ["--:"] * (len(table.columns) - table.num_texts)
    rows = [[_in_markdown(" — ".join(filter(None, (cell.text, cell.note)))) for cell in row] for row in table.rows]
    lines = [_line(map(_in_markdown, table.columns)), _line(sides, "|"), *map(_line, rows)]
    return "\n".join([f"**{_in_markdown(table.title)}**", "", *lines])


def _line(cells: Iterable[str], between: str = " | ") -> str:
    return f"|{between.strip().join(cells)}|" if between == "|" else f"| {between.join(cells)} |"


def _in_markdown(text: str) -> str:
    """Return text that GitHub shows as it stands: no HTML, formula, link, emphasis, nor a column of its own."""
    escaped = re.sub(r"([\\`*_|$~])", r"\\\1", text).replace("](", r"]\(")
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("://", ":&#47;/")


def _in_terminal(cell: Cell) -> Text:
    note = f" ({cell.note})" if cell.note and cell.text else cell.note
    return Text.assemble(cell.text, (note, "dim"))
