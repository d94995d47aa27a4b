"""`cxr-hvd evaluate RUN... --across-sites`, as two hospitals start it: each rank has its own folders alone."""

import json
from pathlib import Path

import pytest

from cxr_hvd.study.layout import Split
from lab.launch import BIN, PROJECT, Finished, launch, need_horovod, run
from lab.study_files import write_study_file
from tests.helpers.commands import cxr_here

need_horovod()

SITES = ("chexpert", "mimic")
SPLITS = (Split.TRAIN, *(Split.TEST,) * 3)
OWN_FOLDER = 'cd "$0/home${OMPI_COMM_WORLD_RANK:-$HOROVOD_RANK}" && exec "$@"'


def at_home(folder: Path, *words: str, launcher: str = "mpirun") -> Finished:
    """Run a command on two ranks, each in its own hospital's folder."""
    return launch(2, ["bash", "-c", OWN_FOLDER, str(folder), str(BIN / "cxr-hvd"), *words], launcher)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hospitals' folders; each has its own study file and its part of run D."""
    folder = tmp_path_factory.mktemp("across")
    for rank, site in enumerate(SITES):
        (folder / f"home{rank}").mkdir()
        write_study_file(folder / f"home{rank}" / f"{site}.h5", 96, rank, SPLITS, per_patient=2, site=site)
    settings = ["model.name=tiny", "model.image_size=32", "training.batch_size=4", "training.max_steps=2"]
    settings += ["training.precision=fp32", *(f"sites.{site}.data={site}.h5" for site in SITES)]
    words = [word for setting in settings for word in ("--set", setting)]
    job = at_home(folder, "train", str(PROJECT / "jobs/configs/D.yaml"), "--run", "runs/D", *words)
    assert job.exit_code == 0, job.output
    return folder


@pytest.mark.slow
def test_hospitals_judge_a_run_and_see_the_same(folder: Path) -> None:
    """Neither folder nor file of the other hospital is there to be read; the reports are the same."""
    job = at_home(folder, "evaluate", "runs/D", "--across-sites")
    assert job.exit_code == 0, job.output
    assert "2 networks judged on 72 patients of 2 sites" in job.output
    reports = []
    for rank, site in enumerate(SITES):
        run_folder = folder / f"home{rank}" / "runs" / "D"
        assert [path.name for path in run_folder.iterdir()] == [site]
        assert (run_folder / site / "across.json").stat().st_mode & 0o777 == 0o600
        report = cxr_here("report", run_folder, "--json")
        assert report.exit_code == 0, report.output
        reports.append(json.loads(report.output))
        verified = cxr_here("ledger", "verify", run_folder)
        assert verified.exit_code == 0 and "None entered any exchange" in verified.output
        assert "of all networks that were judged on its test studies" in " ".join(verified.output.split())
    assert reports[0] == reports[1]
    assert [result["site"] for result in reports[0]["results"]] == [*SITES, "mean of sites"]
    assert all(0 < result["macro_auroc"]["value"] < 1 for result in reports[0]["results"])

    page = cxr_here("report", folder / "home0" / "runs" / "D", "--out", folder / "page")
    assert page.exit_code == 0 and "macro AUROC" in page.output
    assert "stayed at its site" in (folder / "page" / "report.html").read_text()


@pytest.mark.slow
def test_where_both_allow_it_private_blocks_travel_and_the_ledger_tells(folder: Path) -> None:
    allow = ("--set", "sharing.evaluate_private=true")
    job = at_home(folder, "evaluate", "runs/D", "--across-sites", *allow, launcher="gloo")
    assert job.exit_code == 0, job.output
    report = cxr_here("report", folder / "home1" / "runs" / "D", "--json")
    places = [(row["network"], row["site"]) for row in json.loads(report.output)["matrix"]]
    assert places == [(network, site) for network in SITES for site in SITES]
    verified = cxr_here("ledger", "verify", folder / "home1" / "runs" / "D")
    text = " ".join(verified.output.split())
    assert verified.exit_code == 0, verified.output
    assert "Private tensors left the site 1 time(s), to be judged at other sites" in text


@pytest.mark.slow
def test_one_rank_alone_is_told_what_to_use(folder: Path) -> None:
    run_folder = str(folder / "home0" / "runs" / "D")
    alone = run([str(BIN / "cxr-hvd"), "evaluate", run_folder, "--across-sites"])
    assert alone.exit_code == 2 and "where one place may read all sites' files: --pooled" in alone.output
    pooled = run([str(BIN / "cxr-hvd"), "evaluate", run_folder, "--pooled"])
    assert pooled.exit_code == 1 and "expected a folder of every site, found none of mimic" in pooled.output


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--across-sites", "--pooled"), "leave out --pooled, --site and --split"),
        (("--across-sites", "--split", "train"), "leave out --pooled, --site and --split"),
        (("--outside", "east=east.h5"), "--outside adds to what is judged by --pooled"),
        (("runs/C",), "expected one RUN, found 2"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(words: tuple[str, ...], line: str) -> None:
    job = cxr_here("evaluate", "runs/D", *words)
    assert job.exit_code == 2 and line in job.output
