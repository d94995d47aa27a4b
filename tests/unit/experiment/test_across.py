"""What sites send of networks: written and read it is the same, of few patients nothing, and tables follow."""

import math
from pathlib import Path

import numpy as np
import pytest

from cxr_hvd.config.schema import ExperimentName
from cxr_hvd.errors import CheckpointError, DataError
from cxr_hvd.experiment.across.compare import compare_across, find_across
from cxr_hvd.experiment.across.numbers import Layout
from cxr_hvd.experiment.across.record import ACROSS, Across, JointNumbers, NetworkName, SiteSummary, read_across
from cxr_hvd.experiment.across.summary import summarise
from cxr_hvd.report.across.page import write_across_page
from cxr_hvd.stats.intervals import covariance_difference
from cxr_hvd.stats.sample import Sample

LABELS = ("often", "rare", "unknown")
SETUPS: tuple[tuple[ExperimentName, tuple[str, ...]], ...] = (("C", ("common",)), ("D", ("north", "south")))
NETWORKS = tuple(
    NetworkName(
        setup=setup,
        experiment=setup,
        seed=seed,
        network=network,
        step=3,
        config_sha256="1" * 64,
        shared_sha256="2" * 64,
    )
    for setup, owners in SETUPS
    for seed in (1, 2)
    for network in owners
)
AT_SITE: dict[str, tuple[int, ...]] = {"north": (0, 1, 2, 4), "south": (0, 1, 3, 5)}
LAYOUT = Layout(LABELS, AT_SITE, {"north": (0, 2), "south": (0, 3)})


def summary_of(site: str, num_patients: int = 60, num_rare: int = 9) -> SiteSummary:
    """Two studies a patient; one label is frequent, one rare, one known to nobody."""
    rng = np.random.default_rng(len(site))
    targets = np.zeros((2 * num_patients, 3), dtype=np.float32)
    targets[: num_patients // 2, 0] = 1
    targets[: 2 * num_rare, 1] = 1
    known = np.ones_like(targets, bool)
    known[:, 2] = False
    scores = (0.3 * targets + 0.7 * rng.random((4, *targets.shape))).astype(np.float32)
    return summarise(site, scores, Sample(targets, known, np.arange(2 * num_patients) // 2), LABELS, LAYOUT)


def across_of(*sites: str) -> Across:
    summaries = tuple(summary_of(site) for site in sites)
    return Across(tool="test", checkpoint="latest", label_names=LABELS, networks=NETWORKS, sites=summaries)


@pytest.mark.parametrize("site", AT_SITE)
def test_what_is_written_is_read_again(site: str) -> None:
    summary = summary_of(site)
    row = LAYOUT.write(summary).tolist()
    assert len(row) == LAYOUT.length == 2 + 6 + 6 * (4 + 10) + 2 * 3 * 2 * 20
    assert LAYOUT.read(site, row) == summary


def test_of_a_label_of_few_patients_nothing_is_sent() -> None:
    """Eighteen studies of nine patients are too few, twenty of ten are not."""
    summary = summary_of("north")
    assert summary.mean_over == ("often",)
    for label in summary.labels[1:]:
        assert (label.num_studies, label.num_present, label.auroc) == (None, None, None)
    rows = [[*one.present, *one.absent] for one in summary.histograms if one.label != "often"]
    assert not np.any(rows)
    assert summary_of("north", num_rare=10).mean_over == ("often", "rare")
    none = summary_of("north", num_patients=12, num_rare=2)
    assert none.macro_auroc is none.mean_accuracy is None and not none.mean_over
    assert LAYOUT.read("north", LAYOUT.write(none).tolist()) == none


@pytest.mark.parametrize(
    ("place", "number", "text"),
    [
        (0, -1.0, "expected a number of studies"),
        (1, 1e6, "expected no more patients than studies"),
        (3, 4.0, "expected a label of 10 present and absent"),
        (8, math.nan, "expected numbers from 0 to 1"),
        (8, 1.5, "expected numbers from 0 to 1"),
        (12, -0.1, "a variance below 0"),
        (13, 0.5, "a combination of negative variance"),
        (8 + 5 * 14, 0.5, "expected nothing of a label of few patients"),
        (-1, 12.0, "expected cells of 10 studies"),
        (8 + 6 * 14 + 19, 3.0, "expected cells of 10 studies"),
    ],
)
def test_numbers_that_no_patients_give_are_refused(place: int, number: float, text: str) -> None:
    row = LAYOUT.write(summary_of("north")).tolist()
    row[place] = number
    with pytest.raises(ValueError, match=text):
        LAYOUT.read("north", row)


def test_a_network_that_diverged_is_named_before_anything_is_sent() -> None:
    sample = Sample(np.zeros((4, 3), np.float32), np.ones((4, 3), bool), np.arange(4))
    with pytest.raises(DataError, match="leave out the run that diverged"):
        summarise("north", np.full((4, 4, 3), np.nan), sample, LABELS, LAYOUT)


def test_a_mean_of_sites_adds_the_covariances_of_other_patients(tmp_path: Path) -> None:
    across = across_of("north", "south")
    (tmp_path / ACROSS).write_text(across.model_dump_json())
    comparison = compare_across(tmp_path / ACROSS)
    [pair] = [one for one in comparison.differences if one.site == "mean of sites"]
    assert (pair.a, pair.b) == ("D", "C")
    contrast = np.array([[-1, 0, 1, 0], [0, -1, 0, 1]])
    values, covariances = [], []
    for site in across.sites:
        assert site.macro_auroc is not None
        values.append(contrast @ np.array(site.macro_auroc.values))
        covariances.append(contrast @ np.array(site.macro_auroc.covariance) @ contrast.T)
    expected = covariance_difference(np.mean(values, axis=0), np.sum(covariances, axis=0) / 4)
    assert pair.macro_auroc.value == pytest.approx(expected.value, abs=1e-12)
    assert pair.macro_auroc.standard_error == pytest.approx(expected.standard_error, rel=1e-9)
    assert expected.p_value is not None and pair.macro_auroc.p_value is None  # two seeds give none
    few = [label.auroc for label in comparison.differences[0].labels if label.label == "rare"]
    assert few[0].value is None and few[0].note == "fewer than 10 patients in a class"


def test_a_page_escapes_what_others_sent(tmp_path: Path) -> None:
    across = across_of("north", "south")
    evil = across.model_copy(update={"label_names": ("<script>x", *LABELS[1:])})
    labels = [site.labels[0].model_copy(update={"label": "<script>x"}) for site in evil.sites]
    sites = tuple(
        site.model_copy(update={"labels": (label, *site.labels[1:])})
        for site, label in zip(evil.sites, labels, strict=True)
    )
    (tmp_path / ACROSS).write_text(evil.model_copy(update={"sites": sites}).model_dump_json())
    page = write_across_page(compare_across(tmp_path / ACROSS), tmp_path).read_text()
    assert "<script>x" not in page and "&lt;script&gt;x" in page and "fewer than 10 patients" in page
    assert page.count("<svg") == 4  # of each site and set-up one, of the label that enough patients have


def test_results_of_two_releases_are_not_mixed(tmp_path: Path) -> None:
    for number, sites in enumerate((("north",), ("north",), ("north", "south"))):
        folder = tmp_path / f"run{number}" / "north"
        folder.mkdir(parents=True)
        (folder / ACROSS).write_text(across_of(*sites).model_dump_json())
    runs = [tmp_path / f"run{number}" for number in range(3)]
    assert find_across(runs[:2]) == runs[0] / "north" / ACROSS
    with pytest.raises(CheckpointError, match="are of two releases"):
        find_across(runs)


def test_damaged_results_are_one_line(tmp_path: Path) -> None:
    across = across_of("north", "south")
    north = across.sites[0]
    damaged = (
        north.model_copy(update={"networks": (0, 1, 2, 99)}),
        north.model_copy(update={"networks": (0, 1, 3, 5)}),
        north.model_copy(update={"labels": north.labels[1:]}),
        north.model_copy(update={"macro_auroc": JointNumbers(values=(0.5,), covariance=((0.1,),))}),
    )
    texts = [across.model_copy(update={"sites": (site,)}).model_dump_json() for site in damaged]
    for text in ("{}", "no JSON", *texts):
        (tmp_path / ACROSS).write_text(text)
        with pytest.raises(CheckpointError, match="expected results across sites, found none to read"):
            read_across(tmp_path / ACROSS)
