"""Phantoms: the same bytes for the same seed, read by the real ingest, with findings that can be seen."""

import gzip
import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from cxr_hvd.errors import UsageError
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import View
from preprocess.phantom.findings import draw_frontal
from preprocess.phantom.hospital import (
    STYLES,
    Body,
    Shift,
    draw_studies,
)
from preprocess.phantom.phantom import write_phantom
from preprocess.records import SourceOptions
from preprocess.sources import SOURCES
from tests.helpers.phantoms import file_digests

# Six studies of seed 3: SHA-256 of all names and tables; mean and spread of the shades of each film. What a JPEG
# file holds to the last bit is left to the machine's arithmetic.
GOLDEN = {
    "chexpert": (
        "09cb11396b8630ba577dd8c9901e7fbbb576fab56009f972d66bda5c0f2b3238",
        (142.84, 105.57, 126.48, 155.35, 106.57, 141.96, 151.68, 117.75, 153.37, 162.24),
        (73.97, 65.35, 68.20, 76.48, 59.73, 69.47, 70.75, 62.37, 74.63, 78.32),
    ),
    "mimic-cxr": (
        "7e3c64b15a2d118a714246b87b1a769befe2bef859044216950a324a91e13df8",
        (103.19, 119.04, 114.58, 115.94, 102.46, 117.49),
        (59.94, 70.08, 59.50, 62.36, 70.31, 69.86),
    ),
}


@pytest.mark.parametrize("layout", STYLES)
def test_a_phantom_is_read_like_a_hospital(tmp_path: Path, layout: str) -> None:
    num_images = write_phantom(tmp_path / "a", layout, 40, seed=3)
    write_phantom(tmp_path / "b", layout, 40, seed=3)
    assert file_digests(tmp_path / "a") == file_digests(tmp_path / "b")
    studies = SOURCES[layout](tmp_path / "a", SourceOptions()).studies
    assert (len(studies), sum(len(study.images) for study in studies)) == (40, num_images)
    assert {View.PA, View.AP, View.LATERAL} <= {image.view for study in studies for image in study.images}
    assert len({study.patient_id for study in studies}) < 40
    labels = np.array([study.labels for study in studies])
    assert {1.0, 0.0, -1.0} <= set(labels[~np.isnan(labels)]) and np.isnan(labels).any()


def test_phantoms_have_studies_of_many_images() -> None:
    studies = draw_studies(np.random.default_rng(0), STYLES["mimic-cxr"], 3000)
    assert {len(study.views) for study in studies} == set(range(1, 12))
    splits_of_patient: dict[int, set[int]] = {}
    for study in studies:
        splits_of_patient.setdefault(study.patient, set()).add(study.split)
    assert all(len(splits) == 1 for splits in splits_of_patient.values())


@pytest.mark.parametrize("finding", [name for name in LABELS if name != "No Finding"])
def test_every_finding_changes_the_film_where_it_should(finding: str) -> None:
    body = Body.drawn(np.random.default_rng(1))
    healthy, ill = (
        draw_frontal(np.random.default_rng(2), np.random.default_rng(3), body, frozenset(findings))
        for findings in ({"No Finding"}, {finding})
    )
    changed = (np.abs(ill - healthy) > 0.08).mean()
    assert 0.003 < changed < 0.35


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'chexpert'"):
        write_phantom(tmp_path / "new", "chexprt", 1, 0)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(UsageError, match="expected no folder or an empty one"):
        write_phantom(tmp_path / "full", "chexpert", 1, 0)
    with pytest.raises(ValueError, match="no such finding"):
        draw_frontal(
            np.random.default_rng(0),
            np.random.default_rng(0),
            Body.drawn(np.random.default_rng(0)),
            frozenset({"x"}),
        )


@pytest.mark.parametrize("layout", STYLES)
def test_without_a_shift_a_phantom_is_what_it_always_was(tmp_path: Path, layout: str) -> None:
    write_phantom(tmp_path, layout, 6, 3, Shift(label=0, acquisition=0, concept=0))
    digest, means, spreads = GOLDEN[layout]
    tables = hashlib.sha256()
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        tables.update(str(path.relative_to(tmp_path)).encode())
        if path.suffix != ".jpg":
            tables.update(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    assert tables.hexdigest() == digest
    films = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in sorted(tmp_path.rglob("*.jpg"))]
    assert [film.mean() for film in films] == pytest.approx(means, abs=0.02)
    assert [film.std() for film in films] == pytest.approx(spreads, abs=0.02)
