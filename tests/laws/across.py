"""Laws of evaluation across sites: what pooled scores say, without a score that leaves its site."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from cxr_hvd.comm.horovod import HorovodComm
from cxr_hvd.comm.local import LocalComm
from cxr_hvd.config.file import parse_config
from cxr_hvd.errors import ContractError, DataError, PeerError
from cxr_hvd.experiment.across.compare import compare_across, find_across
from cxr_hvd.experiment.across.comparison import AcrossComparison
from cxr_hvd.experiment.across.evaluate import evaluate_across_sites
from cxr_hvd.experiment.across.numbers import Layout
from cxr_hvd.experiment.across.record import ACROSS, Across, SiteSummary
from cxr_hvd.experiment.across.releases import RELEASES
from cxr_hvd.experiment.compare import compare
from cxr_hvd.experiment.comparison import Comparison, JudgedNetwork
from cxr_hvd.experiment.scored_runs import ScoredRuns, load_runs
from cxr_hvd.experiment.scoring import score_pooled
from cxr_hvd.ledger.audit import audit
from cxr_hvd.ledger.reader import load_folders
from cxr_hvd.ledger.writer import Ledger
from cxr_hvd.stats.bootstrap import resampled
from cxr_hvd.stats.weighted import macro_auroc, mean_accuracy
from cxr_hvd.study.layout import Split, StudyRow
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.study.study_writer import StudyFileWriter
from cxr_hvd.training.train import train
from lab.study_files import write_study_file
from tests.laws.law import law
from tests.laws.parts import NETWORK, common_folder, fails_with, is_equal_everywhere, recorded_collectives

SITES = ("site0", "site1")
SPLITS = (Split.TRAIN, Split.VALIDATE, *(Split.TEST,) * 4)


def as_new(comm: HorovodComm) -> None:
    """Begin as in a process of its own."""
    comm.ledger = Ledger()


def train_runs(comm: HorovodComm, folder: Path, setups: dict[str, list[int]], **sharing: Any) -> list[Path]:
    """Train set-ups with seeds; each site has a folder of its own, and no path to the other's data.

    The second site has all ranks but the first.
    """
    index = min(comm.rank, 1)
    home, site = folder / f"home{index}", SITES[index]
    if comm.rank < 2:
        write_study_file(home / "own.h5", 240, index, SPLITS, per_patient=2, site=site)
    is_equal_everywhere(comm, "files are written")
    runs, ranks_of_site = [], {SITES[0]: 1, SITES[1]: comm.num_ranks - 1}
    for name, seeds in setups.items():
        for seed in seeds:
            tree = {
                "experiment": name,
                "seed": seed,
                "sites": {one: {"data": "nowhere.h5", "ranks": ranks} for one, ranks in ranks_of_site.items()},
                "model": {"name": NETWORK, "image_size": 32},
                "sharing": sharing,
                "training": {"max_steps": 3, "batch_size": 4, "precision": "fp32", "learning_rate": 0.01},
                "validation": {"every_epochs": 0},
            }
            tree["sites"][site]["data"] = str(home / "own.h5")  # type: ignore[index]
            as_new(comm)
            runs.append(home / "runs" / name / f"seed-{seed}")
            train(parse_config(tree, "laws"), runs[-1], comm)
    return runs


def make_home(comm: HorovodComm, folder: Path) -> Path:
    folder = common_folder(comm, folder)
    if comm.rank < 2:
        (folder / f"home{comm.rank}").mkdir()
    return folder


def judge(comm: HorovodComm, runs: list[Path], settings: Sequence[str] = ()) -> Across:
    as_new(comm)
    return evaluate_across_sites(runs, comm, settings)


def pool(folder: Path, runs: list[Path]) -> list[Path]:
    """Put both sites' folders and files together, and score all networks there."""
    pooled = []
    for run in runs:
        target = folder / "pooled" / run.parent.name / run.name
        for rank, site in enumerate(SITES):
            shutil.copytree(folder / f"home{rank}" / "runs" / run.parent.name / run.name / site, target / site)
        settings = [f"sites.{site}.data={folder}/home{rank}/own.h5" for rank, site in enumerate(SITES)]
        score_pooled(target, LocalComm(), settings)
        pooled.append(target)
    return pooled


@law(day="mpirun-2", night="gloo-2")
def results_across_sites_are_those_of_pooled_scores(comm: HorovodComm, folder: Path) -> None:
    """Values to 1e-6; standard errors to 5% of the bootstrap's; C and D, two seeds, two studies a patient."""
    folder = make_home(comm, folder / "equal")
    runs = train_runs(comm, folder, {"C": [1, 2], "D": [1, 2]})
    with recorded_collectives() as records:
        across = judge(comm, runs)
    is_equal_everywhere(comm, "judged")

    # What was sent is what the ledger holds: so many numbers, none of them private tensors.
    num_labels, num_histograms = 14, 2 * 2 * 14
    expected = 2 + 2 * num_labels + (3 + num_labels) * (4 + 4 * 5 // 2) + 20 * num_histograms
    large = [tensor for _, tensor, _ in records if tensor.numel() > 300]
    assert [tensor.numel() for tensor in large] == [expected] and large[0].dtype == torch.float64
    ledger = runs[0] / SITES[comm.rank] / "ledger.jsonl"
    entries = [e for line in ledger.read_text().splitlines() for e in json.loads(line).get("entries", [])]
    summaries = [entry for entry in entries if entry["purpose"] == "summary"]
    assert sorted(entry["shape"][-1] for entry in summaries) == [1, expected]
    assert not [entry for entry in entries if entry["purpose"] in ("network", "answers", "scores")]
    judged = audit(load_folders(runs[0]))
    assert not judged.faults, judged.faults[:3]

    # All sites have the same file, and it is what pooled scores say.
    last = [folder / f"home{rank}/runs/D/seed-2/{site}/{ACROSS}" for rank, site in enumerate(SITES)]
    assert last[0].read_bytes() == last[1].read_bytes()
    own = find_across([runs[0]])
    assert own is not None
    comparison = compare_across(own)
    if comm.rank == 0:
        pooled_runs = pool(folder, runs)
        has_pooled_values(comparison, compare(pooled_runs, 100))
        has_the_bootstraps_errors(across, load_runs(pooled_runs))
    is_equal_everywhere(comm, "pooled")


def has_pooled_values(comparison: AcrossComparison, pooled: Comparison) -> None:
    for result in (result for result in comparison.results if result.site in SITES):
        [same] = [one for one in pooled.results if (one.experiment, one.site) == (result.experiment, result.site)]
        assert result.mean_over == same.frequent.mean_over and len(result.mean_over) > 5
        for name in ("macro_auroc", "mean_accuracy", "mean_brier"):
            is_close(getattr(result, name).value, getattr(same.frequent, name).value)
        assert [label.num_present for label in result.labels] == [label.num_present for label in same.labels]
    for row in comparison.differences:
        place = (row.a, row.b, row.site, "test")
        [same_row] = [one for one in pooled.differences if (one.a, one.b, one.site, one.split) == place]
        for name in ("macro_auroc", "mean_accuracy"):
            ours, theirs = getattr(row, name), getattr(same_row.frequent, name)
            is_close(ours.value, theirs.value)
            assert np.allclose(ours.by_seed, theirs.by_seed, rtol=0, atol=1e-6)
        for label, same_label in zip(row.labels, same_row.labels, strict=True):
            is_close(label.auroc.value, same_label.auroc.value)
            is_close(label.auroc.standard_error, same_label.auroc.standard_error)


def has_the_bootstraps_errors(across: Across, runs: ScoredRuns) -> None:
    """Of each network and of each two networks' difference, at each site.

    Means over seeds stand in the unit tests: of two seeds that have little in common, 4000 draws do not know their
    covariance to 5%.
    """
    for site in across.sites:
        assert site.num_patients == 80 and site.num_studies == 160 and site.macro_auroc and site.mean_accuracy
        sample, draws = runs.samples[site.site, "test"], runs.draw(site.site, 2, 4000)
        for metric, numbers in (
            (macro_auroc(sample, 10), site.macro_auroc),
            (mean_accuracy(sample, at_least=10), site.mean_accuracy),
        ):
            tables = [resampled(metric, runs.site_scores_SNL(name, site.site), draws) for name in ("C", "D")]
            by_draws_KK, sent_KK = np.cov(np.concatenate(tables)[:, 1:]), np.array(numbers.covariance)
            for contrast in (*np.eye(4), *np.array([[1, 0, -1, 0], [0, 1, 0, -1]])):
                error, expected = (np.sqrt(contrast @ found @ contrast) for found in (sent_KK, by_draws_KK))
                assert abs(error / expected - 1) < 0.05, (site.site, contrast, error, expected)


def is_close(one: float | None, other: float | None) -> None:
    assert one is not None and other is not None and abs(one - other) < 1e-6, (one, other)


@law(day="mpirun-2", night="gloo-2")
def private_tensors_travel_only_where_all_allow_it(comm: HorovodComm, folder: Path) -> None:
    folder = make_home(comm, folder / "private")
    runs = train_runs(comm, folder, {"D": [1]}, evaluate_private=True)
    not_here = ["sharing.evaluate_private=false"] if comm.rank == 0 else []
    text = "the sites differ on evaluate_private of D seed 1: 'False' at site site0"
    fails_with(ContractError, text, lambda: judge(comm, runs, not_here))
    runs += train_again(comm, folder)
    across = judge(comm, runs)
    of_setup = {one.setup for one in across.networks}
    assert of_setup == {"A", "D"}
    judged = {site.site: [str(across.networks[place]) for place in site.networks] for site in across.sites}
    assert judged == {site: [f"A seed 1 {site}", "D seed 1 site0", "D seed 1 site1"] for site in SITES}
    ledger = runs[0] / SITES[comm.rank] / "ledger.jsonl"
    entries = [e for line in ledger.read_text().splitlines() for e in json.loads(line).get("entries", [])]
    sent = {entry["name"]: entry["shape"][-1] for entry in entries if entry["purpose"] == "network"}
    assert list(sent) == ["D seed 1"]
    found = audit(load_folders(runs[0]))
    assert not found.faults, found.faults[:3]

    # It is the other site's very network that was judged: pooled scores say the same.
    matrix = {(one.experiment, one.network, one.site): one.macro_auroc.value for one in compare_all(folder, comm)}
    if comm.rank == 0:
        pooled = compare(pool(folder, runs[:1]), 100)
        assert all(result.frequent.mean_over == result.mean_over for result in pooled.results)
        for one in pooled.matrix:
            if one.network in SITES:
                is_close(matrix[one.experiment, one.network, one.site], one.macro_auroc.value)
    is_equal_everywhere(comm, "pooled")


def train_again(comm: HorovodComm, folder: Path) -> list[Path]:
    """Train A, whose networks are private and stay at home."""
    home = folder / f"home{comm.rank}"
    (home / "own.h5").unlink()
    return train_runs(comm, folder, {"A": [1]})


def compare_all(folder: Path, comm: HorovodComm) -> tuple[JudgedNetwork, ...]:
    own = find_across([folder / f"home{comm.rank}" / "runs"])
    assert own is not None
    return compare_across(own).matrix


@law(day="mpirun-3", night="gloo-3")
def ranks_of_one_site_share_its_studies_out(comm: HorovodComm, folder: Path) -> None:
    """With 3 ranks: sites of 1 and 2. Answers go between the two alone; results are those of one rank a site."""
    folder = make_home(comm, folder / "ranks")
    runs = train_runs(comm, folder, {"D": [1]})
    across = judge(comm, runs)
    own = runs[0] / SITES[min(comm.rank, 1)]
    is_equal_everywhere(comm, "judged")
    name = "ledger-rank1.jsonl" if comm.rank == 2 else "ledger.jsonl"
    entries = [e for line in (own / name).read_text().splitlines() for e in json.loads(line).get("entries", [])]
    answers = [(e["group"], e["group_size"]) for e in entries if e["purpose"] == "answers"]
    assert answers == ([] if comm.rank == 0 else [("site", 2)])
    found = audit(load_folders(runs[0]))
    assert not found.faults, found.faults[:3]
    if comm.rank == 1:
        pooled = compare(pool(folder, runs), 100)
        for site, same in zip(across.sites, pooled.results, strict=True):
            assert site.macro_auroc
            is_close(site.macro_auroc.values[0], same.frequent.macro_auroc.value)
    is_equal_everywhere(comm, "pooled")


@law(day="mpirun-2", night="gloo-2")
def numbers_that_no_patients_give_are_refused_by_all(comm: HorovodComm, folder: Path) -> None:
    folder = make_home(comm, folder / "hostile")
    runs = train_runs(comm, folder, {"C": [1]})
    place = 2 + 2 * 14  # of the first value; its variance follows
    hostile = {
        "expected numbers from 0 to 1": (place, float("nan")),
        "a variance below 0": (place + 1, -1e-4),
        "expected a number of studies": (0, 0.5),
        "present and absent studies or more": (3, 3.0),
        "cells of 10": (-1, 7.0),
    }
    honest = Layout.write

    def refused(text: str, write: Callable[[Layout, SiteSummary], NDArray[np.float64]]) -> None:
        with patch.object(Layout, "write", write if comm.rank == 1 else honest):
            fails_with(ContractError, text, lambda: judge(comm, runs))

    for text, (index, number) in hostile.items():

        def write(layout: Layout, summary: SiteSummary, index: int = index, number: float = number) -> Any:
            numbers = honest(layout, summary)
            numbers[index] = number
            return numbers

        refused(text, write)
    refused("site site1, rank 1", lambda layout, summary: honest(layout, summary)[:-1])


@law(day="mpirun-2", night="gloo-2")
def test_studies_of_nearly_the_same_patients_are_released_once(comm: HorovodComm, folder: Path) -> None:
    folder = make_home(comm, folder / "releases")
    runs = train_runs(comm, folder, {"C": [1], "D": [1]})
    first = judge(comm, runs)
    assert judge(comm, runs) == first
    judge(comm, runs[:1])  # other networks on the same test studies
    path = runs[0] / SITES[comm.rank] / RELEASES
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(json.loads(path.read_text())["releases"]) == 2 and "patient1" not in path.read_text()
    for num_fewer in (3, 10):
        if comm.rank == 1:
            drop_patients(folder / "home1" / "own.h5", num_fewer)
        run = runs[num_fewer == 3]  # each knows of the other's releases
        if num_fewer == 10:
            assert judge(comm, [run]).sites[1].num_patients == 80 - 13
        elif comm.rank == 1:
            fails_with(DataError, "found a difference of 3 patient(s)", lambda run=run: judge(comm, [run]))
        else:
            fails_with(PeerError, "rank 1 failed", lambda run=run: judge(comm, [run]))


def drop_patients(path: Path, num_patients: int) -> None:
    """Write a study file again without so many of its TEST patients."""
    with StudyFile(path) as file:
        dropped = set(sorted(set(file.patient_ids[file.indices(Split.TEST)]))[:num_patients])
        kept = [index for index in range(len(file)) if file.patient_ids[index] not in dropped]
        studies = [file[index] for index in kept]
        rows = [
            StudyRow(file.study_ids[index], file.patient_ids[index], study.split, study.views, labels)
            for index, study in zip(kept, studies, strict=True)
            for labels in [tuple(study.labels.values())]
        ]
        file_header = file.header
    path.unlink()
    writer = StudyFileWriter(path, file_header, len(rows))
    for row, study in zip(rows, studies, strict=True):
        writer.append(row, study.images)
    writer.close()
