"""Whether a comparison has the form that tables and figures read: schema 2, every key where it is looked for.

Light on purpose: keys and containers, no values. A value that is no finite number is shown as undefined.
"""

from collections.abc import Mapping
from typing import Any

from cxr_hvd.errors import CheckpointError

SCHEMA = 2


def _keys(names: str, expected: Any = None) -> dict[str, Any]:
    return dict.fromkeys(names.split(), expected)


# A dict has at least these keys, a list of one is a list of such, None is anything.
_SEEDS = _keys("value by_seed note")
_INTERVAL = _keys("value low high by_seed note")
_DIFFERENCE = _keys("value low high p_value by_seed note")
_SITE = _keys("name data_sha256 note")  # all else only where its study file is here
_EXPERIMENT = {
    **_keys("name experiment trains_on private_said batchnorm exchange every wire num_steps batch_size num_ranks"),
    **_keys("image_size bytes_per_exchange bytes_per_run"),
    **_keys("seeds seconds studies_per_s config_sha256", [None]),
    "blocks": [_keys("block scope num_parameters bytes_per_step")],
    "commands": [_keys("seed train score")],
}
_LABEL = {
    **_keys("label num_studies num_present note all_negative_accuracy roc"),
    **_keys("average_precision accuracy accuracy_at_threshold brier sensitivity", _SEEDS),
    "auroc": _INTERVAL,
    "expected_calibration_error": _SEEDS,
    "calibration": [None],
}
_MEANS = {
    **_keys("mean_all_negative_accuracy"),
    **_keys("macro_auroc mean_accuracy mean_accuracy_at_threshold", _INTERVAL),
    **_keys("macro_average_precision mean_brier mean_sensitivity", _SEEDS),
    "mean_over": [None],
}
_RESULT = {
    **_keys("experiment site network num_studies num_patients"),
    **_MEANS,
    "frequent": _MEANS,
    "labels": [_LABEL],
}
_PAIRED = {**_keys("macro_auroc mean_accuracy", _DIFFERENCE), **_keys("mean_over")}  # None in a mean of sites
_DIFFERENCES = {
    **_keys("a b site split"),
    **_PAIRED,
    "frequent": _PAIRED,
    "labels": [{"label": None, "auroc": _DIFFERENCE}],
}
_COMPARISON = {
    **_keys("tool command num_resamples"),
    **_keys("label_names notes", [None]),
    "sites": [_SITE],
    "experiments": [_EXPERIMENT],
    "results": [_RESULT],
    "matrix": [{**_keys("experiment network site"), "macro_auroc": _SEEDS}],
    "policies": [{**_keys("experiment site policy"), **_keys("macro_auroc mean_accuracy", _INTERVAL)}],
    "differences": [_DIFFERENCES],
    "curves": [_keys("experiment seed site steps loss")],
}
_AGAIN = "make the comparison again with this version of cxr-hvd"


def check_comparison(comparison: Mapping[str, Any]) -> None:
    """Raise where a comparison has another schema, or lacks what tables and figures read.

    Raises:
        CheckpointError: what was expected, where, and what was found.
    """
    if not isinstance(comparison, Mapping):
        raise CheckpointError(f"comparison: expected an object, found {_kind(comparison)}; {_AGAIN}")
    if comparison.get("schema") != SCHEMA:
        found = repr(comparison.get("schema"))[:40]
        raise CheckpointError(f"comparison: expected schema {SCHEMA}, found {found}; {_AGAIN}")
    _check(comparison, _COMPARISON, "comparison")


def _check(value: Any, expected: Any, where: str) -> None:
    if isinstance(expected, dict):
        if not isinstance(value, Mapping):
            raise CheckpointError(f"{where}: expected an object, found {_kind(value)}; {_AGAIN}")
        for key, below in expected.items():
            if key not in value:
                raise CheckpointError(f"{where}: expected the key {key}, found none; {_AGAIN}")
            _check(value[key], below, f"{where}.{key}")
    elif isinstance(expected, list):
        if not isinstance(value, list | tuple):
            raise CheckpointError(f"{where}: expected a list, found {_kind(value)}; {_AGAIN}")
        for number, each in enumerate(value):
            _check(each, expected[0], f"{where}[{number}]")


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
