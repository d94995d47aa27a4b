"""Two made-up hospitals: seeded synthetic films in the layouts of CheXpert and MIMIC-CXR-JPG.

Folders, tables, columns, blank and uncertain labels, lateral views and studies of 1 to 11 images are as
published, so that a demonstration and the tests go through the same reading as real data. Findings look the
same at both sites (`phantom_findings`); a site's own are its acquisition and how common each finding is.
Everything follows from the seed: equal arguments give equal bytes.
"""

import csv
import gzip
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from cxr_hvd.errors import UsageError, nearest
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.study_file import Split
from preprocess.sources import phantom_findings
from preprocess.sources.phantom_anatomy import Body
from preprocess.sources.phantom_brush import HEIGHT_PX, WIDTH_PX, Film

MIMIC_COLUMNS = (
    "dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns",
    "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)  # fmt: skip


@dataclass(frozen=True)
class SiteStyle:
    """What is a site's own: acquisition, and how common findings are.

    Attributes:
        size_px: height and width of its files.
        exposure, gamma: of the tone curve; ranges that each image draws from.
        noise: standard deviation, in gray values. blur_px: of the file, in its pixels.
        collimation: the widest black border, as a fraction of the width.
        marker: text of the side marker.
        lateral: how likely each further image of a study is a lateral one.
        images_per_study: weights of 1, 2, 3 ... images.
        prevalence: of each finding but No Finding and Lung Opacity, which follow from the others.
        healthy: the share of studies without a finding.
    """

    size_px: tuple[int, int]
    exposure: tuple[float, float]
    gamma: tuple[float, float]
    noise: float
    blur_px: float
    collimation: float
    marker: str
    lateral: float
    images_per_study: tuple[float, ...]
    prevalence: dict[str, float]
    healthy: float


STYLES = {
    "chexpert": SiteStyle(
        size_px=(390, 320), exposure=(0.95, 1.10), gamma=(0.85, 1.05), noise=5.0, blur_px=0.6, collimation=0.03,
        marker="L", lateral=0.75, images_per_study=(0.72, 0.24, 0.04), healthy=0.15,
        prevalence={
            "Enlarged Cardiomediastinum": 0.15, "Cardiomegaly": 0.22, "Lung Opacity": 0.15, "Lung Lesion": 0.15,
            "Edema": 0.25, "Consolidation": 0.15, "Pneumonia": 0.15, "Atelectasis": 0.22, "Pneumothorax": 0.20,
            "Pleural Effusion": 0.35, "Pleural Other": 0.12, "Fracture": 0.15, "Support Devices": 0.45,
        },
    ),
    "mimic-cxr": SiteStyle(
        size_px=(448, 448), exposure=(0.80, 0.98), gamma=(1.10, 1.40), noise=9.0, blur_px=1.2, collimation=0.08,
        marker="R", lateral=0.45, healthy=0.30,
        images_per_study=(0.62, 0.22, 0.08, 0.04, 0.015, 0.01, 0.004, 0.004, 0.003, 0.002, 0.002),
        prevalence={
            "Enlarged Cardiomediastinum": 0.12, "Cardiomegaly": 0.30, "Lung Opacity": 0.20, "Lung Lesion": 0.12,
            "Edema": 0.18, "Consolidation": 0.12, "Pneumonia": 0.22, "Atelectasis": 0.30, "Pneumothorax": 0.12,
            "Pleural Effusion": 0.28, "Pleural Other": 0.12, "Fracture": 0.12, "Support Devices": 0.30,
        },
    ),
}  # fmt: skip


@dataclass(frozen=True)
class _Study:
    """One exam: counted from 0 the patient, the exam of the patient, and the study of the site; what it shows."""

    patient: int
    exam: int
    number: int
    split: Split
    cells: tuple[str, ...]
    body: Body
    findings: frozenset[str]
    views: tuple[str, ...]


@dataclass(frozen=True)
class _Film:
    """One file to draw: the image at `position` of a study."""

    path: Path
    study: _Study
    view: str
    position: int


def write_phantom(out: Path, layout: str, num_studies: int, seed: int) -> int:
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
    style, site = STYLES[layout], sorted(STYLES).index(layout)
    studies = _draw_studies(np.random.default_rng([seed, site]), style, num_studies)
    films, tables = _chexpert(out, studies) if layout == "chexpert" else _mimic_cxr(out, style, studies)
    for film in films:
        film.path.parent.mkdir(parents=True, exist_ok=True)
    cv2.setNumThreads(1)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # OpenCV and numpy leave the interpreter's lock while they work.
        for _ in pool.map(lambda film: _expose(film, style, seed, site), films):
            pass
    # The tables come last: a folder that was left half-written has none and is refused.
    for path, content in tables.items():
        path.write_bytes(content)
    return len(films)


def _draw_studies(rng: np.random.Generator, style: SiteStyle, num_studies: int) -> list[_Study]:
    """Draw patients of 1 to 4 studies each, until there are enough; every tenth patient validates, two test."""
    studies: list[_Study] = []
    patient = 0
    weights = np.array(style.images_per_study) / sum(style.images_per_study)
    while len(studies) < num_studies:
        body = Body.drawn(rng)
        for exam in range(min(int(rng.choice(4, p=(0.6, 0.2, 0.12, 0.08))) + 1, num_studies - len(studies))):
            findings = _draw_findings(rng, style)
            num_images = int(rng.choice(len(weights), p=weights)) + 1
            frontal = rng.choice(["PA", "AP"], num_images)
            is_lateral = rng.random(num_images) < style.lateral
            views = tuple(
                "LATERAL" if position and is_lateral[position] else str(frontal[position])
                for position in range(num_images)
            )
            split = {2: Split.VALIDATE, 5: Split.TEST, 8: Split.TEST}.get(patient % 10, Split.TRAIN)
            cells = _draw_cells(rng, findings)
            studies.append(_Study(patient, exam, len(studies), split, cells, body, findings, views))
        patient += 1
    return studies


def _draw_findings(rng: np.random.Generator, style: SiteStyle) -> frozenset[str]:
    chances = rng.random(len(style.prevalence))
    if rng.random() < style.healthy:
        # Devices are no finding: a healthy chest may have them.
        return frozenset({"No Finding"} | ({"Support Devices"} if chances[-1] < 0.15 else set()))
    found = {
        name for (name, share), chance in zip(style.prevalence.items(), chances, strict=True) if chance < share
    }
    if found & phantom_findings.OPACITIES:
        found.add("Lung Opacity")
    return frozenset(found if found - {"Support Devices"} else found | {"No Finding"})


def _draw_cells(rng: np.random.Generator, findings: frozenset[str]) -> tuple[str, ...]:
    """Return the 14 label cells: what is there is mostly said, what is not is mostly left blank."""
    cells = []
    for name, chance in zip(LABELS, rng.random(len(LABELS)), strict=True):
        if name == "No Finding":
            cells.append("1.0" if name in findings else "")
        elif name in findings:
            cells.append("1.0" if chance < 0.93 else "-1.0")
        else:
            cells.append("0.0" if chance < 0.25 else "-1.0" if chance < 0.27 else "")
    return tuple(cells)


def _expose(film: _Film, style: SiteStyle, seed: int, site: int) -> None:
    """Draw one film as the site's machine would take it, and write the JPEG file."""
    rng = np.random.default_rng([seed, site, film.study.number, film.position])
    draw = phantom_findings.lateral if film.view == "LATERAL" else phantom_findings.frontal
    places = np.random.default_rng([seed, site, film.study.number])
    density = draw(rng, places, film.study.body, film.study.findings)
    tone = np.clip(density * rng.uniform(*style.exposure) / 1.05, 0, 1) ** rng.uniform(*style.gamma)
    tone = _positioned(rng, np.asarray(255 * tone, np.float32), style)
    height, width = style.size_px
    border = [int(width * rng.uniform(0, style.collimation)) for _ in range(4)]
    tone[: border[0]] = tone[height - border[1] :] = 5
    tone[:, : border[2]] = tone[:, width - border[3] :] = 5
    noise = rng.standard_normal((height, width), dtype=np.float32)
    pixels = np.clip(tone + style.noise * noise, 0, 255).astype(np.uint8)
    if film.view != "LATERAL":
        scale, x = width / 320, 0.90 if style.marker == "L" else 0.04
        place = (int(x * width), int(rng.uniform(0.07, 0.12) * height))
        cv2.putText(pixels, style.marker, place, cv2.FONT_HERSHEY_SIMPLEX, 0.9 * scale, 250, int(2 * scale))
    _, content = cv2.imencode(".jpg", pixels, (cv2.IMWRITE_JPEG_QUALITY, 90))
    film.path.write_bytes(content.tobytes())


def _positioned(rng: np.random.Generator, tone: Film, style: SiteStyle) -> Film:
    """Return the film at the size of the site's files, shifted, turned and scaled a little."""
    height, width = style.size_px
    turn, zoom = rng.normal(0, 2.0), rng.uniform(1.0, 1.08)
    matrix = np.asarray(cv2.getRotationMatrix2D((WIDTH_PX / 2, HEIGHT_PX / 2), turn, zoom), np.float64)
    matrix[:, 2] += rng.normal(0, 0.012, 2) * (WIDTH_PX, HEIGHT_PX)
    matrix *= np.array([[width / WIDTH_PX], [height / HEIGHT_PX]])
    placed = cv2.warpAffine(tone, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.GaussianBlur(placed, (0, 0), style.blur_px), np.float32)


def _chexpert(out: Path, studies: Sequence[_Study]) -> tuple[list[_Film], dict[Path, bytes]]:
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
            films.append(_Film(out / path, study, view, position))
    return films, {out / "CheXpert-v1.0-small" / f"{table}.csv": _csv(lines) for table, lines in rows.items()}


def _mimic_cxr(out: Path, style: SiteStyle, studies: Sequence[_Study]) -> tuple[list[_Film], dict[Path, bytes]]:
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
            films.append(_Film(path, study, view, position))
    tables = {"chexpert": labels, "metadata": metadata, "split": splits}
    return films, {
        out / f"mimic-cxr-2.0.0-{kind}.csv.gz": gzip.compress(_csv(lines), mtime=0)
        for kind, lines in tables.items()
    }


def _csv(lines: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue().encode()
