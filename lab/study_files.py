"""Small study files of a fixed seed, for tests that need no source images."""

from pathlib import Path

import numpy as np

from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import Sex, Split, StudyFileHeader, StudyRow, View
from cxr_hvd.study.study_writer import StudyFileWriter

SIZE = 64


def header(site: str = "north", **changes: object) -> StudyFileHeader:
    """Return a valid header."""
    values = {
        "site": site,
        "source": "test",
        "label_names": LABELS,
        "image_size": SIZE,
        "seed": 0,
        "pixels": "test-1",
        "source_sha256": "0" * 64,
        "created": "2026-01-01T00:00:00+00:00",
        "tool": "tests",
    }
    return StudyFileHeader(**{**values, **changes})  # type: ignore[arg-type]


def write_study_file(
    path: Path,
    num_studies: int = 24,
    seed: int = 0,
    splits: tuple[Split, ...] = (Split.TRAIN, Split.TEST),
    unknown: tuple[str, ...] = (),
    per_patient: int = 1,
    **changes: object,
) -> Path:
    """Write studies of 1 to 4 noisy images with random labels; patients are dealt out to the splits given.

    Sexes and ages go round; one patient in three has no known sex.

    Args:
        unknown: labels that no study says anything of.
        per_patient: studies of each patient.
    """
    rng = np.random.default_rng(seed)
    file_header = header(**changes)
    num_labels, shares = len(file_header.label_names), [0.4, 0.4, 0.1, 0.1]
    rows = [
        StudyRow(
            study_id=f"study{index}",
            patient_id=f"patient{index // per_patient}",
            split=splits[index // per_patient % len(splits)],
            sex=Sex(index // per_patient % 3),
            age=7 * (index // per_patient) % 100,
            views=(View.PA,) * int(rng.integers(1, 5)),
            labels=tuple(
                np.nan if label in unknown else value
                for label, value in zip(
                    file_header.label_names,
                    rng.choice([1.0, 0.0, -1.0, np.nan], num_labels, p=shares).tolist(),
                    strict=True,
                )
            ),
        )
        for index in range(num_studies)
    ]
    writer = StudyFileWriter(path, file_header, len(rows))
    for row in rows:
        writer.append(row, rng.integers(0, 256, (len(row.views), SIZE, SIZE), dtype=np.uint8))
    writer.close()
    return path
