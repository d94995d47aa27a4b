"""DICOM images for tests."""

from pathlib import Path

import numpy as np

from cxr_hvd.study.layout import View
from preprocess.pixels import pipelines
from preprocess.records import ImageRecord

DEEP = np.sort(np.random.default_rng(3).integers(0, 4096, (48, 64)), axis=None).astype(np.uint16).reshape(48, 64)
PIPELINES = ("dicom-voi", "mimic-jpg-compat")


def load_dicom(tmp_path: Path, content: bytes, pipeline: str = "dicom-voi", size: int = 32) -> np.ndarray:
    """Write a DICOM file and load it by a pipeline."""
    path = tmp_path / "patient00001.dcm"
    path.write_bytes(content)
    return pipelines.load_image(ImageRecord(path, View.PA, "list.csv row 2"), size, pipeline)
