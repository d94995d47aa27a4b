"""`cxr-hvd predict` on images: answers are those of a study file made of them, and what is wrong is one line."""

import csv
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

import cxr_hvd
from cxr_hvd.deploy.images import opened_images
from cxr_hvd.deploy.network_file import write_network
from cxr_hvd.study.labels import LABELS
from lab.launch import BIN, Finished, environment
from lab.study_files import write_study_file
from preprocess.pixels.pipelines import RASTER
from tests.helpers.commands import cxr_here, preprocess_here
from tests.helpers.networks import tiny_network
from tests.helpers.synthetic import SECRETS, dicom_bytes, write_csv

UNKNOWN = "Fracture"
TRAINED = [label for label in LABELS if label != UNKNOWN]
COLUMNS = """
patient: study
study: study
images: {file: "{path}"}
split: {column: split, values: {test: test}}
labels: {columns: {Edema: Edema}, values: {"1": present}}
"""

Write = Callable[[Path, np.ndarray, int], None]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that was trained on JPEG and PNG, and never on fractures."""
    path = tmp_path_factory.mktemp("network") / "network.safetensors"
    write_network(path, tiny_network(pixels=RASTER, trained_labels=TRAINED))
    return path


def shades(seed: int) -> np.ndarray:
    """Return smooth noise (H, W) of 8 bits that spans all shades."""
    coarse = np.random.default_rng(seed).random((6, 5)).astype(np.float32)
    smooth = cv2.resize(coarse, (300, 320), interpolation=cv2.INTER_CUBIC)
    return np.asarray(np.rint((smooth - smooth.min()) / np.ptp(smooth) * 255), np.uint8)


def write_raster(path: Path, shades_HW: np.ndarray, study: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), shades_HW)


def write_dicom(path: Path, shades_HW: np.ndarray, study: int = 0) -> None:
    """Write a DICOM whose window leaves each shade as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(dicom_bytes(shades_HW, StudyInstanceUID=f"1.2.3.{study}", WindowCenter=128, WindowWidth=256))


def write_studies(root: Path, suffix: str, write: Write = write_raster) -> dict[str, list[str]]:
    """Write 6 studies of 1 to 3 images below a folder; return the images of each."""
    names = {
        f"p{study % 4}/s{study}": [f"{number}{suffix}" for number in range(1 + study % 3)] for study in range(6)
    }
    for study, (name, images) in enumerate(names.items()):
        for number, image in enumerate(images):
            write(root / name / image, shades(10 * study + number), study)
    return names


def answered(network: Path, *arguments: object, out: Path) -> list[dict[str, str]]:
    job = cxr_here("predict", network, *arguments, "--out", out)
    assert job.exit_code == 0, job.output
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


def refused(network: Path, out: Path, *arguments: object) -> Finished:
    job = cxr_here("predict", network, *arguments, "--out", out)
    assert job.exit_code != 0 and len(job.output.splitlines()) == 1, job.output
    assert not out.exists()
    return job


@pytest.mark.parametrize(
    ("suffix", "write", "pixels"),
    [(".jpg", write_raster, RASTER), (".png", write_raster, RASTER), ("", write_dicom, "dicom-voi")],
    ids=["jpeg", "png", "dicom"],
)
def test_answers_are_those_of_a_study_file_bit_for_bit(
    tmp_path: Path, suffix: str, write: Write, pixels: str
) -> None:
    """Whatever order the study file has; for the same film as DICOM within the step of one gray shade."""
    path = tmp_path / "network.safetensors"
    write_network(path, tiny_network(pixels=pixels, trained_labels=TRAINED))
    names = write_studies(tmp_path / "scans", suffix, write)
    rows = [["study", "path", "split", "Edema"]]
    rows += [[name, f"scans/{name}/{image}", "test", "1"] for name, images in names.items() for image in images]
    write_csv(tmp_path / "t.csv", rows)
    (tmp_path / "c.yaml").write_text(COLUMNS)
    made = ("--columns", tmp_path / "c.yaml", "--out", tmp_path / "t.h5", "--site", "north", "--keep-ids")
    pixel_option = ("--pixels", pixels) if pixels != RASTER else ()
    job = preprocess_here(
        "manifest", tmp_path / "t.csv", *made, "--split", "official", "--seed", "3", *pixel_option
    )
    assert job.exit_code == 0, job.output
    of_file = answered(path, tmp_path / "t.h5", out=tmp_path / "of-file.csv")
    of_images = answered(path, tmp_path / "scans", out=tmp_path / "of-images.csv")
    assert [row["study"] for row in of_images[:: len(LABELS)]] == sorted(names)
    expected = {(row["study"], row["label"]): row["probability"] for row in of_file}
    assert list(dict.fromkeys(row["study"] for row in of_file)) != sorted(names)
    assert {(row["study"], row["label"]): row["probability"] for row in of_images} == expected
    for row in of_images:
        assert (row["probability"] == "") == (row["label"] == UNKNOWN)
        assert (row["file"], row["site"], row["split"]) == (str(tmp_path / "scans"), "north", "")


def test_a_film_as_dicom_gets_the_probability_that_it_gets_as_png(tmp_path: Path) -> None:
    network = tiny_network(pixels=RASTER)
    write_studies(tmp_path / "png", ".png")
    write_studies(tmp_path / "dicom", "", write_dicom)
    as_png = list(cxr_hvd.predict(network, tmp_path / "png"))
    as_dicom = list(cxr_hvd.predict(network, str(tmp_path / "dicom"), pixels="dicom-voi"))
    assert [answer.probability for answer in as_png] == [answer.probability for answer in as_dicom]
    remark = f"images of pixel pipeline dicom-voi, trained on {RASTER}"
    assert all(answer.remark.endswith(remark) for answer in as_dicom)
    assert not any(str(secret) in repr(as_dicom) for secret in SECRETS.values())


def test_three_lines_of_python_give_the_answers_of_the_command(network: Path, tmp_path: Path) -> None:
    """Study files come first, and a film alone is a study."""
    write_studies(tmp_path / "scans", ".png")
    write_raster(tmp_path / "film.png", shades(99))
    write_study_file(tmp_path / "a.h5", 5, pixels=RASTER)
    paths = [tmp_path / "scans", tmp_path / "film.png", tmp_path / "a.h5"]
    answers = list(cxr_hvd.predict(cxr_hvd.load_model(network), paths))
    rows = answered(network, *paths, out=tmp_path / "answers.csv")
    assert [str(answer.probability or "") for answer in answers] == [row["probability"] for row in rows]
    studies = list(dict.fromkeys((row["file"], row["study"]) for row in rows))
    assert len(studies) == 5 + 6 + 1 and studies[-1] == (str(tmp_path / "film.png"), "film.png")
    assert {file for file, _ in studies[:5]} == {str(tmp_path / "a.h5")}


def test_a_table_says_which_images_are_a_study(network: Path, tmp_path: Path) -> None:
    write_studies(tmp_path / "scans", ".png")
    rows = [["path", "study"], ["p0/s0/0.png", "exam 1"], ["p1/s1/0.png", "exam 1"], ["p1/s1/1.png", "exam 2"]]
    write_csv(tmp_path / "studies.csv", rows)
    given = (tmp_path / "scans", "--table", tmp_path / "studies.csv")
    answers = answered(network, *given, out=tmp_path / "answers.csv")
    assert list(dict.fromkeys(row["study"] for row in answers)) == ["exam 1", "exam 2"]


def test_bad_images_are_set_aside_and_their_studies_say_so(network: Path, tmp_path: Path) -> None:
    write_raster(tmp_path / "scans/good/0.png", shades(0))
    write_raster(tmp_path / "scans/some/0.png", shades(1))
    (tmp_path / "scans/some/1.png").write_bytes((tmp_path / "scans/some/0.png").read_bytes()[:500])
    write_raster(tmp_path / "scans/none/0.png", np.full((300, 300), 9, np.uint8))
    for number in range(21):
        write_raster(tmp_path / f"scans/many/{number}.png", shades(number))
    out = tmp_path / "answers.csv"
    job = cxr_here("predict", network, tmp_path / "scans", "--out", out, "--json")
    assert job.exit_code == 0, job.output
    summary = json.loads(job.output)
    assert (summary["studies"], summary["studies_without_images"], summary["images_set_aside"]) == (4, 2, 23)
    with out.open(newline="") as file:
        rows = {row["study"]: row for row in csv.DictReader(file) if row["label"] == "Pneumonia"}
    assert list(rows) == ["good", "many", "none", "some"]
    assert rows["good"]["remark"] == "" and rows["good"]["probability"]
    assert rows["some"]["remark"].startswith("1 of 2 images set aside: expected a whole JPEG or PNG file")
    assert rows["some"]["probability"] and rows["some"]["decision"]
    assert rows["none"]["remark"].startswith("no image can be used: expected a radiograph, found one shade")
    assert "at most 20 images in a study, found 21" in rows["many"]["remark"]
    assert not any(rows[study][column] for study in ("none", "many") for column in ("probability", "decision"))
    with (tmp_path / "answers.csv.quarantine.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert {(row["study"], row["path"]) for row in listed} > {("some", "some/1.png"), ("none", "none/0.png")}
    for written in (out, tmp_path / "answers.csv.quarantine.csv"):
        assert written.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob(".*"))


def test_names_that_are_no_text_are_shown_as_escapes(network: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/scans\xff"))
    write_study_file(tmp_path / "a.h5", 2, pixels=RASTER)
    write_raster(tmp_path / "film.png", shades(0))
    (odd / "line\nfeed").mkdir(parents=True)
    (tmp_path / "film.png").rename(odd / "line\nfeed" / "0.png")
    (tmp_path / "a.h5").rename(odd / "a.h5")
    rows = answered(network, odd / "a.h5", odd, out=tmp_path / "answers.csv")
    assert {row["file"] for row in rows} == {f"{tmp_path}/scans\\xff/a.h5", f"{tmp_path}/scans\\xff"}
    assert rows[-1]["study"] == "line\nfeed" and rows[-1]["probability"]


def test_one_image_of_one_shade_has_an_answer_that_says_so(network: Path, tmp_path: Path) -> None:
    write_raster(tmp_path / "blank.png", np.zeros((300, 300), np.uint8))
    rows = answered(network, tmp_path / "blank.png", out=tmp_path / "answers.csv")
    assert {(row["study"], row["probability"], row["threshold"]) for row in rows} == {("blank.png", "", "")}
    assert {row["remark"][:53] for row in rows} == {"no image can be used: expected a radiograph, found on"}


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (("dicom",), f"pixel pipeline {RASTER} reads, found 1 DICOM files; --pixels dicom-voi"),
        (("scans", "scans/p0"), "expected images that no other PATH holds"),
        (("a.h5", "./a.h5"), "expected each study file once"),
        (("a.h5", "--table", "t.csv"), "expected a folder of images beside it"),
        (("others.h5",), "expected the labels of north's network in its order"),
        (("scans", "--pixels", "test-1"), "--pixels: expected"),
    ],
)
def test_what_cannot_be_asked_is_one_line(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_raster(tmp_path / "scans/p0/0.png", shades(0))
    write_dicom(tmp_path / "dicom/IM0", shades(0))
    write_study_file(tmp_path / "a.h5", 5, pixels=RASTER)
    write_study_file(tmp_path / "others.h5", 5, pixels=RASTER, label_names=LABELS[::-1])
    assert line in refused(network, tmp_path / "answers.csv", *given).output
    assert not list(tmp_path.glob(".*"))


def test_nothing_is_left_where_an_error_ends_it(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    write_raster(tmp_path / "film.png", shades(0))
    answers = cxr_hvd.predict(cxr_hvd.load_model(network), tmp_path / "film.png")
    assert next(answers).study == "film.png"
    [made] = (tmp_path / "temporary").iterdir()
    assert made.stat().st_mode & 0o777 == 0o700
    answers.close()  # type: ignore[attr-defined]
    assert not list((tmp_path / "temporary").iterdir())
    with pytest.raises(RuntimeError), opened_images([tmp_path / "film.png"], RASTER):
        raise RuntimeError
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.slow
def test_nothing_is_left_where_somebody_stops_it(network: Path, tmp_path: Path) -> None:
    for number in range(40):
        write_raster(tmp_path / f"scans/p{number}/0.png", cv2.resize(shades(number), (4000, 4000)))
    command = [BIN / "cxr-hvd", "predict", network, tmp_path / "scans", "--out", tmp_path / "answers.csv"]
    with subprocess.Popen(list(map(str, command)), env=environment(), stdout=subprocess.PIPE) as job:
        while not (made := list(tmp_path.glob(".cxr-hvd-images-*/.images.h5.work"))):
            assert job.poll() is None
            time.sleep(0.02)
        job.send_signal(signal.SIGTERM)
        assert job.stdout is not None and b"stopped by SIGTERM" in job.stdout.read()
    assert job.returncode == 75 and made
    assert not list(tmp_path.glob(".*")) and not (tmp_path / "answers.csv").exists()
