"""Made-up hospitals, their studies: who is examined how often, from which sides, what is found, what is written.

Whatever the prevalences, the same random numbers are drawn in the same order: patients stay who they are.
"""

from dataclasses import dataclass

import numpy as np

from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.study_file import Split
from preprocess.phantom import findings as phantom_findings
from preprocess.phantom.anatomy import Body
from preprocess.phantom.style import SiteStyle


@dataclass(frozen=True)
class Study:
    """One exam: counted from 0 the patient, the exam of the patient, and the study of the site; what it shows."""

    patient: int
    exam: int
    number: int
    split: Split
    cells: tuple[str, ...]
    body: Body
    findings: frozenset[str]
    views: tuple[str, ...]


def draw_studies(rng: np.random.Generator, style: SiteStyle, num_studies: int) -> list[Study]:
    """Draw patients of 1 to 4 studies each, until there are enough; every tenth patient validates, two test."""
    studies: list[Study] = []
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
            studies.append(Study(patient, exam, len(studies), split, cells, body, findings, views))
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
