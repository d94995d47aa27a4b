"""The layouts that this program reads: one module each, and a table from name to plain function."""

from collections.abc import Callable
from pathlib import Path

from preprocess.records import StudyListing
from preprocess.sources import chexpert, mimic_cxr

SOURCES: dict[str, Callable[[Path], StudyListing]] = {
    "chexpert": chexpert.studies,
    "mimic-cxr": mimic_cxr.studies,
}
