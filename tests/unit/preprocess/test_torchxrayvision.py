"""Labels agree, study by study, with torchxrayvision's loaders on the same folders, where both define the same.

What differs on purpose, and why, is listed in docs/data-format.md.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cxr_hvd.study.labels import LABELS
from preprocess.records import SourceOptions, StudyListing
from preprocess.sources import SOURCES
from tests.helpers.synthetic import NAME, Rows, write_chexpert, write_mimic_cxr

# Their name for ours.
NAMES = {"Pleural Effusion": "Effusion"}
CHEXPERT_VIEWS = ["AP", "PA", "L", "LL", "RL"]
MIMIC_VIEWS = ["AP", "PA", "LATERAL", "LL", "UNKNOWN"]


@pytest.fixture(scope="module")
def loaders() -> Any:
    """torchxrayvision's datasets, a development dependency."""
    try:
        import torchxrayvision
    except ImportError as error:
        pytest.skip(f"torchxrayvision cannot be imported: {error}")
    return torchxrayvision.datasets


def _theirs(dataset: Any, study_of: Callable[[Any], str]) -> dict[str, dict[str, float]]:
    studies: dict[str, dict[str, float]] = {}
    for (_, row), labels in zip(dataset.csv.iterrows(), dataset.labels, strict=True):
        values = dict(zip(map(str, dataset.pathologies), map(float, labels), strict=True))
        assert repr(studies.setdefault(study_of(row), values)) == repr(values)
    return studies


def _as_theirs(labels: tuple[float, ...], keeps_devices: bool) -> dict[str, float]:
    """Our labels as they would have them: no -1, and nothing but zeros in a study without finding."""
    values = dict(zip(LABELS, labels, strict=True))
    is_healthy = values.pop("No Finding") == 1
    for name, value in values.items():
        if is_healthy and not (keeps_devices and name == "Support Devices"):
            values[name] = 0.0
        elif value == -1:
            values[name] = math.nan
    return {NAMES.get(name, name): value for name, value in values.items()}


def _check_agree(ours: StudyListing, theirs: dict[str, dict[str, float]], keeps_devices: bool) -> None:
    assert {study.study_id for study in ours.studies} == set(theirs)
    for study in ours.studies:
        expected = _as_theirs(study.labels, keeps_devices)
        actual = theirs[study.study_id]
        assert {name: repr(value) for name, value in actual.items()} == {
            name: repr(value) for name, value in expected.items()
        }


def _chexpert_study(row: Any) -> str:
    match = re.search(r"(patient\d+/study\d+)", row["Path"])
    assert match
    return match[1]


def _check_chexpert(loaders: Any, root: Path) -> None:
    theirs: dict[str, dict[str, float]] = {}
    for table in ("train.csv", "valid.csv"):
        dataset = loaders.CheX_Dataset(
            imgpath=str(root / NAME), csvpath=str(root / NAME / table), views=CHEXPERT_VIEWS, unique_patients=False
        )
        theirs |= _theirs(dataset, _chexpert_study)
    _check_agree(SOURCES["chexpert"](root, SourceOptions()), theirs, keeps_devices=True)


def _check_mimic(loaders: Any, root: Path) -> None:
    dataset = loaders.MIMIC_Dataset(
        imgpath=str(root / "files"),
        csvpath=str(root / "mimic-cxr-2.0.0-chexpert.csv.gz"),
        metacsvpath=str(root / "mimic-cxr-2.0.0-metadata.csv.gz"),
        views=MIMIC_VIEWS,
        unique_patients=False,
    )
    theirs = _theirs(dataset, lambda row: str(row["study_id"]))
    _check_agree(SOURCES["mimic-cxr"](root, SourceOptions()), theirs, keeps_devices=False)


def _with_dates(tables: dict[str, Rows]) -> dict[str, Rows]:
    header, *rows = tables["metadata"]
    return {**tables, "metadata": [[*header, "StudyDate"], *[[*row, "21800506"] for row in rows]]}


def test_chexpert_agrees(tmp_path: Path, loaders: Any) -> None:
    _check_chexpert(loaders, write_chexpert(tmp_path, 40))


def test_mimic_cxr_agrees(tmp_path: Path, loaders: Any) -> None:
    _check_mimic(loaders, write_mimic_cxr(tmp_path, 40, change=_with_dates))


def test_real_sites_agree(real_data: Path, loaders: Any) -> None:
    _check_chexpert(loaders, real_data / "site-nih")
    _check_mimic(loaders, real_data / "site-guangzhou" / "mimic-cxr-jpg")
