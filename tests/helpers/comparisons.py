"""A comparison as `compare` would make it, its numbers drawn from a seed."""

import json
import math
import random
from collections.abc import Sequence
from typing import Any

from cxr_hvd.experiment.comparison import Comparison
from cxr_hvd.experiment.comparison_file import parse_comparison

HOSTILE = "st. <b>&$|$_x_"
LABELS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Edema",
    "Pneumonia",
    "Pleural Effusion",
)
DEFINED = LABELS[2:]
BLOCKS = {"stem": 62_848, "denseblock1": 335_040, "transition1": 33_280, "denseblock2": 919_680, "head": 16_398}
PRIVATE = {
    "A": tuple(BLOCKS),
    "B": (),
    "C": (),
    "D": ("stem", "denseblock1", "head"),
    "D-head": ("head",),
    "D-norms": (),
}
STEPS = 60
SUBGROUPS = (("view", "frontal, AP"), ("sex", "female"), ("sex", "male"), ("age", "65 years and more"))
RATES = ("sensitivity", "specificity", "positive_predictive_value", "negative_predictive_value")


def make_comparison(
    sites: Sequence[str] = ("nih", HOSTILE),
    names: Sequence[str] = tuple(PRIVATE),
    num_seeds: int = 3,
    undefined_sites: Sequence[str] = (),
) -> Comparison:
    """Make a comparison; arguments are those of `make_tree`."""
    return read(make_tree(sites, names, num_seeds, undefined_sites))


def read(tree: dict[str, Any]) -> Comparison:
    """Read a comparison from plain values, as from its file."""
    return parse_comparison(json.dumps(tree))


def make_tree(
    sites: Sequence[str] = ("nih", HOSTILE),
    names: Sequence[str] = tuple(PRIVATE),
    num_seeds: int = 3,
    undefined_sites: Sequence[str] = (),
) -> dict[str, Any]:
    """Make a comparison as plain values.

    Args:
        undefined_sites: sites on whose test studies nothing is defined.
    """
    chance = random.Random(1)
    labels_of = {
        site: () if site in undefined_sites else DEFINED[: 5 - 2 * index] for index, site in enumerate(sites)
    }
    results = [
        _result(name, site, labels_of[site] or (), num_seeds, chance, 0.7 + 0.02 * index)
        for index, name in enumerate(names)
        for site in sites
    ]
    pairs = [(a, b) for a, b in (("C", "A"), ("D", "A"), ("D", "C"), ("D", "B")) if a in names and b in names]
    places = [*sites, "mean of sites"]
    return {
        "schema": 3,
        "tool": "cxr-hvd 0.1.0",
        "command": "cxr-hvd experiment --config real.yaml --seeds 3",
        "num_resamples": 2000,
        "label_names": list(LABELS),
        "sites": [_site(site) for site in sites],
        "experiments": [_experiment(name, num_seeds, chance) for name in names],
        "results": results,
        "matrix": [
            {
                "experiment": name,
                "network": network,
                "site": site,
                "macro_auroc": seeds_of(*_known(site in undefined_sites, chance.uniform(0.55, 0.9), num_seeds)),
            }
            for name in names
            for network in (("common",) if name in ("B", "C") else (*sites, "averaged"))
            for site in sites
        ],
        "policies": [
            {
                "experiment": name,
                "site": site,
                "policy": policy,
                "macro_auroc": interval_of(*_known(site in undefined_sites, chance.uniform(0.55, 0.9), num_seeds)),
                "mean_accuracy": interval_of(0.8, num_seeds),
            }
            for name in names
            if name[0] in "AD"
            for site in sites
            for policy in (
                "own",
                *(f"of {other}" for other in sites if other != site),
                "averaged weights",
                "ensemble",
            )
        ],
        "differences": [
            {
                "a": a,
                "b": b,
                "site": place,
                "split": split,
                **_paired(place, place in undefined_sites, labels_of.get(place), num_seeds, chance),
                "frequent": _paired(
                    place, place in undefined_sites, labels_of.get(place, ())[:2], num_seeds, chance
                ),
                "labels": [
                    {"label": label, "auroc": difference_of(chance.gauss(0, 0.05), num_seeds)}
                    for label in labels_of.get(place, ())
                    if split == "test"
                ],
            }
            for split in ("test", "validate")
            for place in places
            for a, b in pairs
        ],
        "curves": [
            {
                "experiment": name,
                "seed": 1 + number,
                "site": site,
                "steps": list(range(1, STEPS + 1)),
                "loss": [
                    0.3 + 0.3 * math.exp(-step / 60) + 0.05 * index + chance.gauss(0, 0.05)
                    for step in range(STEPS)
                ],
            }
            for name in names
            for number in range(num_seeds)
            for index, site in enumerate(sites)
        ],
        "notes": ["seed 4 of D is left out: its run is not finished", "<script>alert('$x$ | y')</script>"],
    }


def seeds_of(value: float | None, num_seeds: int, note: str | None = None) -> dict[str, Any]:
    spread = [None if value is None else value + 0.01 * (number - 1) for number in range(num_seeds)]
    return {"value": value, "by_seed": spread, "note": note}


def interval_of(
    value: float | None, num_seeds: int, note: str | None = None, half: float = 0.03
) -> dict[str, Any]:
    bounds = {"low": None, "high": None} if value is None else {"low": value - half, "high": value + half}
    return {**seeds_of(value, num_seeds, note), **bounds, "standard_error": None if value is None else half / 2}


def difference_of(value: float | None, num_seeds: int, note: str | None = None) -> dict[str, Any]:
    return {
        **interval_of(value, num_seeds, note, half=0.02),
        "p_value": None if value is None else 0.2 / 1e4**value,
    }


def _paired(
    place: str, is_undefined: bool, labels: Sequence[str] | None, num_seeds: int, chance: random.Random
) -> dict[str, Any]:
    return {
        "mean_over": None if place == "mean of sites" else list(labels or ()),
        "macro_auroc": difference_of(*_known(is_undefined, chance.gauss(0.02, 0.03), num_seeds)),
        "mean_accuracy": difference_of(chance.gauss(0.02, 0.03), num_seeds),
    }


def _known(is_undefined: bool, value: float, num_seeds: int) -> tuple[float | None, int, str | None]:
    return (None, num_seeds, "one class only: 12 absent") if is_undefined else (value, num_seeds, None)


def _site(name: str) -> dict[str, Any]:
    counts = {"train": 320, "validate": 40, "test": 114}
    return {
        "name": name,
        "data_sha256": "9f" * 32,
        "source": "nih-cxr14",
        "pixels": "opencv",
        "image_size": 64,
        "num_studies": counts,
        "num_patients": {split: count - 7 for split, count in counts.items()},
        "num_images": {split: count + 31 for split, count in counts.items()},
        "images_per_study": {"1": 460, "2": 12, "11": 2},
        "labels": [
            {
                "label": label,
                "present": {"train": 31 + number, "test": 9},
                "absent": {"train": 200, "test": 90},
                "uncertain": {"train": 3, "test": 1},
                "blank": {"train": 86, "test": 14},
            }
            for number, label in enumerate(LABELS)
        ],
        "groups": {"sex": {"female": {"train": 150, "test": 60}, "male": {"train": 160}}},
        "flow": {
            "unlabelled_studies": 3,
            "labelled": {"patients": 500, "studies": 600, "images": 900},
            "drawn": {"patients": 470, "studies": 476, "images": 575},
            "unusable_images": {"one that is damaged": 7, "<b>": 1},
            "emptied_studies": 2,
        },
        "note": None,
    }


def _experiment(name: str, num_seeds: int, chance: random.Random) -> dict[str, Any]:
    blocks = []
    for block, size in BLOCKS.items():
        if block in PRIVATE[name]:
            blocks.append({"block": block, "scope": "private", "num_parameters": size, "bytes_per_step": 0})
            continue
        own = size // 40 if name == "D-norms" else 0
        blocks.append(
            {"block": block, "scope": "shared", "num_parameters": size - own, "bytes_per_step": 4 * (size - own)}
        )
        if own:
            blocks.append({"block": block, "scope": "private", "num_parameters": own, "bytes_per_step": 0})
    num_bytes = sum(block["bytes_per_step"] for block in blocks)
    return {
        "name": name,
        "experiment": name[0],
        "seeds": list(range(1, num_seeds + 1)),
        "trains_on": "all sites' studies, merged" if name == "B" else "each site's own studies",
        "private_said": {"A": "all", "B": "none", "C": "none", "D": "ends"}.get(name, name[2:]),
        "batchnorm": "private",
        "exchange": "weights",
        "every": 1,
        "wire": "float32",
        "num_steps": 174,
        "batch_size": 16,
        "num_ranks": 2,
        "image_size": 64,
        "blocks": blocks,
        "bytes_per_exchange": num_bytes,
        "bytes_per_run": num_bytes * 174,
        "seconds": [chance.uniform(90, 110) for _ in range(num_seeds)],
        "studies_per_s": [chance.uniform(50, 60) for _ in range(num_seeds)],
        "config_sha256": ["ab" * 32] * num_seeds,
        "commands": [
            {
                "seed": seed,
                "train": f"cxr-hvd train runs/{name}/config.yaml --run runs/{name}/seed-{seed} --set seed={seed}",
                "score": f"cxr-hvd evaluate runs/{name}/seed-{seed} --pooled",
            }
            for seed in range(1, num_seeds + 1)
        ],
    }


def _result(
    name: str, site: str, defined: Sequence[str], num_seeds: int, chance: random.Random, base: float
) -> dict[str, Any]:
    labels = [
        _label(label, num_seeds, chance, base) if label in defined else _undefined_label(label, num_seeds)
        for label in LABELS
    ]
    note = None if defined else "one class only: 12 absent"
    values = [base + chance.uniform(-0.05, 0.05) if defined else None for _ in range(2)]
    means, frequent = (
        _means(value, names, num_seeds, note) for value, names in zip(values, (defined, defined[:2]), strict=True)
    )
    return {
        "experiment": name,
        "site": site,
        "network": "common" if name in ("B", "C") else site,
        "num_studies": 114,
        "num_patients": 107,
        **means,
        "frequent": frequent,
        "labels": labels,
        "subgroups": [_subgroup(kind, group, defined, num_seeds) for kind, group in SUBGROUPS],
    }


def _subgroup(kind: str, name: str, defined: Sequence[str], num_seeds: int) -> dict[str, Any]:
    value, note = (0.77, None) if defined else (None, "no label with 10 patients with it and 10 without")
    return {
        "kind": kind,
        "name": name,
        "num_studies": 60,
        "num_patients": 55,
        "macro_auroc": interval_of(value, num_seeds, note),
        "all_studies_auroc": value,
        "labels": [
            {"label": label, "num_studies": 60, "num_present": 12, "auroc": interval_of(0.77, num_seeds)}
            for label in defined[:2]
        ],
    }


def _means(mean: float | None, labels: Sequence[str], num_seeds: int, note: str | None) -> dict[str, Any]:
    return {
        "mean_over": list(labels),
        "macro_auroc": interval_of(mean, num_seeds, note),
        "mean_accuracy": interval_of(mean, num_seeds, note),
        "mean_accuracy_at_threshold": interval_of(None, num_seeds, "no validation studies: no threshold"),
        "macro_average_precision": seeds_of(mean, num_seeds, note),
        "mean_brier": seeds_of(mean and 1 - mean, num_seeds, note),
        "mean_sensitivity": seeds_of(mean, num_seeds, note),
        "mean_all_negative_accuracy": 0.78 if labels else None,
    }


def _label(label: str, num_seeds: int, chance: random.Random, base: float) -> dict[str, Any]:
    value = min(0.97, base + chance.uniform(-0.1, 0.15))
    grid = [number / 100 for number in range(101)]
    power = (1 - value) / value
    rise = [at**power for at in grid]
    return {
        "label": label,
        "num_studies": 114,
        "num_present": 9,
        "note": None,
        "auroc": interval_of(value, num_seeds),
        "average_precision": seeds_of(value - 0.2, num_seeds),
        "accuracy": seeds_of(0.9, num_seeds),
        "accuracy_at_threshold": seeds_of(None, num_seeds, "no validation studies: no threshold"),
        "all_negative_accuracy": 0.91,
        "brier": seeds_of(0.08, num_seeds),
        "sensitivity": seeds_of(0.4, num_seeds),
        "expected_calibration_error": seeds_of(0.05, num_seeds),
        "roc": {
            "false_positive": grid,
            "true_positive": rise,
            "low": [max(0.0, at - 0.05) for at in rise],
            "high": [min(1.0, at + 0.05) for at in rise],
        },
        "calibration": [
            [(number + 0.5) / 10, min(1, max(0, (number + 0.5) / 10 + chance.gauss(0, 0.1))), 300 // (number + 1)]
            for number in range(10)
        ],
        "at_threshold": {
            "thresholds": [0.31 + 0.01 * number for number in range(num_seeds)],
            **dict.fromkeys(RATES, interval_of(0.62, num_seeds)),
        },
        "precision": {
            "recall": grid,
            "precision": [1 - 0.8 * at for at in grid],
            "low": [0.9 - 0.8 * at for at in grid],
            "high": [1 - 0.7 * at for at in grid],
        },
        "calibration_intercept": interval_of(-0.31, num_seeds),
        "calibration_slope": interval_of(0.84, num_seeds),
    }


def _undefined_label(label: str, num_seeds: int) -> dict[str, Any]:
    note = "no study" if label.startswith("Enlarged") else "one class only: 114 absent"
    nothing = seeds_of(None, num_seeds, note)
    names = ("average_precision", "accuracy", "accuracy_at_threshold", "brier", "sensitivity")
    return {
        "label": label,
        "num_studies": 0 if note == "no study" else 114,
        "num_present": 0,
        "note": note,
        "auroc": interval_of(None, num_seeds, note),
        **dict.fromkeys((*names, "expected_calibration_error"), nothing),
        "all_negative_accuracy": None if note == "no study" else 1.0,
        "roc": None,
        "calibration": [],
        "at_threshold": {
            "thresholds": [None] * num_seeds,
            **dict.fromkeys(RATES, interval_of(None, num_seeds, "no threshold from validation")),
        },
        "precision": None,
        "calibration_intercept": interval_of(None, num_seeds, note),
        "calibration_slope": interval_of(None, num_seeds, note),
    }
