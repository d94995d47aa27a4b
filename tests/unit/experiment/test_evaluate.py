"""What `cxr-hvd evaluate` prints and writes of a site: one set of labels a row, and intervals where they hold."""

from io import StringIO

import numpy as np
from rich.console import Console

from cxr_hvd.experiment.evaluate import compute_intervals
from cxr_hvd.experiment.results_table import print_results
from cxr_hvd.monitor.results_file import SiteResults
from cxr_hvd.stats.metrics import compute_metrics
from cxr_hvd.stats.sample import Sample

NAMES = ("many", "few", "one class", "unknown")
NUM_STUDIES = 60


def result_of(nums_present: tuple[int, ...], names: tuple[str, ...]) -> SiteResults:
    rng = np.random.default_rng(0)
    targets_NL = (np.arange(NUM_STUDIES)[:, None] < np.array(nums_present)).astype(np.float32)
    known_NL = np.tile([name != "unknown" for name in names], (NUM_STUDIES, 1))
    scores_NL = (0.3 * targets_NL + 0.7 * rng.random(targets_NL.shape)).astype(np.float32)
    metrics = compute_metrics(scores_NL, targets_NL, known_NL, names)
    return SiteResults(
        site="north",
        experiment="D",
        split="test",
        checkpoint="latest",
        step=10,
        **vars(metrics),
        intervals=compute_intervals(Sample(targets_NL, known_NL, np.arange(NUM_STUDIES)), scores_NL, names),
    )


def printed(result: SiteResults) -> str:
    console = Console(file=StringIO(), width=160)
    print_results([result], console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_a_row_has_one_set_of_labels_and_the_mean_is_shown_with_and_without_rare_ones() -> None:
    result = result_of((20, 4, 0, 0), NAMES)
    of_label = {label.label: label for label in result.labels}
    assert result.mean_over == ("many", "few") and result.frequent.mean_over == ("many",)
    assert result.mean_accuracy == (of_label["many"].accuracy + of_label["few"].accuracy) / 2
    assert result.frequent.mean_accuracy == of_label["many"].accuracy
    assert result.intervals.labels["few"] is None and result.intervals.labels["many"] is not None
    text = printed(result)
    both, frequent = (line for line in text.splitlines() if "mean over" in line)
    assert "mean over 2 labels with both classes" in both and f"{result.macro_auroc:.3f}" in both
    assert "mean over 1 label with 10 present and 10 absent or more" in frequent
    assert f"{of_label['many'].auroc:.3f}" in frequent and " to " in frequent
    assert "no interval for labels with fewer than 10 present or absent studies" in text
    [few] = [line for line in text.splitlines() if "few " in line and "label" not in line]
    assert f"{of_label['few'].auroc:.3f}" in few and " to " not in few and " 4 " in few


def test_one_mean_is_enough_where_no_label_is_rare() -> None:
    text = printed(result_of((20, 30), ("a", "b")))
    assert text.count("mean over") == 1 and "no interval" not in text
