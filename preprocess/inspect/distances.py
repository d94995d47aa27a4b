"""How far apart sites are: the numbers behind "non-i.i.d.", each beside what chance alone would give.

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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_hvd.study.study_file import StudyFile

STATES = ("present", "absent", "uncertain", "blank")
SHADES = 256
_SAMPLED_STUDIES = 400
_NUM_SHUFFLES = 20

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Traits:
    """What of a study file enters a distance.

    Attributes:
        name: the file. label_names: of the columns.
        states_NL: index in `STATES` of each label of each study.
        shades_MS: histograms of gray shades, one for each sampled study, each of sum 1.
        pipeline: by which way and to which size the pixels came.
    """

    name: str
    label_names: tuple[str, ...]
    states_NL: NDArray[np.int64]
    shades_MS: Floats
    pipeline: str = ""


def traits(path: Path, seed: int = 0) -> Traits:
    """Read labels, and the pixels of a random sample of studies."""
    with StudyFile(path) as file:
        states_NL = np.full(file.labels.shape, STATES.index("blank"), dtype=np.int64)
        for value, state in ((1, "present"), (0, "absent"), (-1, "uncertain")):
            states_NL[file.labels == value] = STATES.index(state)
        rng = np.random.default_rng(seed)
        sampled = np.sort(rng.permutation(len(file))[:_SAMPLED_STUDIES])
        shades_MS = np.stack([_histogram(file.images(int(index))) for index in sampled])
        pipeline = f"{file.header.pixels} at {file.header.image_size} px"
        return Traits(str(path), file.header.label_names, states_NL, shades_MS, pipeline)


def site_distances(sites: Sequence[Traits], seed: int = 0) -> list[dict[str, Any]]:
    """Return the distances of each pair of sites as plain values; labels that only one has are left out.

    Pixels of two pipelines are not compared: `pixels` is then None.
    """
    return [_apart(one, other, np.random.default_rng(seed)) for one, other in combinations(sites, 2)]


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


def _apart(one: Traits, other: Traits, rng: np.random.Generator) -> dict[str, Any]:
    names = [name for name in one.label_names if name in other.label_names]
    columns = [[site.label_names.index(name) for name in names] for site in (one, other)]
    states = np.concatenate([one.states_NL[:, columns[0]], other.states_NL[:, columns[1]]])
    onehot = states[:, :, None] == np.arange(len(STATES))
    total, first = onehot.sum(axis=0), onehot[: len(one.states_NL)].sum(axis=0)
    labels_L = js_divergence(first.astype(float), (total - first).astype(float))
    shades = np.concatenate([one.shades_MS, other.shades_MS])
    num = len(one.shades_MS)
    chance_of_labels, chance_of_shades = [], []
    for _ in range(_NUM_SHUFFLES):
        drawn = onehot[rng.permutation(len(onehot))[: len(one.states_NL)]].sum(axis=0)
        chance_of_labels.append(js_divergence(drawn.astype(float), (total - drawn).astype(float)))
        mixed = shades[rng.permutation(len(shades))]
        chance_of_shades.append((_js_of(mixed, num), wasserstein(mixed[:num].mean(0), mixed[num:].mean(0))))
    chance_L, (chance_js, chance_w) = np.mean(chance_of_labels, axis=0), np.mean(chance_of_shades, axis=0)
    prevalence = [_prevalence(counts) for counts in (first, total - first)]
    return {
        "files": [one.name, other.name],
        "pipelines": [one.pipeline, other.pipeline],
        "labels": {
            name: {
                "js_bits": round(float(labels_L[column]), 4),
                "chance": round(float(chance_L[column]), 4),
                "prevalence": [None if np.isnan(part[column]) else float(part[column]) for part in prevalence],
            }
            for column, name in enumerate(names)
        },
        "labels_total": {
            "js_bits": round(float(labels_L.mean()), 4) if names else None,
            "chance": round(float(chance_L.mean()), 4) if names else None,
        },
        "pixels": None
        if one.pipeline != other.pipeline
        else {
            "js_bits": round(_js_of(shades, num), 4),
            "js_chance": round(float(chance_js), 4),
            "wasserstein_shades": round(wasserstein(shades[:num].mean(0), shades[num:].mean(0)), 2),
            "wasserstein_chance": round(float(chance_w), 2),
        },
    }


def _js_of(shades_MS: Floats, num: int) -> float:
    return float(js_divergence(shades_MS[:num].mean(0), shades_MS[num:].mean(0)))


def _prevalence(counts_LS: NDArray[np.int64]) -> Floats:
    with np.errstate(invalid="ignore"):
        return np.asarray(counts_LS[:, 0] / (counts_LS[:, 0] + counts_LS[:, 1]))


def _histogram(images_NHW: NDArray[np.uint8]) -> Floats:
    return np.bincount(images_NHW.ravel(), minlength=SHADES) / images_NHW.size
