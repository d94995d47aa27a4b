"""Read tables by a YAML of their columns, for tests."""

import math
from pathlib import Path

from cxr_hvd.study.labels import LABELS
from preprocess.records import SourceOptions, StudyListing, StudyRecord
from preprocess.sources import manifest


def read_manifest(table: Path, columns: str | Path) -> StudyListing:
    """Read a table by a YAML of its columns, or the name of one that ships."""
    return manifest.read_studies(table, SourceOptions(columns=Path(columns)))


def given_labels(study: StudyRecord) -> dict[str, float]:
    """Return the labels that are not blank."""
    return {name: value for name, value in zip(LABELS, study.labels, strict=True) if not math.isnan(value)}


def present_labels(study: StudyRecord) -> set[str]:
    """Return the names of the labels that are present."""
    return {name for name, value in given_labels(study).items() if value == 1}


NIH_HEADERS = {
    "Data_Entry_2017.csv": "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,"
    "View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],",
    "Data_Entry_2017_v2020.csv": "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Sex,"
    "View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]",
}

VINDR_LABELS = (
    "Aortic enlargement,Atelectasis,Calcification,Cardiomegaly,Clavicle fracture,Consolidation,Edema,"
    "Emphysema,Enlarged PA,ILD,Infiltration,Lung Opacity,Lung cavity,Lung cyst,Mediastinal shift,"
    "Nodule/Mass,Pleural effusion,Pleural thickening,Pneumothorax,Pulmonary fibrosis,Rib fracture,"
    "Other lesion,COPD,Lung tumor,Pneumonia,Tuberculosis,Other diseases,No finding"
)
