"""`cxr-hvd predict` and `explain`: answers are evaluation's, and there is none where nobody taught the network."""

import copy
import csv
import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import cxr_hvd
from cxr_hvd.config.file import load_config
from cxr_hvd.data.loader import batching_of_run
from cxr_hvd.data.studies import StudySet
from cxr_hvd.deploy.network import load_model
from cxr_hvd.experiment.scoring import networks_of, open_whole
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.training.validation import predict
from lab.launch import BIN, PROJECT, launch, need_horovod
from lab.study_files import write_study_file
from tests.helpers.commands import cxr_here

need_horovod()

SITES = {"chexpert": ("Fracture", "Pneumonia"), "mimic": ("Pneumonia",)}
"""What each site's source says nothing of."""

SPLITS = (Split.TRAIN, Split.VALIDATE, Split.TEST)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sites' study files, and run D on them."""
    folder = tmp_path_factory.mktemp("predict")
    for seed, (site, unknown) in enumerate(SITES.items()):
        write_study_file(folder / f"{site}.h5", 48, seed, SPLITS, unknown, site=site)
    settings = ["model.name=tiny", "model.image_size=32", "training.batch_size=4", "training.max_steps=4"]
    settings += ["training.precision=fp32", *(f"sites.{site}.data={folder / site}.h5" for site in SITES)]
    words = [word for setting in settings for word in ("--set", setting)]
    config = str(PROJECT / "jobs/configs/D.yaml")
    job = launch(2, [str(BIN / "cxr-hvd"), "train", config, "--run", str(folder / "run"), *words])
    assert job.exit_code == 0, job.output
    return folder


def metadata_of(site_folder: Path, scope: str) -> str:
    with safe_open(site_folder / "checkpoints" / "latest" / f"{scope}.safetensors", "pt") as file:
        return file.metadata()["network"]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("site", SITES)
def test_answers_are_those_of_evaluation_bit_for_bit(folder: Path, site: str) -> None:
    """Also for studies of another hospital, in a table and as JSON lines."""
    out = folder / f"{site}.csv"
    run = (folder / "run", folder / "mimic.h5", "--site", site, "--split", "test", "--overwrite")
    for path in (out, out.with_suffix(".jsonl")):
        job = cxr_here("predict", *run, "--out", path)
        assert job.exit_code == 0, job.output
        assert f"network of {site} after 4 steps of experiment D: tiny, 32 px" in job.output
    network = load_model(folder / "run" / site)
    config = load_config(folder / "run" / site / "config.yaml")
    with StudyFile(folder / "mimic.h5") as file:
        studies = StudySet([file], Split.TEST, config.labels.policy(LABELS))
        expected_NL = predict(network.model, studies, np.arange(len(studies)), batching_of_run(config, 1))
        ids = file.study_ids[file.indices(Split.TEST)]
    trained = [label for label in LABELS if label not in SITES[site]]
    rows = rows_of(out)
    assert [row["study"] for row in rows[:: len(LABELS)]] == list(ids)
    for row in rows:
        expected = expected_NL[list(ids).index(row["study"]), LABELS.index(row["label"])]
        if row["label"] in trained:
            assert np.float32(row["probability"]) == expected
            present = float(row["probability"]) >= float(row["threshold"]) if row["threshold"] else None
            assert row["decision"] == {True: "present", False: "absent", None: ""}[present]
        else:
            assert (row["probability"], row["threshold"], row["decision"]) == ("", "", "")
            assert row["remark"] == "never trained"
    assert any(row["threshold"] for row in rows)
    lines = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    assert [str(line["probability"] or "") for line in lines] == [row["probability"] for row in rows]


def test_a_network_says_what_it_knows(folder: Path) -> None:
    """A head of one's own was trained on what the own site knows; what no source mentions is known to nobody."""
    known = {site: [label for label in LABELS if label not in unknown] for site, unknown in SITES.items()}
    for site in SITES:
        record = cxr_hvd.load_model(str(folder / "run"), site).record
        assert record.known_labels == known and record.trained_labels == known[site]
        assert record.private_blocks == ["stem", "denseblock1", "denseblock4", "head"]
        assert (record.site, record.sites, record.pixels) == (site, list(SITES), "test-1")
        state = json.loads((folder / "run" / site / "checkpoints" / "latest" / "state.json").read_text())
        metadata = json.loads(metadata_of(folder / "run" / site, "private"))
        assert metadata == state["network"] == record.model_copy(update={"thresholds": {}}).model_dump()


def test_the_file_of_shared_weights_is_the_same_at_all_sites(folder: Path) -> None:
    """It says what network it is a part of, and nothing that differs from site to site."""
    files = [folder / "run" / site / "checkpoints/latest/shared.safetensors" for site in SITES]
    assert files[0].read_bytes() == files[1].read_bytes()
    record = json.loads(metadata_of(folder / "run" / "mimic", "shared"))
    assert record["label_names"] == list(LABELS) and record["step"] == 4
    assert not record.keys() & {"site", "trained_labels", "pixels", "thresholds"}


def test_averaged_is_the_network_that_evaluation_judges(folder: Path) -> None:
    with ExitStack() as opened:
        whole = open_whole(folder / "run", (), {}, opened)
        judged = {name: copy.deepcopy(model.state_dict()) for name, model, _ in networks_of(whole, "latest")}
    network = load_model(folder / "run", "averaged", "latest")
    for name, tensor in network.model.state_dict().items():
        assert torch.equal(tensor, judged["averaged"][name])


@pytest.mark.parametrize("site", ["ensemble", "averaged"])
def test_an_answer_says_whose_network_it_is(folder: Path, site: str) -> None:
    """Of several sites' networks, where no threshold was chosen."""
    out = folder / f"{site}.csv"
    job = cxr_here("predict", folder / "run", folder / "mimic.h5", "--site", site, "--split", "test", "--out", out)
    assert job.exit_code == 0, job.output
    rows = rows_of(out)
    assert {(row["site"], row["threshold"], row["decision"]) for row in rows} == {(site, "", "")}
    trained = {row["label"] for row in rows if row["probability"]}
    known = [set(LABELS) - set(unknown) for unknown in SITES.values()]
    assert trained == (known[0] | known[1] if site == "ensemble" else known[0] & known[1])
    assert {row["file"] for row in rows} == {str(folder / "mimic.h5")}


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (
            (),
            "expected the site whose network is meant, since private blocks differ: --site chexpert or --site",
        ),
        (("--site", "cheXpert"), "has the networks of chexpert, mimic"),
        (("--site", "mimic", "--out", "answers.txt"), "expected a name that ends in .csv or .jsonl"),
    ],
)
def test_a_wrong_question_is_one_line(folder: Path, more: tuple[str, ...], line: str) -> None:
    out = () if "--out" in more else ("--out", folder / "answers.csv")
    job = cxr_here("predict", folder / "run", folder / "mimic.h5", *out, *more)
    assert job.exit_code != 0 and line in job.output
    assert not (folder / "answers.csv").exists()


def test_maps_of_a_trained_network_stand_on_a_page(folder: Path) -> None:
    out, question = folder / "maps", (folder / "run", folder / "mimic.h5", "--site", "mimic", "--studies", "1")
    job = cxr_here("explain", *question, "--label", "Edema", "--out", out)
    assert job.exit_code == 0, job.output
    assert "Grad-CAM: rank correlation with maps of a network with fresh weights" in job.output
    page, ids = (out / "index.html").read_text(), json.loads((out / "maps.json").read_text())
    assert "Edema" in page and [one["label"] for one in ids["maps"]] == ["Edema", "Edema"]
    for name, label, line in (
        ("others", "Pneumonia", "--label Pneumonia: no study that trained this network says anything of it"),
        ("maps", "Edema", "expected a new folder"),
    ):
        job = cxr_here("explain", *question, "--label", label, "--out", folder / name)
        assert job.exit_code == 2 and line in job.output


def test_images_of_another_pixel_pipeline_are_refused(folder: Path) -> None:
    other = write_study_file(folder / "other.h5", pixels="test-2")
    job = cxr_here("predict", folder / "run" / "mimic", other, "--out", folder / "answers.csv")
    assert job.exit_code == 1
    assert "expected images of pixel pipeline test-1, which mimic trained on, found test-2" in job.output


def test_answers_are_not_replaced_unasked(folder: Path) -> None:
    out = folder / "kept.csv"
    out.write_text("mine")
    job = cxr_here("predict", folder / "run" / "mimic", folder / "mimic.h5", "--out", out)
    assert job.exit_code == 2 and out.read_text() == "mine"
