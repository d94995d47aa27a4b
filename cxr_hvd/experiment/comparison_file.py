"""Read `comparison.json`: one line says what is wrong with a file of another form."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from cxr_hvd.errors import CheckpointError
from cxr_hvd.experiment.comparison import READABLE, Comparison
from cxr_hvd.terminal import shown

_AGAIN = "make the comparison again with this version of cxr-hvd"


def parse_comparison(text: str | bytes) -> Comparison:
    """Read what `comparison.json` holds.

    Raises:
        CheckpointError: it is no comparison, is of another schema, or lacks something; says what and where.
    """
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"comparison: expected an object, found no JSON; {_AGAIN}") from error
    if not isinstance(tree, Mapping):
        raise CheckpointError(f"comparison: expected an object, found {_kind(tree)}; {_AGAIN}")
    if tree.get("schema") not in READABLE:
        readable, number = " or ".join(map(str, READABLE)), repr(tree.get("schema"))[:40]
        raise CheckpointError(f"comparison: expected schema {readable}, found {number}; {_AGAIN}")
    try:
        return Comparison.model_validate_json(text)
    except ValidationError as error:
        raise CheckpointError(f"{_first_fault(error)}; {_AGAIN}") from error


def _first_fault(error: ValidationError) -> str:
    """Return in one line what is wrong first, and where."""
    fault = error.errors(include_url=False)[0]
    steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in fault["loc"]]
    is_missing = fault["type"] == "missing"
    where = shown("comparison" + "".join(steps[:-1] if is_missing else steps), 200)
    if is_missing:
        return f"{where}: expected the key {fault['loc'][-1]}, found none"
    expected = {"tuple_type": "a list", "model_type": "an object", "dict_type": "an object"}.get(fault["type"])
    if expected:
        return f"{where}: expected {expected}, found {_kind(fault['input'])}"
    return f"{where}: {fault['msg']}"


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
