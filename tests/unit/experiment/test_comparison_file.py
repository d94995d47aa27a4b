"""The file of a comparison: read back as it was written, and one line says what is wrong with another."""

import copy
import json
import re
from typing import Any

import pytest

from cxr_hvd.errors import CheckpointError
from cxr_hvd.experiment.comparison_file import parse_comparison
from tests.helpers.comparisons import make_tree


def test_a_comparison_is_read_back_as_it_was_written() -> None:
    tree = make_tree()
    comparison = parse_comparison(json.dumps(tree))
    assert json.loads(comparison.as_json()) == tree
    assert parse_comparison(comparison.as_json()) == comparison
    assert parse_comparison(json.dumps({**tree, "of a later version": 1})) == comparison


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 1}, "expected schema 2 or 3, found 1"),
        ({"schema": None}, "expected schema 2 or 3, found None"),
        ({"results": {}}, "comparison.results: expected a list, found a dict"),
        ({"sites": [None]}, "comparison.sites[0]: expected an object, found nothing"),
        ({"num_resamples": "many"}, "comparison.num_resamples: Input should be a valid integer"),
    ],
)
def test_what_is_no_comparison_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        parse_comparison(json.dumps(make_tree() | changes))
    assert "\n" not in str(caught.value) and "make the comparison again" in str(caught.value)


@pytest.mark.parametrize("text", ["7", "null", "", "{", "[" * 100_000])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match="comparison: expected an object, found"):
        parse_comparison(text)


@pytest.mark.parametrize(
    "path",
    [
        ("notes",),
        ("experiments", 1, "blocks"),
        ("results", 0, "labels", 2, "auroc", "low"),
        ("results", 0, "frequent", "mean_over"),
        ("differences", 0, "frequent"),
    ],
)
def test_a_key_that_is_missing_is_named(path: tuple[str | int, ...]) -> None:
    broken: Any = copy.deepcopy(make_tree())
    place = broken
    for step in path[:-1]:
        place = place[step]
    del place[path[-1]]
    with pytest.raises(CheckpointError, match=f"expected the key {path[-1]}, found none"):
        parse_comparison(json.dumps(broken))
