"""The results and thresholds in a model card, from `results.json` and the comparison of the run's experiment."""

from cxr_hvd.deploy.card.data import write_counts
from cxr_hvd.deploy.card.run_facts import RunFacts
from cxr_hvd.deploy.card.section import CardTable, Section
from cxr_hvd.experiment.comparison import Estimate, JudgedSetUp, SetUp
from cxr_hvd.monitor.results_file import Bounds, LabelResult, SiteResults
from cxr_hvd.stats.metrics import MIN_OF_CLASS, SPECIFICITY
from cxr_hvd.training.network_record import NetworkRecord

UNDEFINED = "undefined"


def result_sections(record: NetworkRecord, run: RunFacts, is_whole: bool) -> list[Section]:
    """Return the sections "Results" and, for a whole network, "Thresholds"."""
    paragraphs, tables = [], []
    if run.results is not None:
        paragraphs.append(_about(run.results, record, is_whole))
        tables.append(_own_table(run.results, record))
    if run.setup is not None and run.judged:
        paragraphs.append(
            f"Set-up {run.setup.name}, of which this network is one, was trained with "
            f"{len(run.setup.seeds)} seeds. Means over seeds, with intervals over patients and seeds:"
        )
        tables.append(_setup_table(run.setup, run.judged))
    if not tables:
        paragraphs = ["Missing: neither cxr-hvd evaluate nor cxr-hvd report left numbers beside the run."]
    sections = [Section("Results", tuple(paragraphs), tables=tuple(tables))]
    return [*sections, _thresholds(record)] if is_whole else sections


def _about(results: SiteResults, record: NetworkRecord, is_whole: bool) -> str:
    text = (
        f"On {results.num_studies:,} {results.split.upper()} studies of {results.site}, with 95% intervals over "
        f"patients. Labels with fewer than {MIN_OF_CLASS} studies of a class have no numbers of their own."
    )
    if results.step != record.step:
        text += f" Measured after {results.step:,} steps; the network here has {record.step:,}."
    return text if is_whole else f"{text} Measured with the private blocks of {results.site}, which are not here."


def _own_table(results: SiteResults, record: NetworkRecord) -> CardTable:
    rows = [_label_row(label, results, record) for label in results.labels]
    for means, bounds in ((results.frequent, results.intervals.frequent), (results, results.intervals)):
        mean = _with_bounds(means.macro_auroc, bounds.macro_auroc)
        name = f"mean over {len(means.mean_over)} labels" + (" (frequent ones)" if means is not results else "")
        rows.append((name, "", mean, _score(means.macro_average_precision), ""))
    columns = (
        "label",
        "present / absent",
        "AUROC",
        "average precision",
        f"sensitivity at specificity {SPECIFICITY}",
    )
    return CardTable(f"Results at {results.site}", columns, tuple(rows))


def _label_row(label: LabelResult, results: SiteResults, record: NetworkRecord) -> tuple[str, ...]:
    if label.label not in record.trained_labels:
        return (label.label, "", "never trained", "", "")
    num_absent = label.num_studies - label.num_present
    counts = write_counts(label.num_present, num_absent)
    if min(label.num_present, num_absent) < MIN_OF_CLASS:
        return (label.label, counts, "too few studies", "", "")
    return (
        label.label,
        counts,
        _with_bounds(label.auroc, results.intervals.labels.get(label.label)),
        _score(label.average_precision),
        _score(label.sensitivity_at_specificity),
    )


def _setup_table(setup: SetUp, judged: tuple[JudgedSetUp, ...]) -> CardTable:
    rows = [
        (
            result.site,
            result.network,
            f"{result.num_studies:,} / {result.num_patients:,}",
            _estimate(result.macro_auroc),
            _estimate(result.frequent.macro_auroc),
            ", ".join(result.frequent.mean_over),
        )
        for result in judged
    ]
    columns = (
        *("test studies of", "network", "studies / patients", "macro AUROC"),
        *("macro AUROC, frequent labels", "frequent labels"),
    )
    return CardTable(f"Results of set-up {setup.name}", columns, tuple(rows))


def _thresholds(record: NetworkRecord) -> Section:
    def write(label: str) -> str:
        if label not in record.trained_labels:
            return "never trained: no answer"
        threshold = record.thresholds.get(label)
        return "none" if threshold is None else f"{threshold:.4f}"

    rows = tuple((label, write(label)) for label in record.label_names)
    how = (
        "From this probability on a label counts as present. Chosen on the site's own validation studies."
        if record.thresholds
        else "None: no validation studies chose them for this network."
    )
    return Section("Thresholds", (how,), tables=(CardTable("Thresholds", ("label", "probability"), rows),))


def _score(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:.3f}"


def _with_bounds(value: float | None, bounds: Bounds | None) -> str:
    if value is None:
        return UNDEFINED
    return f"{value:.3f}" if bounds is None else f"{value:.3f} [{bounds[0]:.3f}, {bounds[1]:.3f}]"


def _estimate(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return _score(estimate.value)
    return _with_bounds(estimate.value, (estimate.low, estimate.high))
