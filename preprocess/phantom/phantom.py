"""Write a made-up hospital: seeded synthetic films in the layout of CheXpert or MIMIC-CXR-JPG.

Folders, tables, columns, blank and uncertain labels, lateral views and studies of 1 to 11 images are as
published, so that a demonstration and the tests go through the same reading as real data. This module exposes the
films and writes the files; who the patients are stands in hospital.py, what a film shows in anatomy.py and
findings.py. Everything follows from the seed: equal arguments give equal bytes.
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
from cxr_hvd.study.layout import Split
from preprocess.phantom.anatomy import HEIGHT_PX, WIDTH_PX, Film, blurred
from preprocess.phantom.findings import draw_frontal, draw_lateral
from preprocess.phantom.hospital import (
    NO_SHIFT,
    STYLES,
    Shift,
    SiteStyle,
    Study,
    draw_studies,
    shift_acquisition,
    shift_concept,
    shift_labels,
)

MIMIC_COLUMNS = (
    "dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns",
    "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)  # fmt: skip
# Keeps the readers' random numbers apart from all that draws films, which is keyed by four numbers at most.
_READERS = 1


@dataclass(frozen=True)
class _FilmFile:
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
        _read_by_site(study, shift, seed, site)
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


def _read_by_site(study: Study, shift: Shift, seed: int, site: int) -> Study:
    """Return the study with its label cells as the site's readers fill them in."""
    chance = np.random.default_rng([seed, site, study.number, 0, _READERS]).random()
    return replace(study, cells=shift_concept(study.cells, shift.concept, chance))


def _chexpert(out: Path, studies: Sequence[Study]) -> tuple[list[_FilmFile], dict[Path, bytes]]:
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
            films.append(_FilmFile(out / path, study, position))
    return films, {out / "CheXpert-v1.0-small" / f"{table}.csv": _csv(lines) for table, lines in rows.items()}


def _mimic_cxr(out: Path, style: SiteStyle, studies: Sequence[Study]) -> tuple[list[_FilmFile], dict[Path, bytes]]:
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
            stored_view = str(rng.choice([view, "LL" if view == "LATERAL" else view, ""], p=(0.6, 0.36, 0.04)))
            size = (str(height), str(width))
            code = {"PA": "postero-anterior", "AP": "antero-posterior"}.get(view, "lateral")
            metadata.append(
                (dicom, patient, exam, "CHEST", stored_view, *size, "21500101", "120000.0", "CHEST", code, "Erect")
            )
            splits.append((dicom, exam, patient, study.split.name.lower()))
            path = out / f"files/p{patient[:2]}/p{patient}/s{exam}/{dicom}.jpg"
            films.append(_FilmFile(path, study, position))
    tables = {"chexpert": labels, "metadata": metadata, "split": splits}
    return films, {
        out / f"mimic-cxr-2.0.0-{kind}.csv.gz": gzip.compress(_csv(lines), mtime=0)
        for kind, lines in tables.items()
    }


def _csv(lines: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue().encode()


def expose(study: Study, position: int, style: SiteStyle, seed: int, site: int) -> bytes:
    """Draw the image at `position` of a study as the site's machine would take it; return the JPEG file.

    Where body and findings lie is drawn from (seed, site, study, position) alone: the style changes nothing of it.
    """
    view = study.views[position]
    rng = np.random.default_rng([seed, site, study.number, position])
    draw = draw_lateral if view == "LATERAL" else draw_frontal
    places = np.random.default_rng([seed, site, study.number])
    density = draw(rng, places, study.body, study.findings)
    tone = np.clip(density * rng.uniform(*style.exposure) / 1.05, 0, 1) ** rng.uniform(*style.gamma)
    tone = _positioned(rng, _flattened(np.asarray(255 * tone, np.float32), style.flattening), style)
    height, width = style.size_px
    border = [int(width * rng.uniform(0, style.collimation)) for _ in range(4)]
    tone[: border[0]] = tone[height - border[1] :] = 5
    tone[:, : border[2]] = tone[:, width - border[3] :] = 5
    noise = rng.standard_normal((height, width), dtype=np.float32)
    pixels = np.clip(tone + style.noise * noise, 0, 255).astype(np.uint8)
    if view != "LATERAL":
        scale, x = width / 320, 0.90 if style.marker == "L" else 0.04
        place = (int(x * width), int(rng.uniform(0.07, 0.12) * height))
        cv2.putText(pixels, style.marker, place, cv2.FONT_HERSHEY_SIMPLEX, 0.9 * scale, 250, int(2 * scale))
    _, content = cv2.imencode(".jpg", pixels, (cv2.IMWRITE_JPEG_QUALITY, 90))
    return content.tobytes()


def _flattened(tone: Film, flattening: float) -> Film:
    """Return the film with slow changes from dark to light evened out towards the middle shade."""
    if not flattening:
        return tone
    return np.asarray(tone + flattening * (128 - blurred(tone, 0.11 * WIDTH_PX)), np.float32)


def _positioned(rng: np.random.Generator, tone: Film, style: SiteStyle) -> Film:
    """Return the film at the size of the site's files, shifted, turned and scaled a little."""
    height, width = style.size_px
    turn, zoom = rng.normal(0, 2.0), rng.uniform(*style.zoom)
    matrix = np.asarray(cv2.getRotationMatrix2D((WIDTH_PX / 2, HEIGHT_PX / 2), turn, zoom), np.float64)
    matrix[:, 2] += rng.normal(0, 0.012, 2) * (WIDTH_PX, HEIGHT_PX)
    matrix *= np.array([[width / WIDTH_PX], [height / HEIGHT_PX]])
    placed = cv2.warpAffine(tone, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.GaussianBlur(placed, (0, 0), style.blur_px), np.float32)
