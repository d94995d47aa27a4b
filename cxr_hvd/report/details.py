"""The tables behind the main ones: measures of all labels, sharing plans, time, and the sites' data. Pure."""

from collections.abc import Sequence

from cxr_hvd.experiment.comparison import BlockScope, Comparison, JudgedSetUp, SiteDescription
from cxr_hvd.report.format import (
    NOT_KNOWN,
    Cell,
    ReportTable,
    as_bytes,
    as_count,
    as_difference,
    as_percent,
    as_score,
    estimate,
    number,
    p_value,
    shown,
    word,
)
from cxr_hvd.report.tables import main_differences, pair_name

SPLITS = ("train", "validate", "test")


def measure_rows(result: JudgedSetUp) -> ReportTable:
    """Return every measure of every label, of one set-up on one test set."""
    columns = ("label", "studies", "present", "AUROC", "average precision", "accuracy at 0.5")
    others = ("accuracy at chosen threshold", "all-negative accuracy", "Brier score")
    more = ("sensitivity at 90% specificity", "calibration error")
    rows = [
        (
            word(label.label),
            Cell(as_count(label.num_studies)),
            Cell(as_count(label.num_present)),
            estimate(label.auroc, as_score, label.note),
            estimate(label.average_precision, as_score, label.note),
            estimate(label.accuracy, as_percent, label.note),
            estimate(label.accuracy_at_threshold, as_percent, label.note),
            number(label.all_negative_accuracy, as_percent),
            estimate(label.brier, as_score, label.note),
            estimate(label.sensitivity, as_percent, label.note),
            estimate(label.expected_calibration_error, as_score, label.note),
        )
        for label in result.labels
    ]
    title = f"{shown(result.experiment)} on the test studies of {shown(result.site)}"
    return ReportTable(title, columns + others + more, tuple(rows))


def label_difference_rows(comparison: Comparison, site: str) -> ReportTable:
    """Return the difference of every label's AUROC between set-ups on one test set, of the main pairs."""
    rows = [
        (Cell(pair_name(pair.a, pair.b)), word(row.label), estimate(row.auroc, as_difference), p_value(row.auroc))
        for pair in main_differences(comparison)
        if pair.site == site
        for row in pair.labels
    ]
    title = f"Differences of AUROC on the test studies of {shown(site)}"
    return ReportTable(title, ("difference", "label", "AUROC", "p, uncorrected"), tuple(rows), 2, True)


def sharing_rows(comparison: Comparison) -> ReportTable:
    """Return what each set-up trains on and shares, and how."""
    columns = ("set-up", "trains on", "private", "BatchNorm statistics", "exchanges", "every", "wire")
    rows = [
        (
            *map(word, (setup.name, setup.trains_on, setup.private, setup.batchnorm, setup.exchange)),
            Cell("step" if setup.every == 1 else f"{as_count(setup.every)} steps"),
            word(setup.wire),
            Cell(as_bytes(setup.bytes_per_exchange)),
            Cell(as_bytes(setup.bytes_per_run)),
        )
        for setup in comparison.experiments
    ]
    columns_of_bytes = ("bytes an exchange", "bytes a run")
    return ReportTable("What one rank hands over", columns + columns_of_bytes, tuple(rows), len(columns))


def block_rows(comparison: Comparison) -> ReportTable:
    """Return block by block what is shared in each set-up, and the bytes of one step."""
    setups = comparison.experiments
    names = dict.fromkeys(part.block for setup in setups for part in setup.blocks)
    rows = [(word(name), *(_block(setup.blocks, name) for setup in setups)) for name in names]
    columns = ("block", *(shown(setup.name) for setup in setups))
    return ReportTable("The sharing plan, block by block", columns, tuple(rows), len(columns))


def time_rows(comparison: Comparison) -> ReportTable:
    """Return how long training took, and how many studies went through it a second, seed by seed."""
    columns = ("set-up", "ranks", "studies a batch", "steps", "image, px", "seeds", "seconds", "studies a second")
    rows = [
        (
            word(setup.name),
            *(
                Cell(as_count(count))
                for count in (setup.num_ranks, setup.batch_size, setup.num_steps, setup.image_size)
            ),
            Cell(", ".join(map(str, setup.seeds)) or NOT_KNOWN),
            _by_seed(setup.seconds),
            _by_seed(setup.studies_per_s),
        )
        for setup in comparison.experiments
    ]
    return ReportTable("Time and throughput of training", columns, tuple(rows))


def count_rows(comparison: Comparison) -> ReportTable:
    """Return how many studies, patients and images each site holds, split by split."""
    rows = [
        (word(site.name), Cell(split), *(_count(counts, split) for counts in of_site))
        for site in comparison.sites
        for of_site in [(site.num_studies, site.num_patients, site.num_images)]
        for split in SPLITS
        if any(counts.get(split) for counts in of_site)
    ]
    columns = ("site", "split", "studies", "patients", "images")
    return ReportTable("Studies, patients and images", columns, tuple(rows), 2, True)


def finding_rows(site: SiteDescription) -> ReportTable:
    """Return how often each label is present, absent, uncertain and blank at a site, in each split."""
    states = ("present", "absent", "uncertain", "blank")
    splits = [split for split in SPLITS if any(split in label.present for label in site.labels)]
    rows = [
        (
            word(label.label),
            *(
                _count(counts, split)
                for split in splits
                for counts in (label.present, label.absent, label.uncertain, label.blank)
            ),
        )
        for label in site.labels
    ]
    columns = ("label", *(f"{state}, {split}" for split in splits for state in states))
    return ReportTable(f"Labels of {shown(site.name)}", columns, tuple(rows))


def _block(parts: Sequence[BlockScope], name: str) -> Cell:
    scopes = [
        f"shared, {as_bytes(part.bytes_per_step)}" if part.scope == "shared" else shown(part.scope)
        for part in parts
        if part.block == name
    ]
    return Cell(" + ".join(scopes)) if scopes else Cell("", "none")


def _by_seed(values: Sequence[float]) -> Cell:
    return Cell(" · ".join(f"{value:,.1f}" for value in values)) if values else Cell("", NOT_KNOWN)


def _count(counts: dict[str, int], split: str) -> Cell:
    return number(counts.get(split), as_count, NOT_KNOWN)
