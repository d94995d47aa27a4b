"""The tables of a comparison from results across sites. Pure."""

from cxr_hvd.experiment.across.comparison import AcrossComparison
from cxr_hvd.experiment.differences import MEAN_OF_SITES
from cxr_hvd.report.format import (
    Cell,
    ReportTable,
    as_count,
    as_difference,
    as_named,
    as_percent,
    as_points,
    as_score,
    estimate,
    number,
    p_value,
    word,
)

FEW = "fewer than 10 patients"


def list_tables(comparison: AcrossComparison) -> list[ReportTable]:
    """Return all tables that hold a row."""
    tables = [
        overview_rows(comparison),
        difference_rows(comparison),
        matrix_rows(comparison),
        label_rows(comparison),
        label_difference_rows(comparison),
    ]
    return [table for table in tables if table.rows]


def overview_rows(comparison: AcrossComparison) -> ReportTable:
    """Every set-up on every site's test studies, by the network that the site uses."""
    columns = ("test set", "set-up", "mean over", "studies", "patients", "macro AUROC", "accuracy at 0.5", "Brier")
    rows = [
        (
            word(result.site),
            word(result.experiment),
            Cell("each site's labels" if result.mean_over is None else as_named(len(result.mean_over), "label")),
            Cell(as_count(result.num_studies)),
            Cell(as_count(result.num_patients)),
            estimate(result.macro_auroc, as_score),
            estimate(result.mean_accuracy, as_percent),
            estimate(result.mean_brier, as_score),
        )
        for site in _sites(comparison)
        for result in comparison.results
        if result.site == site
    ]
    return ReportTable("Every set-up on every test set", columns, tuple(rows), 3, True)


def difference_rows(comparison: AcrossComparison) -> ReportTable:
    """Paired differences between two set-ups on the same patients and seeds."""
    columns = ("test set", "difference", "macro AUROC", "p, AUROC", "accuracy, points", "p, accuracy", "Brier")
    rows = [
        (
            word(pair.site),
            word(f"{pair.a} − {pair.b}"),
            estimate(pair.macro_auroc, as_difference),
            p_value(pair.macro_auroc),
            estimate(pair.mean_accuracy, as_points),
            p_value(pair.mean_accuracy),
            estimate(pair.mean_brier, as_difference),
        )
        for site in _sites(comparison)
        for pair in comparison.differences
        if pair.site == site
    ]
    return ReportTable("Paired differences between set-ups", columns, tuple(rows), 2, True)


def matrix_rows(comparison: AcrossComparison) -> ReportTable:
    """The macro AUROC of every network on every test set where it was judged."""
    sites = [site for site in _sites(comparison) if site != MEAN_OF_SITES]
    cells = {(one.experiment, one.network, one.site): one.macro_auroc for one in comparison.matrix}
    networks = list(dict.fromkeys((one.experiment, one.network) for one in comparison.matrix))
    rows = [
        (
            word(name),
            word(network),
            *(
                estimate(cells[name, network, site], as_score)
                if (name, network, site) in cells
                else Cell("", "stayed at its site")
                for site in sites
            ),
        )
        for name, network in networks
    ]
    return ReportTable("Macro AUROC of every network", ("set-up", "network", *sites), tuple(rows), 2, True)


def label_rows(comparison: AcrossComparison) -> ReportTable:
    """The AUROC of every label; of labels of few patients nothing but that."""
    rows = [
        (
            word(result.site),
            word(result.experiment),
            word(label.label),
            number(label.num_studies, as_count, FEW),
            number(label.num_present, as_count, FEW),
            estimate(label.auroc, as_score),
        )
        for site in _sites(comparison)
        for result in comparison.results
        if result.site == site
        for label in result.labels
    ]
    columns = ("test set", "set-up", "label", "studies", "present", "AUROC")
    return ReportTable("AUROC of every label", columns, tuple(rows), 3, True)


def label_difference_rows(comparison: AcrossComparison) -> ReportTable:
    """Differences in each label's AUROC, over patients alone (DeLong)."""
    rows = [
        (
            word(pair.site),
            word(f"{pair.a} − {pair.b}"),
            word(label.label),
            estimate(label.auroc, as_difference),
            p_value(label.auroc),
        )
        for site in _sites(comparison)
        for pair in comparison.differences
        if pair.site == site
        for label in pair.labels
    ]
    columns = ("test set", "difference", "label", "AUROC", "p")
    return ReportTable("Differences in the AUROC of every label", columns, tuple(rows), 3, True)


def _sites(comparison: AcrossComparison) -> list[str]:
    return list(dict.fromkeys(result.site for result in comparison.results))
