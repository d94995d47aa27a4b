"""`cxr-hvd export`: one folder that stands alone, whose programs answer as `predict` does under other runtimes."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cxr_hvd.data.augment import fill_plain
from cxr_hvd.deploy.export.bundle import RASTER
from cxr_hvd.deploy.network_file import write_network
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile
from lab.launch import BIN, PROJECT, launch, need_horovod, run
from lab.study_files import write_study_file
from tests.helpers.commands import cxr_here
from tests.helpers.networks import PRIVATE, tiny_network

UNKNOWN = {"chexpert": ("Fracture", "Pneumonia"), "mimic": ("Pneumonia",)}
"""What each site's source says nothing of."""

SCHEMA = {
    "type": "object",
    "required": [
        *("schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version"),
        *("task", "description", "authors", "copyright", "network_data_format"),
    ],
    "properties": {"required_packages_version": {"type": "object"}, "task": {"type": "string"}},
}
"""Stands for MONAI's schema, which its verifier fetches from the network unless a file is there already."""


@pytest.fixture
def network_file(tmp_path: Path) -> Path:
    path = tmp_path / "north.safetensors"
    write_network(path, tiny_network())
    return path


def test_private_blocks_stay_unless_asked_for_and_it_says_so(network_file: Path, tmp_path: Path) -> None:
    job = cxr_here("export", network_file, "--to", tmp_path / "deep" / "out")
    assert job.exit_code == 0, job.output
    assert f"left out: the private blocks {', '.join(PRIVATE)}, without which no program can run" in job.output
    assert "no licence: the sites have to choose one" in job.output
    assert not (tmp_path / "deep" / "out" / "models").exists()


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (("--license", "do what you want"), "expected an identifier such as cc-by-4.0"),
        (("--site", "south"), "holds the network of north alone"),
        (("--with-private", "--check", "none.h5"), "none.h5"),
        (("--to", "."), "expected a new folder or an earlier export, found something else"),
    ],
)
def test_a_wrong_wish_is_one_line_and_leaves_nothing(
    network_file: Path, tmp_path: Path, more: tuple[str, ...], line: str
) -> None:
    job = cxr_here("export", network_file, *(() if "--to" in more else ("--to", tmp_path / "out")), *more)
    assert job.exit_code != 0 and line in job.output, job.output
    assert list(tmp_path.iterdir()) == [network_file]


def test_no_network_is_one_line(tmp_path: Path) -> None:
    job = cxr_here("export", tmp_path, "--to", tmp_path / "out")
    assert job.exit_code == 1 and "no run here" in job.output
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sites' study files, run D on them with its evaluation, and the export of one site's network."""
    need_horovod()
    folder = tmp_path_factory.mktemp("export")
    for seed, (site, unknown) in enumerate(UNKNOWN.items()):
        write_study_file(folder / f"{site}.h5", 72, seed, tuple(Split), unknown, site=site, pixels=RASTER)
    settings = ["model.name=tiny", "model.image_size=32", "training.batch_size=4", "training.max_steps=4"]
    settings += ["training.precision=fp32", *(f"sites.{site}.data={folder / site}.h5" for site in UNKNOWN)]
    words = [word for setting in settings for word in ("--set", setting)]
    config = str(PROJECT / "jobs/configs/D.yaml")
    job = launch(2, [str(BIN / "cxr-hvd"), "train", config, "--run", str(folder / "run"), *words])
    assert job.exit_code == 0, job.output
    for command in (("evaluate", folder / "run"), export_to(folder, "chexpert")):
        job = run([str(BIN / "cxr-hvd"), *map(str, command)], 600)
        assert job.exit_code == 0, job.output
    assert job.output.count("on 24 TEST studies of chexpert: largest difference of a probability") == 2
    return folder


def export_to(folder: Path, name: str) -> tuple[object, ...]:
    return ("export", folder / "run", "--site", "chexpert", "--with-private", "--to", folder / name)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def in_folder(folder: Path, *words: str) -> str:
    """Run Python in an exported folder, as whoever receives it does."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-B", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def write_studies(folder: Path, out: Path) -> None:
    """Write the inputs of a file's test studies as .npy files, named by their number."""
    out.mkdir()
    with StudyFile(folder / "mimic.h5") as file:
        for number, index in enumerate(file.indices(Split.TEST)):
            images_CHW = np.zeros((20, 32, 32), np.float32)
            fill_plain(file.images(int(index)), images_CHW)
            np.save(out / f"{number:03}.npy", images_CHW)


@pytest.mark.slow
def test_every_runtime_gives_the_answers_of_predict(folder: Path) -> None:
    """Also MONAI's `run`; a label that was never trained has no answer anywhere."""
    write_studies(folder, folder / "studies")
    job = cxr_here(
        *("predict", folder / "run" / "chexpert", folder / "mimic.h5", "--split", "test"),
        *("--out", folder / "predicted.csv"),
    )
    assert job.exit_code == 0, job.output
    exported, runs = folder / "chexpert", {}
    runs["onnx"] = ("answers.py", "../studies", "--out", "../onnx.csv")
    runs["torch"] = ("answers.py", "../studies", "--out", "../torch.csv", "--program", "models/model.pt2")
    try:
        import ignite  # noqa: F401
        import monai  # noqa: F401

        monai_run = ("-m", "monai.bundle", "run", "--config_file", "configs/inference.json")
        runs["monai"] = (*monai_run, "--dataset_dir", "../studies", "--output", "../monai.csv")
    except ImportError:
        pass
    expected = rows_of(folder / "predicted.csv")
    for name, words in runs.items():
        in_folder(exported, *words)
        answers = rows_of(folder / f"{name}.csv")
        assert len(answers) == len(expected) == 24 * len(LABELS)
        for row, wanted in zip(answers, expected, strict=True):
            assert (row["label"], row["decision"]) == (wanted["label"], wanted["decision"])
            if wanted["probability"]:
                assert abs(float(row["probability"]) - float(wanted["probability"])) < 1e-5
            else:
                assert (row["probability"], row["threshold"], row["remark"]) == ("", "", "never trained")
    assert "monai" in runs or not os.environ.get("CXR_NEED_MONAI")


@pytest.mark.slow
def test_monais_verifiers_accept_the_bundle(folder: Path) -> None:
    for package in ("monai", "jsonschema", "fire"):
        pytest.importorskip(package)
    (folder / "schema.json").write_text(json.dumps(SCHEMA))
    metadata = ("--meta_file", "configs/metadata.json")
    verify = ("-m", "monai.bundle", "verify_metadata", *metadata, "--filepath", "../schema.json")
    assert "metadata is verified with no error" in in_folder(folder / "chexpert", *verify)
    network = ("verify_net_in_out", "--net_id", "network_def", "--config_file", "configs/inference.json")
    shapes = in_folder(folder / "chexpert", "-m", "monai.bundle", *network, *metadata, "--device", "cpu")
    assert "data shape of network is verified with no error" in shapes


@pytest.mark.slow
def test_a_second_export_has_the_same_bytes_and_no_path_of_this_machine(folder: Path) -> None:
    job = cxr_here(*export_to(folder, "again"))
    assert job.exit_code == 0, job.output
    names = sorted(str(path.relative_to(folder / "again")) for path in (folder / "again").rglob("*"))
    for name in names:
        one, two = folder / "chexpert" / name, folder / "again" / name
        if two.is_file():
            assert one.read_bytes() == two.read_bytes(), name
            for path in (folder, PROJECT, sys.prefix, Path.home()):
                assert str(path).encode() not in two.read_bytes(), name
    assert "models/model.onnx" in names


@pytest.mark.slow
def test_the_card_says_what_the_run_knows(folder: Path) -> None:
    card = (folder / "chexpert" / "README.md").read_text()
    assert "| chexpert | test | 24 / 24 | 24 / 24 | 24 / 24 |" in card
    assert "On 24 TEST studies of chexpert, with 95% intervals over patients" in card
    assert "This folder holds the private blocks of chexpert, as they were trained there" in card
    assert "Never trained, and so without an answer: Pneumonia, Fracture" in card
    assert "Exchanged between hospitals: weights, every step, as float32" in card
    known = json.loads((folder / "chexpert" / "configs" / "metadata.json").read_text())
    assert known["cxr_hvd"]["never_trained"] == ["Pneumonia", "Fracture"]
    assert [check["num_studies"] for check in known["cxr_hvd"]["checks"]] == [24, 24]
    job = cxr_here("export", folder / "run", "--site", "averaged", "--to", folder / "averaged")
    assert job.exit_code == 2 and "expected --with-private" in job.output
