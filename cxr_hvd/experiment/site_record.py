"""The statement of what data a comparison stands on, from the sites' study files: numbers only, no study's own."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from cxr_hvd.errors import CxrHvdError
from cxr_hvd.experiment.scores import Origin
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.training.run_folder import RunFolder


def describe_sites(run: Path, origin: Origin) -> list[dict[str, Any]]:
    """Describe each site's study file, and name those from outside; where one is not here, say so."""
    outside = [
        {
            "name": name,
            "data_sha256": origin.data_sha256[name],
            "note": "took no part; judged on only",
            "pixels": origin.pixels.get(name),
        }
        for name in origin.outside
    ]
    return [_describe(run, site, origin.data_sha256[site]) for site in origin.sites] + outside


def _describe(run: Path, site: str, digest: str) -> dict[str, Any]:
    try:
        with StudyFile(RunFolder(run, site).config().sites[site].data) as file:
            if file.digest != digest:
                return {"name": site, "data_sha256": digest, "note": "the study file here is another by now"}
            return {"name": site, "data_sha256": digest, "note": None, **_told(file)}
    except CxrHvdError:
        return {"name": site, "data_sha256": digest, "note": "its study file is not here"}


def _told(file: StudyFile) -> dict[str, Any]:
    splits = {split.name.lower(): file.indices(split) for split in Split}
    return {
        "source": file.header.source,
        "pixels": file.header.pixels,
        "image_size": file.header.image_size,
        "num_studies": {split: len(own) for split, own in splits.items()},
        "num_patients": {split: len(set(file.patient_ids[own])) for split, own in splits.items()},
        "num_images": {split: int(file.num_images[own].sum(dtype=np.int64)) for split, own in splits.items()},
        "images_per_study": {str(num): count for num, count in sorted(Counter(file.num_images.tolist()).items())},
        "labels": [
            {
                "label": label,
                **{
                    word: {split: int(is_so[own].sum()) for split, own in splits.items()}
                    for word, is_so in _words(file.labels[:, column]).items()
                },
            }
            for column, label in enumerate(file.header.label_names)
        ],
    }


def _words(labels_N: np.ndarray[Any, np.dtype[np.float32]]) -> dict[str, np.ndarray[Any, np.dtype[np.bool_]]]:
    return {
        "present": labels_N == 1,
        "absent": labels_N == 0,
        "uncertain": labels_N == -1,
        "blank": np.isnan(labels_N),
    }
