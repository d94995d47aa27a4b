"""The main job as a user types it: files of two hospitals, study files, two ranks, a table."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file

from cxr_hvd.study.labels import LABELS
from lab.launch import BIN, PROJECT, Finished, launch, need_horovod, run
from lab.study_files import write_study_file
from tests.helpers.commands import cxr_here

need_horovod()

TRAIN, EVALUATE, PREPROCESS = (
    [str(BIN / "cxr-hvd"), "train"],
    [str(BIN / "cxr-hvd"), "evaluate"],
    str(BIN / "cxr-preprocess"),
)
QUICK = [
    *("model.name=tiny", "model.image_size=32", "training.batch_size=4"),
    *("training.max_steps=3", "training.precision=fp32"),
]


def settings(*more: str) -> list[str]:
    return [word for setting in (*QUICK, *more) for word in ("--set", setting)]


def ok(job: Finished) -> Finished:
    assert job.exit_code == 0, job.output
    return job


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with chexpert.h5 and mimic.h5, made from phantoms in the published layouts."""
    folder = tmp_path_factory.mktemp("sites")
    for source, site in (("chexpert", "chexpert"), ("mimic-cxr", "mimic")):
        ok(run([PREPROCESS, "phantom", str(folder / site), "--layout", source, "--studies", "60", "--seed", "3"]))
        drawn = ["--train", "24", "--test", "16", "--key", str(folder / f"{site}.key")]
        ok(
            run(
                [
                    PREPROCESS,
                    source,
                    str(folder / site),
                    "--site",
                    site,
                    "--out",
                    str(folder / f"{site}.h5"),
                    *drawn,
                ]
            )
        )
    return folder


def data_of(folder: Path) -> list[str]:
    return [f"sites.{site}.data={folder / site}.h5" for site in ("chexpert", "mimic")]


def config(name: str) -> str:
    return str(PROJECT / "jobs" / "configs" / f"{name}.yaml")


NIGHT = (pytest.mark.slow, pytest.mark.night)


@pytest.mark.parametrize(
    "launcher", ["horovodrun", pytest.param("gloo", marks=NIGHT), pytest.param("mpirun", marks=NIGHT)]
)
def test_experiment_d_trains_and_is_judged(launcher: str, sites: Path, tmp_path: Path) -> None:
    runs = tmp_path / "D"
    told = ok(launch(2, [*TRAIN, config("D"), "--run", str(runs), *settings(*data_of(sites))], launcher))
    assert told.lines("transition1")
    assert told.lines("step 3/3")
    # TensorBoard's files, logs, ledgers, checkpoints: their owner's alone.
    assert not [path for path in (runs, *runs.rglob("*")) if not path.is_symlink() and path.stat().st_mode & 0o077]
    shared = [load_file(runs / site / "checkpoints/latest/shared.safetensors") for site in ("chexpert", "mimic")]
    private = [load_file(runs / site / "checkpoints/latest/private.safetensors") for site in ("chexpert", "mimic")]
    assert shared[0].keys() == shared[1].keys() and private[0].keys() == private[1].keys()
    assert all(np.array_equal(shared[0][name], shared[1][name]) for name in shared[0])
    assert not np.array_equal(private[0]["classifier.weight"], private[1]["classifier.weight"])
    if launcher == "horovodrun":  # the launchers' results are the same files
        told = ok(launch(2, [*EVALUATE, str(runs)], launcher))
        assert told.lines("chexpert: experiment D, step 3, test, 16 studies")
        assert told.lines("mimic: experiment D, step 3, test, 16 studies")
        assert told.lines("all-negative") and told.lines("Pleural Effusion")
        by_two = [json.loads((runs / site / "results.json").read_text()) for site in ("chexpert", "mimic")]
        alone = json.loads(ok(run([*EVALUATE, str(runs), "--json"])).output)
        assert [each["macro_auroc"] for each in alone] == [each["macro_auroc"] for each in by_two]
        assert {label["label"] for label in alone[0]["labels"]} == set(LABELS)


def test_experiment_a_trains_one_site_without_a_launcher(sites: Path, tmp_path: Path) -> None:
    command = [*TRAIN, config("A"), "--run", str(tmp_path / "A"), *settings(*data_of(sites))]
    assert "train one alone with --site chexpert" in run(command, OMPI_COMM_WORLD_SIZE="1").output
    told = ok(run([*command, "--site", "mimic"]))
    assert told.lines("one rank alone; nothing travels")
    assert [path.name for path in (tmp_path / "A").iterdir()] == ["mimic"]
    again = run([*command, "--site", "mimic"])
    assert again.exit_code == 1
    assert "holds a run already: go on with --resume" in again.output


# ---- what is wrong ends in one line on every rank


def one_line_on_every_rank(job: Finished, *said: str, exit_code: int = 1) -> None:
    lines = job.lines("cxr-hvd: error:")
    assert job.exit_code == exit_code, job.output
    assert len(lines) == 2, job.output
    assert "Traceback" not in job.output
    for text in said:
        assert any(text in line for line in lines), f"expected '{text}' in {lines}"


@pytest.fixture
def two_sites(tmp_path: Path) -> Path:
    for site in ("chexpert", "mimic"):
        write_study_file(tmp_path / f"{site}.h5", site=site)
    return tmp_path


def trained_on(folder: Path, num_ranks: int = 2, *more: str) -> Finished:
    command = [*TRAIN, config("D"), "--run", str(folder / "run"), *settings(*data_of(folder), *more)]
    return launch(num_ranks, command, limit_s=90)


def test_a_study_file_without_complete(two_sites: Path) -> None:
    with h5py.File(two_sites / "mimic.h5", "r+") as file:
        del file.attrs["complete"]
    job = trained_on(two_sites)
    one_line_on_every_rank(job, "mimic.h5: expected attribute complete = 1", "stopped because rank 1 failed")
    assert not (two_sites / "run").exists()


def test_a_config_that_is_wrong(two_sites: Path) -> None:
    job = trained_on(two_sites, 2, "training.epoch=3")
    one_line_on_every_rank(job, "unknown key 'training.epoch'; did you mean 'epochs'?", exit_code=2)


@pytest.mark.parametrize("num_ranks", [3])
def test_ranks_that_do_not_fit_the_sites(num_ranks: int, two_sites: Path) -> None:
    job = trained_on(two_sites, num_ranks)
    assert job.exit_code == 2
    assert len(job.lines(f"the sites want 2 ranks (chexpert 1, mimic 1), found {num_ranks}")) == num_ranks


@pytest.mark.slow
def test_a_file_that_turns_bad_while_training_ends_all_ranks(two_sites: Path) -> None:
    content = bytearray((two_sites / "mimic.h5").read_bytes())
    with h5py.File(two_sites / "mimic.h5") as file:
        chunk = file["images"].id.get_chunk_info_by_coord((2, 0, 0, 0))
    content[chunk.byte_offset + 5] ^= 1
    (two_sites / "mimic.h5").write_bytes(content)
    job = trained_on(two_sites)
    assert job.exit_code != 0
    assert job.lines("image 0 of study 2 differs from its digest")
    assert "Traceback" not in job.output


@pytest.mark.parametrize("verb", ["train", "plan", "evaluate", "doctor", "inspect-run", "show-batch"])
def test_every_verb_shows_an_example(verb: str) -> None:
    told = ok(cxr_here(verb, "--help"))
    assert told.lines(f"cxr-hvd {verb}")
    assert verb != "plan" or "sharing.private=[head, stem]" in told.output


@pytest.mark.slow
def test_sites_may_be_named_by_each_rank(two_sites: Path) -> None:
    command = [*TRAIN, config("D"), "--run", str(two_sites / "run"), *settings(*data_of(two_sites))]
    first, second = (["-np", "1", "-x", f"CXR_SITE={site}", *command] for site in ("mimic", "chexpert"))
    told = ok(run(["mpirun", "--allow-run-as-root", "--oversubscribe", *first, ":", *second]))
    assert told.lines("step 3/3")
    assert sorted(path.name for path in (two_sites / "run").iterdir()) == ["chexpert", "mimic"]


def test_the_plan_is_shown_before_any_launch() -> None:
    told = ok(cxr_here("plan", config("D")))
    assert told.lines("each rank hands over 18.0 MB of weights every step")
    rows = json.loads(ok(cxr_here("plan", config("D"), "--json")).output)["blocks"]
    assert {row["block"] for row in rows if row["scope"] == "private"} == {
        "stem",
        "denseblock1",
        "denseblock4",
        "head",
    }


@pytest.mark.slow
def test_real_x_rays_of_two_hospitals(real_data: Path, tmp_path: Path) -> None:
    roots = {"chexpert": real_data / "site-nih", "mimic-cxr": real_data / "site-guangzhou" / "mimic-cxr-jpg"}
    for (source, root), site in zip(roots.items(), ("nih", "guangzhou"), strict=True):
        out = ["--out", str(tmp_path / f"{site}.h5"), "--site", site, "--key", str(tmp_path / f"{site}.key")]
        ok(run([PREPROCESS, source, str(root), *out]))
    data = ["model.name=tiny", *(f"sites.{site}.data={tmp_path / site}.h5" for site in ("nih", "guangzhou"))]
    ok(launch(2, [*TRAIN, config("demo-real"), "--run", str(tmp_path / "run"), *settings(*data)], "horovodrun"))
    results = json.loads(ok(run([*EVALUATE, str(tmp_path / "run"), "--json"], limit_s=240)).output)
    assert [(result["site"], result["num_studies"]) for result in results] == [("guangzhou", 480), ("nih", 114)]
    known = {label["label"]: label["num_studies"] for label in results[0]["labels"]}
    assert known["Pneumonia"] == 480 and known["Edema"] == 0  # what a source never assessed is unknown, not absent
