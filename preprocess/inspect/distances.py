"""Measure how far apart sites are: the numbers behind "non-i.i.d.", each beside what chance alone would give.

Per label: the Jensen-Shannon divergence (Lin, 1991) between the sites' shares of present, absent, uncertain and
blank, in bits: 0 where the shares are equal, 1 where no study of one could be of the other. Blank and uncertain
count, for a labeler's habits shift a model as patients do; `prevalence` is the share of present among present and
absent alone, that is, of the patients. The total is the mean over the labels.

Per pixel: between the histograms of gray shades of a random sample of images, the same divergence, and
Wasserstein's distance (earth mover's, Rubner et al., 2000): by how many of 256 shades the pixels of one site have
to move, on average, to look like the other's.

`chance` is the mean over random redistributions of the same studies over two groups of the same sizes: a distance
near it says nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cxr_hvd.study.study_file import StudyFile

STATES = ("present", "absent", "uncertain", "blank")
SHADES = 256
_SAMPLED_STUDIES = 400
_NUM_SHUFFLES = 20

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SiteSample:
    """The labels of a study file and the gray shades of some of its studies, from which distances are measured.

    Attributes:
        file: path of the study file. label_names: of the columns.
        states_NL: index in `STATES` of each label of each study.
        shades_MS: histograms of gray shades, one for each sampled study, each of sum 1.
        pipeline: pixel pipeline and size of the images.
    """

    file: str
    label_names: tuple[str, ...]
    states_NL: NDArray[np.int64]
    shades_MS: Floats
    pipeline: str = ""


@dataclass(frozen=True)
class LabelDistance:
    """Divergence of one label, in bits, what chance gives, and its prevalence at both sites."""

    js_bits: float
    chance: float
    prevalence: tuple[float | None, float | None]


@dataclass(frozen=True)
class MeanDistance:
    """Mean divergence of all labels that both sites have, in bits, and what chance gives; None without a label."""

    js_bits: float | None
    chance: float | None


@dataclass(frozen=True)
class PixelDistance:
    """Distances of the gray shades, in bits and in shades, and what chance gives."""

    js_bits: float
    js_chance: float
    wasserstein_shades: float
    wasserstein_chance: float


@dataclass(frozen=True)
class SiteDistance:
    """How far apart the sites of two study files are; named as `--json` prints it.

    Attributes:
        labels: of each label that both have, by name.
        pixels: None where the files come from two pixel pipelines.
    """

    files: tuple[str, str]
    pipelines: tuple[str, str]
    labels: dict[str, LabelDistance]
    labels_total: MeanDistance
    pixels: PixelDistance | None

    def why_no_pixels(self) -> str:
        """Say why the pixels of the two files are not compared."""
        return (
            f"not compared: the pipeline of A is {self.pipelines[0]}, that of B {self.pipelines[1]}. A network "
            "tells such pixels apart by how they were made; do not train on both, write them with one --pixels"
        )


def load_sample(path: Path, seed: int = 0) -> SiteSample:
    """Read the labels of a study file, and the pixels of a random sample of its studies."""
    with StudyFile(path) as file:
        states_NL = np.full(file.labels.shape, STATES.index("blank"), dtype=np.int64)
        for value, state in ((1, "present"), (0, "absent"), (-1, "uncertain")):
            states_NL[file.labels == value] = STATES.index(state)
        rng = np.random.default_rng(seed)
        sampled = np.sort(rng.permutation(len(file))[:_SAMPLED_STUDIES])
        shades_MS = np.stack([_histogram(file.images(int(index))) for index in sampled])
        pipeline = f"{file.header.pixels} at {file.header.image_size} px"
        return SiteSample(str(path), file.header.label_names, states_NL, shades_MS, pipeline)


def site_distances(samples: Sequence[SiteSample], seed: int = 0) -> list[SiteDistance]:
    """Return the distance of each pair of sites; labels that only one of them has are left out."""
    return [_distance(one, other, np.random.default_rng(seed)) for one, other in combinations(samples, 2)]


def js_divergence(one: Floats, other: Floats) -> Floats:
    """Jensen-Shannon divergence in bits over the last axis of two arrays of counts or shares."""
    p, q = (counts / counts.sum(axis=-1, keepdims=True) for counts in (one, other))
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [np.where(part > 0, part * np.log2(part / middle), 0.0).sum(axis=-1) for part in (p, q)]
    return np.asarray(np.maximum(0.0, (terms[0] + terms[1]) / 2))


def wasserstein(one: Floats, other: Floats) -> float:
    """Wasserstein-1 distance of two histograms (S,), in bins."""
    p, q = one / one.sum(), other / other.sum()
    return float(np.abs(np.cumsum(p - q)).sum())


def _distance(one: SiteSample, other: SiteSample, rng: np.random.Generator) -> SiteDistance:
    names = [name for name in one.label_names if name in other.label_names]
    columns = [[site.label_names.index(name) for name in names] for site in (one, other)]
    states = np.concatenate([one.states_NL[:, columns[0]], other.states_NL[:, columns[1]]])
    onehot = states[:, :, None] == np.arange(len(STATES))
    total, first = onehot.sum(axis=0), onehot[: len(one.states_NL)].sum(axis=0)
    labels_L = js_divergence(first.astype(float), (total - first).astype(float))
    shades = np.concatenate([one.shades_MS, other.shades_MS])
    num = len(one.shades_MS)
    label_chances, shade_chances = [], []
    for _ in range(_NUM_SHUFFLES):
        drawn = onehot[rng.permutation(len(onehot))[: len(one.states_NL)]].sum(axis=0)
        label_chances.append(js_divergence(drawn.astype(float), (total - drawn).astype(float)))
        shade_chances.append(_shade_distances(shades[rng.permutation(len(shades))], num))
    chance_L, (js_chance, wasserstein_chance) = np.mean(label_chances, axis=0), np.mean(shade_chances, axis=0)
    js_bits, wasserstein_shades = _shade_distances(shades, num)
    prevalences = zip(_prevalences(first), _prevalences(total - first), strict=True)
    return SiteDistance(
        files=(one.file, other.file),
        pipelines=(one.pipeline, other.pipeline),
        labels={
            name: LabelDistance(round(float(labels_L[column]), 4), round(float(chance_L[column]), 4), prevalence)
            for column, (name, prevalence) in enumerate(zip(names, prevalences, strict=True))
        },
        labels_total=MeanDistance(
            js_bits=round(float(labels_L.mean()), 4) if names else None,
            chance=round(float(chance_L.mean()), 4) if names else None,
        ),
        pixels=None
        if one.pipeline != other.pipeline
        else PixelDistance(
            js_bits=round(js_bits, 4),
            js_chance=round(float(js_chance), 4),
            wasserstein_shades=round(wasserstein_shades, 2),
            wasserstein_chance=round(float(wasserstein_chance), 2),
        ),
    )


def _shade_distances(shades_MS: Floats, num: int) -> tuple[float, float]:
    """Return divergence and Wasserstein distance between the first `num` histograms and the others."""
    first_S, others_S = shades_MS[:num].mean(0), shades_MS[num:].mean(0)
    return float(js_divergence(first_S, others_S)), wasserstein(first_S, others_S)


def _prevalences(counts_LS: NDArray[np.int64]) -> list[float | None]:
    return [
        float(present / (present + absent)) if present + absent else None for present, absent in counts_LS[:, :2]
    ]


def _histogram(images_NHW: NDArray[np.uint8]) -> Floats:
    return np.bincount(images_NHW.ravel(), minlength=SHADES) / images_NHW.size
