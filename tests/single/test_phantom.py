"""Phantoms: the same bytes for the same seed, read by the real ingest, with findings that can be seen."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from cxr_hvd.errors import UsageError
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.study_file import View
from preprocess.records import SourceOptions
from preprocess.sources import SOURCES, phantom_findings
from preprocess.sources.phantom import STYLES, write_phantom
from preprocess.sources.phantom_anatomy import Body


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("layout", STYLES)
def test_a_phantom_is_read_like_a_hospital(tmp_path: Path, layout: str) -> None:
    num_images = write_phantom(tmp_path / "a", layout, 40, seed=3)
    write_phantom(tmp_path / "b", layout, 40, seed=3)
    assert _digests(tmp_path / "a") == _digests(tmp_path / "b")
    studies = SOURCES[layout](tmp_path / "a", SourceOptions()).studies
    assert (len(studies), sum(len(study.images) for study in studies)) == (40, num_images)
    assert {View.PA, View.AP, View.LATERAL} <= {image.view for study in studies for image in study.images}
    assert len({study.patient_id for study in studies}) < 40
    labels = np.array([study.labels for study in studies])
    assert {1.0, 0.0, -1.0} <= set(labels[~np.isnan(labels)]) and np.isnan(labels).any()


def test_phantoms_have_studies_of_many_images(tmp_path: Path) -> None:
    from preprocess.sources.phantom import _draw_studies

    studies = _draw_studies(np.random.default_rng(0), STYLES["mimic-cxr"], 3000)
    assert {len(study.views) for study in studies} == set(range(1, 12))
    splits_of_patient: dict[int, set[int]] = {}
    for study in studies:
        splits_of_patient.setdefault(study.patient, set()).add(study.split)
    assert all(len(splits) == 1 for splits in splits_of_patient.values())


@pytest.mark.parametrize("finding", [name for name in LABELS if name != "No Finding"])
def test_every_finding_changes_the_film_where_it_should(finding: str) -> None:
    body = Body.drawn(np.random.default_rng(1))
    healthy, ill = (
        phantom_findings.frontal(np.random.default_rng(2), np.random.default_rng(3), body, frozenset(found))
        for found in ({"No Finding"}, {finding})
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
        phantom_findings.frontal(
            np.random.default_rng(0),
            np.random.default_rng(0),
            Body.drawn(np.random.default_rng(0)),
            frozenset({"x"}),
        )
