"""Made-up hospitals: their machine, how common each finding is, their patients, and what differs between two.

A `SiteStyle` is what is a site's own. `Shift` moves it away from another site of the same layout, in three kinds,
each by a degree of 0 to 1. With x the film and y the findings (Quiñonero-Candela et al., Dataset Shift in Machine
Learning, 2009; Castro, Walker and Glocker, Causality matters in medical imaging, 2020):

- *label shift*: P(y) differs, P(x|y) does not. Findings of accidents and infections get common, all others rare.
- *acquisition shift*: the same body gives another film. Patients, findings and labels stay.
- *concept shift*: P(y|x) differs. The same film gets another label: readers swap the names of two findings.

A shift is a pure function that changes one thing and draws no random number; and the same random numbers are drawn
in the same order whatever the prevalences. So two sites of one seed and one layout have the same patients.
Why these: docs/decisions/0016-phantom-shifts.md.
"""

from dataclasses import dataclass, replace

import numpy as np

from cxr_hvd.errors import UsageError
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import Split

# Findings that are opacities of the lung: a study with one of them has "Lung Opacity" too.
OPACITIES = frozenset({"Lung Lesion", "Edema", "Consolidation", "Pneumonia", "Atelectasis"})

# Label shift, at degree 1.
COMMON, RARE = 0.55, 0.05
RISING = frozenset({"Enlarged Cardiomediastinum", "Consolidation", "Pneumonia", "Pneumothorax", "Fracture"})

# Acquisition shift, at degree 1: factors of gamma and of the body's size on the film; what is added to the rest.
STEEPER, SMALLER = 2.2, 0.72
FLATTER, NOISIER, SOFTER_PX, NARROWER = 0.9, 3.0, 0.3, 0.06

# Concept shift: findings that are taken for each other, in the order in which they swap. Those of a pair are about
# equally common in CheXpert's layout, so that hardly more than their names changes.
CONFUSED = (
    ("Consolidation", "Pneumonia"),
    ("Enlarged Cardiomediastinum", "Cardiomegaly"),
    ("Edema", "Atelectasis"),
    ("Lung Lesion", "Fracture"),
)


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
        zoom: how large the body is on the film; a range that each image draws from.
        flattening: how much of the slow changes from dark to light the machine evens out, 0 to 1.
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
    zoom: tuple[float, float] = (1.0, 1.08)
    flattening: float = 0.0


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
class Shift:
    """How far a site is from one of the same layout without a shift: degrees of 0 (not at all) to 1.

    Raises:
        UsageError: a degree is outside of 0 to 1.
    """

    label: float = 0.0
    acquisition: float = 0.0
    concept: float = 0.0

    def __post_init__(self) -> None:
        for kind, degree in vars(self).items():
            if not 0 <= degree <= 1:
                expected = "expected a number from 0 (none) to 1 (strong)"
                raise UsageError(f"--{kind}-shift: {expected}, found {degree:g}; choose one in between")

    def described(self) -> str:
        """Say in words which shifts there are; nothing where there is none."""
        return "".join(f", {kind} shift {degree:g}" for kind, degree in vars(self).items() if degree)


NO_SHIFT = Shift()


def shift_labels(style: SiteStyle, degree: float) -> SiteStyle:
    """Return the style with prevalences moved in a straight line to COMMON for RISING findings, to RARE else."""
    prevalence = {
        name: (1 - degree) * share + degree * (COMMON if name in RISING else RARE)
        for name, share in style.prevalence.items()
    }
    return replace(style, prevalence=prevalence)


def shift_acquisition(style: SiteStyle, degree: float) -> SiteStyle:
    """Return the style of a machine of steeper gray curve and wider field that evens out slow changes."""
    steeper, smaller = STEEPER**degree, 1 - degree * (1 - SMALLER)
    low, high = style.gamma
    smallest, largest = style.zoom
    return replace(
        style,
        gamma=(low * steeper, high * steeper),
        zoom=(smallest * smaller, largest * smaller),
        flattening=style.flattening + degree * FLATTER,
        noise=style.noise + degree * NOISIER,
        blur_px=style.blur_px + degree * SOFTER_PX,
        collimation=style.collimation + degree * NARROWER,
    )


def shift_concept(cells: tuple[str, ...], degree: float, chance: float) -> tuple[str, ...]:
    """Return a study's label cells as the site's readers fill them in, pairs in CONFUSED swapped.

    A degree of 0.25 swaps the first pair in all studies, one of 0.5 the first two, and so on. In between the next
    pair is swapped in a share of the studies, those with a small `chance` (0 to 1, the study's own).
    """
    swapped = list(cells)
    for number, (one, other) in enumerate(CONFUSED):
        if chance < len(CONFUSED) * degree - number:
            first, second = LABELS.index(one), LABELS.index(other)
            swapped[first], swapped[second] = swapped[second], swapped[first]
    return tuple(swapped)


@dataclass(frozen=True)
class Body:
    """One patient: fractions of the canvas, and factors around 1."""

    lung_top: float
    lung_bottom: float
    lung_width: float
    heart: float
    rib_step: float
    girth: float

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> "Body":
        """Draw a patient at random."""
        return cls(
            lung_top=rng.uniform(0.10, 0.14),
            lung_bottom=rng.uniform(0.72, 0.78),
            lung_width=rng.uniform(0.32, 0.36),
            heart=rng.uniform(0.90, 1.05),
            rib_step=rng.uniform(0.066, 0.074),
            girth=rng.uniform(0.94, 1.04),
        )


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
    findings = {
        name for (name, share), chance in zip(style.prevalence.items(), chances, strict=True) if chance < share
    }
    if findings & OPACITIES:
        findings.add("Lung Opacity")
    return frozenset(findings if findings - {"Support Devices"} else findings | {"No Finding"})


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
