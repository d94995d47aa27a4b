"""Made-up hospitals, how they differ: three kinds of shift between institutions, each by a degree of 0 to 1.

With x the film and y the findings (Quiñonero-Candela et al., Dataset Shift in Machine Learning, 2009; Castro,
Walker and Glocker, Causality matters in medical imaging, 2020):

- *label shift*: P(y) differs, P(x|y) does not. Findings of accidents and infections get common, all others rare.
- *acquisition shift*: the same body gives another film. Patients, findings and labels stay.
- *concept shift*: P(y|x) differs. The same film gets another label: readers swap the names of two findings.

Each is a pure function that changes one thing and draws nothing, so that two sites of one seed and one layout have
the same patients. Why these: docs/decisions/0016-phantom-shifts.md.
"""

from dataclasses import dataclass, replace

from cxr_hvd.errors import UsageError
from cxr_hvd.study.labels import LABELS
from preprocess.phantom.style import SiteStyle

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
                found = f"found {degree:g}; choose one in between"
                raise UsageError(f"--{kind}-shift: expected a number from 0 (none) to 1 (strong), {found}")

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
