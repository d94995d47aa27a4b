"""The statement of what data a comparison stands on, from the sites' study files: numbers only, no study's own."""

from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cxr_hvd.errors import CxrHvdError
from cxr_hvd.experiment.comparison import LabelCounts, SiteDescription
from cxr_hvd.experiment.scores import Origin
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.training.run_folder import RunFolder


def describe_sites(run: Path, origin: Origin) -> tuple[SiteDescription, ...]:
    """Describe each site's study file, and name those from outside; where one is not here, say so."""
    outside = [
        SiteDescription(
            name=name,
            data_sha256=origin.data_sha256[name],
            note="took no part; judged on only",
            pixels=origin.pixels.get(name),
        )
        for name in origin.outside
    ]
    return (*(_describe(run, site, origin.data_sha256[site]) for site in origin.sites), *outside)


def _describe(run: Path, site: str, digest: str) -> SiteDescription:
    note = "its study file is not here"
    try:
        with StudyFile(RunFolder(run, site).config().sites[site].data) as file:
            if file.digest == digest:
                return describe_file(file, site)
            note = "the study file here is another by now"
    except CxrHvdError:
        pass
    return SiteDescription(name=site, data_sha256=digest, note=note)


def _count_groups(file: StudyFile) -> dict[str, dict[str, dict[str, int]]]:
    """Count the studies of each group by view, sex and age that is known, by split."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for split in Split:
        for kind, groups in file.groups(split).members().items():
            for name, is_member_N in groups.items():
                counts.setdefault(kind, {}).setdefault(name, {})[split.name.lower()] = int(is_member_N.sum())
    return counts


def describe_file(file: StudyFile, site: str) -> SiteDescription:
    """Describe an open study file by its counts."""
    rows = {split.name.lower(): file.indices(split) for split in Split}
    num_images = sorted(Counter(file.num_images.tolist()).items())

    def count(is_so_N: NDArray[np.bool_]) -> dict[str, int]:
        return {split: int(is_so_N[indices].sum()) for split, indices in rows.items()}

    return SiteDescription(
        name=site,
        data_sha256=file.digest,
        note=None,
        source=file.header.source,
        pixels=file.header.pixels,
        image_size=file.header.image_size,
        num_studies={split: len(indices) for split, indices in rows.items()},
        num_patients={split: len(set(file.patient_ids[indices])) for split, indices in rows.items()},
        num_images={split: int(file.num_images[indices].sum(dtype=np.int64)) for split, indices in rows.items()},
        images_per_study={str(num): count for num, count in num_images},
        groups=_count_groups(file),
        flow=file.header.flow,
        labels=tuple(
            LabelCounts(
                label=label,
                present=count(labels_N == 1),
                absent=count(labels_N == 0),
                uncertain=count(labels_N == -1),
                blank=count(np.isnan(labels_N)),
            )
            for label, labels_N in zip(file.header.label_names, file.labels.T, strict=True)
        ),
    )
