"""Two made-up hospitals: seeded synthetic films in the layouts of CheXpert and MIMIC-CXR-JPG.

Folders, tables, columns, blank and uncertain labels, lateral views and studies of 1 to 11 images are as
published, so that a demonstration and the tests go through the same reading as real data. Findings look the
same at both sites (`phantom_findings`); a site's own are its acquisition and how common each finding is
(`phantom_style`), and what it is shifted by (`phantom_shift`). Everything follows from the seed: equal arguments
give equal bytes.
"""

import csv
import gzip
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from cxr_hvd.errors import UsageError, nearest
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.study_file import Split
from preprocess.phantom.exposure import expose
from preprocess.phantom.shift import NO_SHIFT, Shift, shift_acquisition, shift_concept, shift_labels
from preprocess.phantom.studies import Study, draw_studies
from preprocess.phantom.style import STYLES, SiteStyle

MIMIC_COLUMNS = (
    "dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns",
    "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)  # fmt: skip


# Keeps the readers' random numbers apart from all that draws films, which is keyed by four numbers at most.
_READERS = 1


@dataclass(frozen=True)
class _Film:
    """One file to draw: the image at `position` of a study."""

    path: Path
    study: Study
    position: int


def write_phantom(out: Path, layout: str, num_studies: int, seed: int, shift: Shift = NO_SHIFT) -> int:
    """Write a made-up hospital of `num_studies` studies into the new folder `out`; return its number of images.

    Raises:
        UsageError: the layout is unknown, or there is something at `out` already.
    """
    if layout not in STYLES:
        raise UsageError(
            f"--layout: expected {' or '.join(STYLES)}, found '{layout}'{nearest(layout, list(STYLES))}"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: expected no folder or an empty one, found something; choose another OUT")
    site = sorted(STYLES).index(layout)
    style = shift_acquisition(shift_labels(STYLES[layout], shift.label), shift.acquisition)
    studies = [
        _read(study, shift, seed, site)
        for study in draw_studies(np.random.default_rng([seed, site]), style, num_studies)
    ]
    films, tables = _chexpert(out, studies) if layout == "chexpert" else _mimic_cxr(out, style, studies)
    for film in films:
        film.path.parent.mkdir(parents=True, exist_ok=True)
    cv2.setNumThreads(1)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # OpenCV and numpy leave the interpreter's lock while they work.
        for _ in pool.map(
            lambda film: film.path.write_bytes(expose(film.study, film.position, style, seed, site)), films
        ):
            pass
    # The tables come last: a folder that was left half-written has none and is refused.
    for path, content in tables.items():
        path.write_bytes(content)
    return len(films)


def _read(study: Study, shift: Shift, seed: int, site: int) -> Study:
    """Return the study with its label cells as the site's readers fill them in."""
    chance = np.random.default_rng([seed, site, study.number, 0, _READERS]).random()
    return replace(study, cells=shift_concept(study.cells, shift.concept, chance))


def _chexpert(out: Path, studies: Sequence[Study]) -> tuple[list[_Film], dict[Path, bytes]]:
    """Return the films to draw and CheXpert-v1.0-small's train.csv and valid.csv; no test.csv, as published."""
    films = []
    columns = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *LABELS)
    rows: dict[str, list[Sequence[str]]] = {"train": [columns], "valid": [columns]}
    for study in studies:
        table = "valid" if study.split is Split.VALIDATE else "train"
        sex, age = ("Male", "Female")[study.patient % 2], str(20 + 7 * study.patient % 70)
        for position, view in enumerate(study.views):
            way, taken = ("Lateral", "") if view == "LATERAL" else ("Frontal", view)
            name = f"view{position + 1}_{way.lower()}.jpg"
            path = f"CheXpert-v1.0-small/{table}/patient{study.patient + 1:05d}/study{study.exam + 1}/{name}"
            rows[table].append((path, sex, age, way, taken, *study.cells))
            films.append(_Film(out / path, study, position))
    return films, {out / "CheXpert-v1.0-small" / f"{table}.csv": _csv(lines) for table, lines in rows.items()}


def _mimic_cxr(out: Path, style: SiteStyle, studies: Sequence[Study]) -> tuple[list[_Film], dict[Path, bytes]]:
    """Return the films to draw and MIMIC-CXR-JPG 2.0.0's three tables."""
    films = []
    alphabetical = sorted(LABELS)
    labels: list[Sequence[str]] = [("subject_id", "study_id", *alphabetical)]
    metadata: list[Sequence[str]] = [MIMIC_COLUMNS]
    splits: list[Sequence[str]] = [("dicom_id", "study_id", "subject_id", "split")]
    height, width = style.size_px
    for study in studies:
        patient, exam = f"{10000032 + 20011 * study.patient}", f"{50000014 + 101 * study.number}"
        cells = dict(zip(LABELS, study.cells, strict=True))
        labels.append((patient, exam, *[cells[name] for name in alphabetical]))
        for position, view in enumerate(study.views):
            rng = np.random.default_rng([study.number, position])
            dicom = "-".join(f"{part:08x}" for part in rng.integers(0, 2**32, 5))
            said = str(rng.choice([view, "LL" if view == "LATERAL" else view, ""], p=(0.6, 0.36, 0.04)))
            size = (str(height), str(width))
            code = {"PA": "postero-anterior", "AP": "antero-posterior"}.get(view, "lateral")
            metadata.append(
                (dicom, patient, exam, "CHEST", said, *size, "21500101", "120000.0", "CHEST", code, "Erect")
            )
            splits.append((dicom, exam, patient, study.split.name.lower()))
            path = out / f"files/p{patient[:2]}/p{patient}/s{exam}/{dicom}.jpg"
            films.append(_Film(path, study, position))
    tables = {"chexpert": labels, "metadata": metadata, "split": splits}
    return films, {
        out / f"mimic-cxr-2.0.0-{kind}.csv.gz": gzip.compress(_csv(lines), mtime=0)
        for kind, lines in tables.items()
    }


def _csv(lines: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue().encode()
