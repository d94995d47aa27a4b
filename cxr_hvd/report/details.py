"""The tables behind the main ones: measures of all labels, sharing plans, time, and the sites' data. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from cxr_hvd.report.format import (
    NOT_KNOWN,
    UNDEFINED,
    Cell,
    Table,
    as_bytes,
    as_count,
    as_difference,
    as_percent,
    as_score,
    estimate,
    is_number,
    p_of,
    plain,
    shown,
)
from cxr_hvd.report.tables import Comparison, main_differences, said_pair

SPLITS = ("train", "validate", "test")
STATES = ("present", "absent", "uncertain", "blank")


def measure_rows(result: Mapping[str, Any]) -> Table:
    """Return every measure of every label, of one set-up on one test set."""
    columns = ("label", "studies", "present", "AUROC", "average precision", "accuracy at 0.5")
    others = ("accuracy at chosen threshold", "all-negative accuracy", "Brier score")
    more = ("sensitivity at 90% specificity", "calibration error")
    rows = [
        (
            Cell(shown(one["label"])),
            Cell(as_count(one["num_studies"])),
            Cell(as_count(one["num_present"])),
            _of_label(one, "auroc"),
            _of_label(one, "average_precision"),
            _of_label(one, "accuracy", as_percent),
            _of_label(one, "accuracy_at_threshold", as_percent),
            plain(one["all_negative_accuracy"], as_percent),
            _of_label(one, "brier"),
            _of_label(one, "sensitivity", as_percent),
            _of_label(one, "expected_calibration_error"),
        )
        for one in result["labels"]
    ]
    title = f"{shown(result['experiment'])} on the test studies of {shown(result['site'])}"
    return Table(title, columns + others + more, tuple(rows))


def label_difference_rows(comparison: Comparison, site: str) -> Table:
    """Return the difference of every label's AUROC between set-ups on one test set, of the main pairs."""
    rows = [
        (
            Cell(said_pair(pair)),
            Cell(shown(one["label"])),
            estimate(one["auroc"], as_difference),
            p_of(one["auroc"]),
        )
        for pair in main_differences(comparison)
        if pair["site"] == site
        for one in pair["labels"]
    ]
    title = f"Differences of AUROC on the test studies of {shown(site)}"
    return Table(title, ("difference", "label", "AUROC", "p"), tuple(rows), 2, True)


def sharing_rows(comparison: Comparison) -> Table:
    """Return what each set-up trains on and shares, and how."""
    columns = ("set-up", "trains on", "private", "BatchNorm statistics", "exchanges", "every", "wire")
    rows = [
        (
            *(Cell(shown(one[key])) for key in ("name", "trains_on", "private_said", "batchnorm", "exchange")),
            Cell("step" if one["every"] == 1 else f"{as_count(one['every'])} steps"),
            Cell(shown(one["wire"])),
            Cell(as_bytes(one["bytes_per_exchange"])),
            Cell(as_bytes(one["bytes_per_run"])),
        )
        for one in comparison["experiments"]
    ]
    columns_of_bytes = ("bytes an exchange", "bytes a run")
    return Table("What one rank hands over", columns + columns_of_bytes, tuple(rows), len(columns))


def block_rows(comparison: Comparison) -> Table:
    """Return block by block what is shared in each set-up, and the bytes of one step."""
    setups = comparison["experiments"]
    names = dict.fromkeys(part["block"] for one in setups for part in one["blocks"])
    rows = [(Cell(shown(name)), *(_block(one["blocks"], name) for one in setups)) for name in names]
    columns = ("block", *(shown(one["name"]) for one in setups))
    return Table("The sharing plan, block by block", columns, tuple(rows), len(columns))


def time_rows(comparison: Comparison) -> Table:
    """Return how long training took, and how many studies went through it a second, seed by seed."""
    columns = ("set-up", "ranks", "studies a batch", "steps", "image, px", "seeds", "seconds", "studies a second")
    rows = [
        (
            Cell(shown(one["name"])),
            *(Cell(as_count(one[key])) for key in ("num_ranks", "batch_size", "num_steps", "image_size")),
            Cell(", ".join(map(shown, one["seeds"])) or NOT_KNOWN),
            _each(one["seconds"]),
            _each(one["studies_per_s"]),
        )
        for one in comparison["experiments"]
    ]
    return Table("Time and throughput of training", columns, tuple(rows))


def count_rows(comparison: Comparison) -> Table:
    """Return how many studies, patients and images each site holds, split by split."""
    rows = [
        (
            Cell(shown(site["name"])),
            Cell(split),
            *(_count(site.get(key), split) for key in ("num_studies", "num_patients", "num_images")),
        )
        for site in comparison["sites"]
        for split in SPLITS
        if any((site.get(key) or {}).get(split) for key in ("num_studies", "num_patients", "num_images"))
    ]
    return Table(
        "Studies, patients and images", ("site", "split", "studies", "patients", "images"), tuple(rows), 2, True
    )


def finding_rows(site: Mapping[str, Any]) -> Table:
    """Return how often each label is present, absent, uncertain and blank at a site, in each split."""
    labels = site.get("labels") or []
    splits = [split for split in SPLITS if any(split in (one.get("present") or {}) for one in labels)]
    columns = ("label", *(f"{state}, {split}" for split in splits for state in STATES))
    rows = [
        (Cell(shown(one.get("label"))), *(_count(one.get(state), split) for split in splits for state in STATES))
        for one in labels
    ]
    return Table(f"Labels of {shown(site['name'])}", columns, tuple(rows))


def _of_label(one: Mapping[str, Any], key: str, write: Any = as_score) -> Cell:
    cell = estimate(one[key], write)
    return Cell("", shown(one["note"])) if not cell.text and cell.note == UNDEFINED and one["note"] else cell


def _block(parts: Sequence[Mapping[str, Any]], name: str) -> Cell:
    said = [
        f"shared, {as_bytes(part['bytes_per_step'])}" if part["scope"] == "shared" else shown(part["scope"])
        for part in parts
        if part["block"] == name
    ]
    return Cell(" + ".join(said)) if said else Cell("", "none")


def _each(values: Sequence[object]) -> Cell:
    said = " · ".join(f"{value:,.1f}" if is_number(value) else NOT_KNOWN for value in values)
    return Cell(said) if said else Cell("", NOT_KNOWN)


def _count(counts: Mapping[str, Any] | None, split: str) -> Cell:
    found = (counts or {}).get(split)
    return Cell(as_count(found)) if is_number(found) else Cell("", NOT_KNOWN)
