"""The layouts that this program reads: one module each, and a table from name to plain function."""

from collections.abc import Callable
from pathlib import Path

from preprocess.records import SourceOptions, StudyListing
from preprocess.sources import chexpert, manifest, mimic_cxr

SOURCES: dict[str, Callable[[Path, SourceOptions], StudyListing]] = {
    "chexpert": chexpert.studies,
    "mimic-cxr": mimic_cxr.studies,
    "mimic-cxr-dicom": mimic_cxr.dicom_studies,
    "manifest": manifest.studies,
}
