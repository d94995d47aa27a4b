"""What a journal asks stands on the page; what is not there leaves no empty section; p-values want three seeds."""

import copy
from typing import Any

import pytest

from cxr_hvd.experiment.comparison import Comparison
from cxr_hvd.report.clinical import (
    calibration_rows,
    flow_rows,
    group_rows,
    operating_rows,
    subgroup_label_rows,
    subgroup_rows,
)
from cxr_hvd.report.details import label_difference_rows
from cxr_hvd.report.figures.estimates import draw_differences
from cxr_hvd.report.figures.labels import draw_precision
from cxr_hvd.report.figures.pages import drawing, render
from cxr_hvd.report.page import build_page
from cxr_hvd.report.tables import difference_rows
from tests.helpers.comparisons import make_comparison, make_tree, read
from tests.unit.report.test_page import Page

SECTIONS = ("differences", "policies", "matrix", "exchange", "thresholds", "calibration", "subgroups", "labels")


def sections_of(comparison: Comparison) -> tuple[Page, set[str | None]]:
    page = Page(build_page(comparison, {}))
    targets = {(attributes.get("href") or "#")[1:] for attributes in page.all("a")}
    ids = {attributes.get("id") for attributes in page.all("section")}
    assert targets <= ids, "every line of the contents leads somewhere"
    return page, ids


def test_tables_say_what_was_measured() -> None:
    comparison = make_comparison(names=("C", "D"))
    rows = operating_rows(comparison, "nih", ("C", "D")).rows
    assert [cell.text for cell in rows[0]][:5] == ["C", "No Finding", "0", "114", ""]
    assert rows[0][5].note == "no threshold from validation" and rows[0][4].note == "none"
    whole = next(row for row in rows if row[5].text)
    assert whole[4].text == "0.310 to 0.330" and whole[5].text == "62.0% [59.0%, 65.0%]"
    calibration = next(row for row in calibration_rows(comparison, "nih", ("C",)).rows if row[2].text)
    assert [cell.text for cell in calibration[2:4]] == ["−0.31 [−0.34, −0.28]", "0.84 [0.81, 0.87]"]
    subgroups = subgroup_rows(comparison, "nih", ("C", "D")).rows
    assert [row[0].text for row in subgroups][:3] == ["view: frontal, AP"] * 2 + ["sex: female"]
    assert (
        subgroups[0][5].text == "0.770 [0.740, 0.800]"
        and len(subgroup_label_rows(comparison, "nih", ("C",)).rows) == 8
    )


def test_the_flow_goes_from_the_source_to_the_splits() -> None:
    site = make_comparison().sites[0]
    rows = [[cell.text for cell in row] for row in flow_rows(site).rows]
    assert rows[:5] == [
        ["studies in the source's tables", "", "603", ""],
        ["left out: no labels", "", "3", ""],
        ["with labels", "500", "600", "900"],
        ["left out: not drawn", "30", "124", "325"],
        ["drawn", "470", "476", "575"],
    ]
    assert rows[5] == ["left out: image is one that is damaged", "", "", "7"]
    assert rows[-4] == ["in the study file", "453", "474", "567"]
    assert [cell.text for cell in group_rows(site).rows[1]] == ["sex", "male", "160", "0", "0"]


def test_one_run_alone_gives_a_page_that_makes_sense() -> None:
    tree = make_tree(sites=("nih",), names=("D",), num_seeds=1)
    tree["policies"], tree["matrix"] = [], [row for row in tree["matrix"] if row["network"] == "nih"]
    page, ids = sections_of(read(tree))
    assert not {"differences", "policies", "matrix", "exchange"} & ids
    assert {"thresholds", "calibration", "subgroups", "labels", "data", "limits"} <= ids
    assert page.text.startswith("D at nih") and "It was judged on the site's test studies." in page.text
    for word in ("p-value", "over seeds", "single seeds:", "compared", "Student"):
        assert word not in page.text, word
    assert not [attributes for _, attributes in page.tags if attributes.get("class") == "seeds"]


@pytest.mark.parametrize(("num_seeds", "has_p"), [(1, False), (2, False), (3, True), (5, True)])
def test_p_values_want_three_seeds_and_intervals_stay(num_seeds: int, has_p: bool) -> None:
    """Also where an earlier version's comparison holds some of two."""
    comparison = make_comparison(num_seeds=num_seeds)
    assert comparison.differences[0].macro_auroc.p_value is not None
    page, ids = sections_of(comparison)
    assert set(SECTIONS) <= ids
    for rows, column in (
        (difference_rows(comparison).rows, 4),
        (label_difference_rows(comparison, "nih").rows, 3),
    ):
        cells = [row[column] for row in rows]
        assert all(cell.text.startswith("p ") if has_p else cell.note == "fewer than 3 seeds" for cell in cells)
        assert all("[" in row[column - 1].text for row in rows)
    assert "p, uncorrected" in page.text
    with drawing():
        words = render(draw_differences(comparison) or pytest.fail("no figure")).svg
    assert ("p = " in words or "p &lt; " in words) == has_p


def test_a_comparison_of_schema_2_is_shown_without_what_it_does_not_have() -> None:
    tree: dict[str, Any] = copy.deepcopy(make_tree())
    tree["schema"] = 2
    for site in tree["sites"]:
        del site["groups"], site["flow"]
    for result in tree["results"]:
        del result["subgroups"]
        for label in result["labels"]:
            for key in ("at_threshold", "precision", "calibration_intercept", "calibration_slope"):
                del label[key]
    comparison = read(tree)
    _, ids = sections_of(comparison)
    assert not {"thresholds", "subgroups"} & ids and "calibration" in ids
    assert draw_precision(comparison, "nih") is None
