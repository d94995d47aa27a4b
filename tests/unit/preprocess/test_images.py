"""`cxr-preprocess images`: unlabelled images become studies by where they lie, by DICOM's UID, or by a table."""

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cxr_hvd.errors import CxrHvdError
from cxr_hvd.study.layout import Split, View
from cxr_hvd.study.study_file import StudyFile
from preprocess.pixels.pipelines import RASTER, load_image
from preprocess.records import ImageRecord, SourceOptions
from preprocess.sources.images import read_studies
from tests.helpers.commands import preprocess_here
from tests.helpers.synthetic import SECRETS, dicom_bytes, write_csv, write_jpeg


def write_png(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, (40, 30)).astype(np.uint8))


def write_dicom(path: Path, seed: int, uid: str, **attributes: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 4096, (40, 30)).astype(np.uint16)
    more: Any = {"BitsStored": 12, "StudyInstanceUID": uid, **attributes}
    path.write_bytes(dicom_bytes(values, **more))


def names_of(*paths: Path, table: Path | None = None, pixels: str | None = None) -> dict[str, list[str]]:
    """Return the images of each study, as their user finds them."""
    listing = read_studies(paths[0], SourceOptions(paths=paths, table=table, pixels=pixels))
    names: dict[str, list[str]] = {}
    for name in listing.names:
        names.setdefault(name.study, []).append(name.path)
    return names


def test_images_of_one_folder_are_a_study_and_one_alone_is_one(tmp_path: Path) -> None:
    for seed, name in enumerate(("p1/s1/a.jpg", "p1/s1/b.JPG", "p1/s2/a.jpg", "p2/film", "direct.jpg")):
        write_jpeg(tmp_path / "scans" / f"{name}.jpg", seed)
        (tmp_path / "scans" / f"{name}.jpg").rename(tmp_path / "scans" / name)
    (tmp_path / "scans" / "p1" / "list.csv").write_text("no image")
    write_png(tmp_path / "alone.png", 9)
    assert names_of(tmp_path / "scans", tmp_path / "alone.png") == {
        ".": ["direct.jpg"],
        "p1/s1": ["p1/s1/a.jpg", "p1/s1/b.JPG"],
        "p1/s2": ["p1/s2/a.jpg"],
        "p2": ["p2/film"],
        "alone.png": ["alone.png"],
    }


def test_dicom_images_are_grouped_by_uid_across_folders(tmp_path: Path) -> None:
    """Named by a folder that holds the study alone, else by its first image, and never by what the header says."""
    write_dicom(tmp_path / "d/p1/ser1/IM1", 0, "1.2.3", ViewPosition="PA", **SECRETS)
    write_dicom(tmp_path / "d/p1/ser2/IM1", 1, "1.2.3", ViewPosition="LL", **SECRETS)
    write_dicom(tmp_path / "d/flat/IM1", 2, "1.2.4", **SECRETS)
    write_dicom(tmp_path / "d/flat/IM2", 3, "1.2.5", **SECRETS)
    write_dicom(tmp_path / "d/flat/IM3", 4, "1.2.4", **SECRETS)
    write_dicom(tmp_path / "d/none/IM1", 5, "", **SECRETS)
    (tmp_path / "d/DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "d/p1/ser1/broken.dcm").write_bytes(b"nothing")
    assert names_of(tmp_path / "d") == {
        "flat/IM1": ["flat/IM1", "flat/IM3"],
        "flat/IM2": ["flat/IM2"],
        "none": ["none/IM1"],
        "p1": ["p1/ser1/IM1", "p1/ser1/broken.dcm", "p1/ser2/IM1"],
    }
    listing = read_studies(tmp_path, SourceOptions(paths=(tmp_path / "d",)))
    assert listing.pixels == "dicom-voi"
    assert [image.view for image in listing.studies[-1].images] == [View.PA, View.UNKNOWN, View.LATERAL]
    assert not any(str(secret) in repr(listing) for secret in ("1.2.3", *SECRETS.values()))


def test_a_table_says_which_images_are_a_study(tmp_path: Path) -> None:
    for number in range(4):
        write_png(tmp_path / f"scans/{number}.png", number)
    rows = [["study", "path", "view", "patient"], ["b", "1.png", "PA", "x"], ["a", "0.png", "", "x"]]
    write_csv(tmp_path / "t.csv", [*rows, ["b", "3.png", "lateral", "x"], ["b", "3.png", "lateral", "x"]])
    listing = read_studies(tmp_path, SourceOptions(paths=(tmp_path / "scans",), table=tmp_path / "t.csv"))
    assert [(study.study_id, study.patient_id, len(study.images)) for study in listing.studies] == [
        ("a", "x", 1),
        ("b", "x", 2),
    ]
    assert [image.view for image in listing.studies[1].images] == [View.PA, View.LATERAL]
    assert listing.num_duplicates == 1


def test_the_study_file_holds_what_the_pipeline_makes_and_nothing_of_a_patient(tmp_path: Path) -> None:
    for seed, name in enumerate(("p2/a.jpg", "p1/b.jpg", "p1/a.jpg")):
        write_jpeg(tmp_path / "scans" / name, seed)
    cv2.imwrite(str(tmp_path / "scans/p2/blank.png"), np.full((40, 40), 7, np.uint8))
    os.mkfifo(tmp_path / "scans/p2/fifo.png")
    out, key = tmp_path / "out.h5", tmp_path / "key"
    command = ("images", tmp_path / "scans", "--out", out, "--key", key)
    job = preprocess_here(*command)
    assert job.exit_code == 1 and "expected at most 0.01 of 5 images to be bad, found 2" in job.output
    job = preprocess_here(*command, "--max-bad", "50%", "--overwrite")
    assert job.exit_code == 0, job.output
    assert str(tmp_path / "scans") not in job.output and "p2" not in job.output
    with StudyFile(out) as file:
        assert list(file.num_images) == [2, 1] and file.header.pixels == RASTER
        assert np.isnan(file.labels).all() and set(file.splits) == {Split.TEST}
        expected = load_image(ImageRecord(tmp_path / "scans/p1/b.jpg", View.PA, ""), 256)
        assert np.array_equal(file.images(0)[1], expected)
        ids = list(file.study_ids)
    with (tmp_path / "out.h5.images.csv").open(newline="") as listed:
        rows = list(csv.DictReader(listed))
    assert [row["study"] for row in rows] == ["p1", "p1", "p2", "p2", "p2"]
    assert list(dict.fromkeys(row["study_id"] for row in rows)) == ids and all(len(id) == 32 for id in ids)
    quarantine = (tmp_path / "out.h5.quarantine.csv").read_text()
    assert 'image 4,"expected a radiograph, found one shade' in quarantine and "image 5," in quarantine
    for beside in ("images", "quarantine"):
        assert (tmp_path / f"out.h5.{beside}.csv").stat().st_mode & 0o777 == 0o600


def test_a_study_of_too_many_images_is_set_aside_whole(tmp_path: Path) -> None:
    write_png(tmp_path / "scans/small/0.png", 0)
    for number in range(21):
        write_png(tmp_path / f"scans/large/{number:02d}.png", number)
    listing = read_studies(tmp_path, SourceOptions(paths=(tmp_path / "scans",)))
    assert [len(study.images) for study in listing.studies] == [1]
    assert len(listing.set_aside) == 21 and "at most 20 images in a study, found 21" in listing.set_aside[0][1]
    with pytest.raises(CxrHvdError, match="at most 20 images in a study, found 21"):
        names_of(tmp_path / "scans" / "large")


def _outside(root: Path) -> tuple[Path, ...]:
    (root / "scans" / "p1" / "link.png").symlink_to(root / "other" / "0.png")
    return (root / "scans",)


def _fifo(root: Path) -> tuple[Path, ...]:
    os.mkfifo(root / "fifo")
    return (root / "fifo",)


def _empty(root: Path) -> tuple[Path, ...]:
    (root / "empty").mkdir()
    (root / "empty" / "notes.txt").write_text("none")
    return (root / "empty",)


def _one_study_in_two(root: Path) -> tuple[Path, ...]:
    for name in ("a", "b"):
        write_dicom(root / name / "IM1", 1, "1.2.3")
    return (root / "a", root / "b")


def _two_kinds(root: Path) -> tuple[Path, ...]:
    write_dicom(root / "scans" / "d" / "IM1", 1, "1.2.3")
    return (root / "scans",)


@pytest.mark.parametrize(
    ("prepare", "line"),
    [
        (_outside, "found a symbolic link that leads out of it"),
        (_fifo, "found a FIFO or a device"),
        (_empty, "expected JPEG, PNG or DICOM images here or in a folder below, found none among 1 files"),
        (lambda root: (root / "nowhere",), "expected an image or a folder of images, found none"),
        (lambda root: (root / "scans", root / "scans" / "p1"), "expected images that no other PATH holds"),
        (lambda root: (root / "scans" / "p1" / "0.png",) * 2, "expected images that no other PATH holds"),
        (_one_study_in_two, "found images of a DICOM study that"),
        (_two_kinds, "found 1 JPEG or PNG and 1 DICOM files; choose by --pixels"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    tmp_path: Path, prepare: Callable[[Path], tuple[Path, ...]], line: str
) -> None:
    write_png(tmp_path / "scans/p1/0.png", 0)
    write_png(tmp_path / "other/0.png", 1)
    with pytest.raises(CxrHvdError) as raised:
        names_of(*prepare(tmp_path))
    assert line in str(raised.value)


def test_links_within_the_folder_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    write_png(tmp_path / "scans/p1/0.png", 0)
    write_png(tmp_path / "scans/p1/._0.png", 1)
    (tmp_path / "scans/p1/again.png").symlink_to("0.png")
    (tmp_path / "scans/loop").symlink_to("p1", target_is_directory=True)
    assert names_of(tmp_path / "scans") == {"p1": ["p1/0.png"]}


@pytest.mark.parametrize("pixels", ["dicom-voi", "test-1"])
def test_a_pipeline_that_reads_none_of_the_images_is_one_line(tmp_path: Path, pixels: str) -> None:
    write_png(tmp_path / "scans/p1/0.png", 0)
    with pytest.raises(CxrHvdError, match=rf"expected DICOM images, .*{RASTER} reads them|found 'test-1'"):
        names_of(tmp_path / "scans", pixels=pixels)


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([["../other/0.png", "a"]], "found one that leaves it"),
        ([["p1/0.png", "a"], ["p1/0.png", "b"]], "expected each image in one study"),
        ([["p1/0.png", ""]], "found a blank cell"),
        ([], "expected rows of images"),
    ],
)
def test_a_wrong_table_is_one_line(tmp_path: Path, rows: list[list[str]], line: str) -> None:
    write_png(tmp_path / "scans/p1/0.png", 0)
    write_csv(tmp_path / "t.csv", [["path", "study"], *rows])
    with pytest.raises(CxrHvdError) as raised:
        names_of(tmp_path / "scans", table=tmp_path / "t.csv")
    assert line in str(raised.value)
