"""Count what is in a study file: studies, images, splits, views and labels; never name a study or a patient."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_hvd.study.groups import AGE_GROUPS, SEX_GROUPS
from cxr_hvd.study.layout import Split, View, image_digest
from cxr_hvd.study.study_file import StudyFile


@dataclass(frozen=True)
class SplitCounts:
    """Numbers of patients, studies and images of one split."""

    patients: int
    studies: int
    images: int


@dataclass(frozen=True)
class LabelTally:
    """How many studies have a label in which state.

    Attributes:
        prevalence: the share of present among present and absent; None where no study is either.
    """

    present: int
    absent: int
    uncertain: int
    blank: int
    prevalence: float | None


@dataclass(frozen=True)
class ShadeStatistics:
    """Gray shades of a sample of images: mean, standard deviation, percentiles, shares of black and of white."""

    mean: float
    std: float
    p5: int
    p50: int
    p95: int
    black: float
    white: float


@dataclass(frozen=True)
class FileSummary:
    """The counts of one study file, beside what its header says; named as `--json` prints them.

    Attributes:
        bytes: size of the file.
        digest: of the content. one_shade: images of a single shade, which show nothing.
        splits, views, labels: by name, in the order of the file. images_per_study: number of images to studies.
        sexes, ages: by split, the number of studies of each group; empty where the file says neither.
        flow: what was left out on the way from the source; None where the file does not say.
    """

    file: str
    bytes: int
    site: str
    source: str
    image_size: int
    seed: int
    pixels: str
    source_sha256: str
    created: str
    tool: str
    digest: str
    studies: int
    images: int
    one_shade: int
    splits: dict[str, SplitCounts]
    images_per_study: dict[str, int]
    views: dict[str, int]
    labels: dict[str, LabelTally]
    sexes: dict[str, dict[str, int]]
    ages: dict[str, dict[str, int]]
    flow: dict[str, Any] | None


def summarize(path: Path) -> FileSummary:
    """Count what is in a study file.

    Raises:
        StudyFileError: the file is refused.
    """
    with StudyFile(path) as file:
        header, digest = file.header, file.digest
        num_images, labels_NL, splits, patients = file.num_images, file.labels, file.splits, file.patient_ids
        used = np.arange(file.views.shape[1]) < num_images[:, None]
        views = Counter(file.views[used].tolist())
        one_shade = one_shade_digests(header.image_size)
        groups = {split.name.lower(): file.groups(split) for split in Split}
        num_one_shade = sum(image.tobytes() in one_shade for image in file.digests)
    return FileSummary(
        file=str(path),
        bytes=path.stat().st_size,
        **{name: value for name, value in vars(header).items() if name not in ("label_names", "flow")},
        digest=digest,
        studies=len(num_images),
        images=int(num_images.sum(dtype=np.int64)),
        one_shade=num_one_shade,
        splits={
            split.name.lower(): SplitCounts(
                patients=len(set(patients[splits == split])),
                studies=int((splits == split).sum()),
                images=int(num_images[splits == split].sum(dtype=np.int64)),
            )
            for split in Split
        },
        images_per_study={str(num): count for num, count in sorted(Counter(num_images.tolist()).items())},
        views={view.name: views[view] for view in View if views[view]},
        labels={name: _count_label(labels_NL[:, column]) for column, name in enumerate(header.label_names)},
        sexes=_count_groups({split: of_split.sexes_N for split, of_split in groups.items()}, SEX_GROUPS),
        ages=_count_groups({split: of_split.ages_N for split, of_split in groups.items()}, AGE_GROUPS),
        flow=None if header.flow is None else header.flow.model_dump(),
    )


def one_shade_digests(size: int) -> set[bytes]:
    """Return the digests of all images of one shade: blank films, which show nothing."""
    return {image_digest(np.full((size, size), shade, np.uint8)) for shade in range(256)}


def shade_statistics(shades_S: NDArray[np.float64]) -> ShadeStatistics:
    """Return the statistics of a histogram (256,) of gray shades, rounded to four digits."""
    shares = shades_S / shades_S.sum()
    mean = float(shares @ np.arange(len(shares)))
    p5, p50, p95 = (int(np.searchsorted(np.cumsum(shares), part / 100)) for part in (5, 50, 95))
    return ShadeStatistics(
        mean=round(mean, 4),
        std=round(float(np.sqrt(shares @ (np.arange(len(shares)) - mean) ** 2)), 4),
        p5=p5,
        p50=p50,
        p95=p95,
        black=round(float(shares[0]), 4),
        white=round(float(shares[-1]), 4),
    )


def _count_groups(codes: dict[str, NDArray[np.uint8]], names: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Count studies by split and group, the unknown ones last; nothing where all are unknown."""
    if not any(codes_N.any() for codes_N in codes.values()):
        return {}
    ordered = [*names[1:], names[0]]
    return {
        split: {name: int((codes_N == names.index(name)).sum()) for name in ordered}
        for split, codes_N in codes.items()
    }


def _count_label(labels_N: NDArray[np.float32]) -> LabelTally:
    present, absent = int((labels_N == 1).sum()), int((labels_N == 0).sum())
    return LabelTally(
        present=present,
        absent=absent,
        uncertain=int((labels_N == -1).sum()),
        blank=int(np.isnan(labels_N).sum()),
        prevalence=present / (present + absent) if present + absent else None,
    )
