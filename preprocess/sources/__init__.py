"""The layouts of sources: one module each, and a table from a layout's name to the function that reads it."""

from collections.abc import Callable
from pathlib import Path

from preprocess.records import SourceOptions, StudyListing
from preprocess.sources import chexpert, images, manifest, mimic_cxr

SOURCES: dict[str, Callable[[Path, SourceOptions], StudyListing]] = {
    "chexpert": chexpert.read_studies,
    "mimic-cxr": mimic_cxr.read_studies,
    "mimic-cxr-dicom": mimic_cxr.read_dicom_studies,
    "manifest": manifest.read_studies,
    "images": images.read_studies,
}
