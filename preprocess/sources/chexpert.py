"""Read CheXpert as published and as it is unpacked: train.csv, valid.csv (and test.csv) beside folders of JPEGs.

Irvin et al., "CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels", AAAI 2019. A row is an
image; its `Path` is `CheXpert-v1.0[-small]/train/patientNNNNN/studyN/viewN_WAY.jpg`, whatever the folder is
called where it lies; every row of a study repeats its labels. Lateral rows have a blank `AP/PA`. `test.csv` is not
part of the public download: it is read where a site has one with the same columns.

AIMI's download has four folders: `CheXpert-v1.0 batch 1 (validate & csv)` with the tables and `valid/`, and three
more with the patients of `train/`, each for a part of them.
"""

import re
from pathlib import Path

from cxr_hvd.errors import DataError
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import UNKNOWN_AGE, Sex, Split, View
from preprocess.records import Demographics, ImageRecord, SourceOptions, StudyListing
from preprocess.sources.collector import StudyCollector
from preprocess.sources.demographics import parse_age, parse_sex
from preprocess.sources.folder import ImageFolder
from preprocess.sources.tables import Row, parse_labels, read_rows
from preprocess.sources.text import tables_sha256

FOLDERS = ("CheXpert-v1.0", "CheXpert-v1.0-small")
# AIMI's: the first holds the tables, the others patients.
_BATCH = re.compile(r"CheXpert-v1\.0.* batch .*")
_PATH = re.compile(r"(?:CheXpert-v1\.0[^/]*/)?(train|valid|test)/(patient[^/]+)/([^/]*study[^/]*)/[^/]+")
TABLES = {"train.csv": Split.TRAIN, "valid.csv": Split.VALIDATE, "test.csv": Split.TEST}
COLUMNS = ("Path", "Frontal/Lateral", "AP/PA", *LABELS)
SEX, AGE = "Sex", "Age"

_VIEWS = {
    ("Frontal", "PA"): View.PA,
    ("Frontal", "AP"): View.AP,
    ("Frontal", ""): View.UNKNOWN,
    # A handful of frontal rows say LL or RL.
    ("Frontal", "LL"): View.OTHER,
    ("Frontal", "RL"): View.OTHER,
    ("Lateral", ""): View.LATERAL,
    ("Lateral", "LL"): View.LATERAL,
    ("Lateral", "RL"): View.LATERAL,
    ("Lateral", "AP"): View.LATERAL,
    ("Lateral", "PA"): View.LATERAL,
}


def read_studies(root: Path, options: SourceOptions) -> StudyListing:
    """Read the tables of the CheXpert folder at or below `root`; no image is opened.

    Raises:
        DataError: a table, a column, a label, a path or a study is not as published.
    """
    data = _data_folder(root)
    base = data.parent if _BATCH.fullmatch(data.name) else data
    batches = _batches(base)
    folder = ImageFolder(base if batches else data)
    tables = [data / name for name in TABLES if name in ("train.csv", "valid.csv") or (data / name).exists()]
    collector = StudyCollector()
    for table in tables:
        for row in read_rows(table, COLUMNS, optional=(SEX, AGE)):
            patient, study, image = _read(row, folder, batches)
            split, demographics = TABLES[table.name], _demographics(row, collector)
            collector.add(patient, f"{patient}/{study}", split, parse_labels(row), image, demographics)
    return collector.listing(tables_sha256(tables))


def _demographics(row: Row, collector: StudyCollector) -> Demographics:
    """Return the sex and age that a row names; what is not understood is unknown, and noted."""
    sex, age = parse_sex(row.cells.get(SEX, "")), parse_age(row.cells.get(AGE, ""))
    table = row.where.split()[0]
    for column, value in ((SEX, sex), (AGE, age)):
        if value is None:
            collector.add_note(f"{table} has cells in the column '{column}' that are none: taken for unknown")
    return Demographics(Sex.UNKNOWN if sex is None else sex, UNKNOWN_AGE if age is None else age)


def _data_folder(root: Path) -> Path:
    """Return the folder that holds train.csv: `root` itself, or the one folder at most two levels below it."""
    root = root.resolve()
    for pattern in ("CheXpert-v1.0*/train.csv", "train.csv", "*/train.csv", "*/*/train.csv"):
        folders = sorted({path.parent.resolve() for path in root.glob(pattern)})
        if len(folders) == 1:
            return folders[0]
        if folders:
            raise DataError(
                f"{root}: expected one folder with CheXpert's train.csv, found {len(folders)} of them, "
                f"{folders[0].name} and {folders[1].name}; give one of them as ROOT"
            )
    what = "no folder with one" if root.is_dir() else "no folder of this name"
    raise DataError(f"{root}: expected CheXpert's train.csv here or in a folder below, found {what}; check ROOT")


def _batches(base: Path) -> dict[tuple[str, str], str]:
    """Return where each (`train` or `valid`, patient) of AIMI's batches in `base` lies, relative to it."""
    batches: dict[tuple[str, str], str] = {}
    try:
        for batch in sorted(base.glob("CheXpert-v1.0* batch *")):
            # Batches 2 to 4 hold the patients themselves.
            for part, within in (("train", batch), ("train", batch / "train"), ("valid", batch / "valid")):
                lies = str(within.relative_to(base))
                for patient in within.glob("patient*"):
                    if batches.setdefault((part, patient.name), lies) != lies:
                        raise DataError(
                            f"{base}: expected each patient in one batch, found one in "
                            f"{batches[part, patient.name]} and in {lies}; remove one"
                        )
    except OSError as error:
        raise DataError(f"{base}: cannot be read ({type(error).__name__}); check ROOT") from error
    return batches


def _read(row: Row, folder: ImageFolder, batches: dict[tuple[str, str], str]) -> tuple[str, str, ImageRecord]:
    """Return patient, study and image of a row; `Path` is NAME/TABLE/patientNNNNN/studyN/viewN_WAY.jpg."""
    named = row.cells["Path"]
    relative = named.partition("/")[2] if named.startswith("CheXpert-v1.0") else named
    path = folder.path(relative, row.where)
    match = _PATH.fullmatch(named)
    if match is None:
        raise DataError(
            f"{row.where}: expected a Path like {FOLDERS[1]}/train/patientNNNNN/studyN/view1_frontal.jpg, "
            "found another form; repair the table"
        )
    part, patient, study = match.groups()
    if within := batches.get((part, patient)):
        path = folder.path(f"{within}/{relative.partition('/')[2]}", row.where)
    view = _VIEWS.get((row.cells["Frontal/Lateral"], row.cells["AP/PA"]))
    if view is None:
        raise DataError(
            f"{row.where}: expected Frontal or Lateral with AP, PA or blank, found "
            f"'{row.cells['Frontal/Lateral'][:20]}' with '{row.cells['AP/PA'][:20]}'; repair the table"
        )
    return patient, study, ImageRecord(path, view, row.where)
