"""The tables of a comparison: which rows they have, how a number is written, and what is undefined."""

import re
from collections.abc import Iterator
from io import StringIO

import pytest
from rich.console import Console

from cxr_hvd.experiment.comparison import Comparison, Estimate
from cxr_hvd.report.format import as_bytes, as_difference, as_p, as_score, estimate
from cxr_hvd.report.page import build_page
from cxr_hvd.report.tables import (
    difference_rows,
    exchange_rows,
    label_set_rows,
    main_differences,
    overview_rows,
)
from cxr_hvd.report.text_tables import console_table, markdown
from tests.helpers.comparisons import DEFINED, HOSTILE, make_comparison, make_tree, read


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return make_comparison()


def test_interval_that_is_missing_keeps_value_and_note() -> None:
    cell = estimate(Estimate(value=0.5, low=None, high=None, by_seed=(0.5,), note="one patient"), as_score)
    assert (cell.text, cell.note) == ("0.500", "no interval: one patient")
    nothing = Estimate(value=None, low=None, high=None, by_seed=(None, None), note=None)
    for note in (None, "no study"):
        cell = estimate(nothing, as_score, note)
        assert (cell.text, cell.note) == ("", note or "undefined")
    assert estimate(None, as_score).note == "not measured"


def markdown_tables(text: str) -> Iterator[list[list[str]]]:
    for block in text.split("\n\n"):
        if block.startswith("|"):
            yield [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]


def test_markdown_tables_have_equal_rows(comparison: Comparison) -> None:
    text = markdown(comparison)
    found = list(markdown_tables(text))
    assert len(found) == 6 + 2
    for rows in found:
        assert len(rows) > 2 and len({len(row) for row in rows}) == 1, rows[0]
        assert all(re.fullmatch(r" ?-+:? ?", cell) for cell in rows[1])
        assert all(cell.strip() for row in rows for cell in row)
    assert HOSTILE not in text and "<" not in text and "st. &lt;b&gt;&amp;\\$\\|\\$\\_x\\_" in text
    assert [cell.strip() for cell in found[-1][0][3:]] == ["AUROC, A", "AUROC, B", "AUROC, C", "AUROC, D"]
    overview = overview_rows(comparison)
    assert len(found[1]) == 2 + len(overview.rows) and len(found[1][0]) == len(overview.columns)


def test_markdown_makes_no_link(comparison: Comparison) -> None:
    evil = comparison.model_copy(update={"notes": ("[a](https://evil.example) ![b](x) `c` *d*\n# e",)})
    last = markdown(evil).strip().splitlines()[-1]
    assert "](" not in last.replace(r"]\(", "") and "://" not in last and r"\`c\` \*d\* # e" in last


def test_console_table_shows_names_as_they_stand() -> None:
    comparison = make_comparison(sites=("[red]nih[/red]", "two"), names=("A", "C"), undefined_sites=("two",))
    console = Console(file=StringIO(), width=200, force_terminal=False)
    console.print(console_table(comparison))
    output = console.file.getvalue()
    assert "[red]nih[/red]" in output and "one class only: 12 absent" in output


def test_main_differences_are_the_study_s_and_each_variant_s_own() -> None:
    tree = make_tree()
    first = tree["differences"][0]
    for b in ("A", "C", "D"):
        tree["differences"].append({**first, "a": "D-head", "b": b, "split": "test"})
    new = read(tree)
    pairs = {(pair.a, pair.b) for pair in main_differences(new)}
    assert pairs == {("C", "A"), ("D", "A"), ("D", "C"), ("D", "B"), ("D-head", "D")}
    assert {pair.split for pair in main_differences(new)} == {"test"}
    only = read({**tree, "differences": [{**first, "a": "D-head", "b": "A", "split": "validate"}]})
    assert main_differences(only) == list(only.differences)


def test_every_row_says_which_labels_its_means_are_over(comparison: Comparison) -> None:
    """A row each for all labels with both classes and for the frequent ones; one where these are the same."""
    few = "with 10 present and 10 absent or more"
    rows = [[cell.text for cell in row[:3]] for row in overview_rows(comparison).rows]
    assert rows[:2] == [["nih", "A", "5 labels with both classes"], ["nih", "A", f"2 labels {few}"]]
    tree = make_tree()
    for result in tree["results"]:
        result["frequent"] = {name: result[name] for name in result["frequent"]}
    assert {row[2].text for row in overview_rows(read(tree)).rows} == {
        f"5 labels, all {few}",
        f"3 labels, all {few}",
    }
    differences = [row[2].text for row in difference_rows(comparison).rows]
    assert differences[:2] == ["5 labels with both classes", f"2 labels {few}"]
    assert differences[-1] == f"each site's labels {few}"
    assert label_set_rows(comparison).rows[0][2].text == ", ".join(DEFINED[:2])
    text = " ".join(build_page(comparison, {}).split())
    assert "means over one set of labels" in text and f"of these, {few}" in text
    assert "2 labels with 10 present" in markdown(comparison)


def test_exchange_is_in_order_of_bytes(comparison: Comparison) -> None:
    names = [row[0].text for row in exchange_rows(comparison).rows]
    assert names[:2] == ["A", "D"] and set(names[-2:]) == {"B", "C"}


def test_numbers_are_written_as_they_are_read() -> None:
    assert [as_difference(value) for value in (0.0124, -0.0124, -0.0004)] == ["+0.012", "−0.012", "0.000"]
    assert [as_p(value) for value in (0.0341, 0.00049, 0.834, 0.9999)] == [
        "p = 0.034",
        "p < 0.001",
        "p = 0.83",
        "p > 0.99",
    ]
    assert [as_bytes(value) for value in (0, 0.0, 999, 28_110_000, 4.95e9, None)] == [
        "0",
        "0",
        "999 B",
        "28.1 MB",
        "4.95 GB",
        "not known",
    ]
