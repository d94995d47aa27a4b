"""CheXpert as published: `CheXpert-v1.0[-small]/{train,valid,test}.csv` beside folders of JPEG files.

Irvin et al., "CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels", AAAI 2019. A row is an
image; its `Path` starts with the folder's name; the study is `patientNNNNN/studyN`, and every row of a study
repeats its labels. Lateral rows have a blank `AP/PA`. `test.csv` is not part of the public download: it is
read where a site has one with the same columns.
"""

from pathlib import Path

from cxr_hvd.errors import DataError
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.study_file import Split, View
from preprocess.records import ImageRecord, SourceOptions, StudyListing
from preprocess.sources.folder import ImageFolder
from preprocess.sources.gathering import Gathering
from preprocess.sources.tables import Row, labels_of, read_rows
from preprocess.sources.text import tables_sha256

FOLDERS = ("CheXpert-v1.0", "CheXpert-v1.0-small")
TABLES = {"train.csv": Split.TRAIN, "valid.csv": Split.VALIDATE, "test.csv": Split.TEST}
COLUMNS = ("Path", "Frontal/Lateral", "AP/PA", *LABELS)

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


def studies(root: Path, options: SourceOptions) -> StudyListing:
    """Read the tables of the CheXpert folder in (or at) `root`; no image is opened.

    Raises:
        DataError: a table, a column, a label, a path or a study is not as published.
    """
    data = _data_folder(root)
    folder = ImageFolder(data)
    tables = [data / name for name in TABLES if name in ("train.csv", "valid.csv") or (data / name).exists()]
    gathering = Gathering()
    for table in tables:
        for row in read_rows(table, COLUMNS):
            patient, study, image = _read(row, data.name, folder)
            gathering.add(patient, f"{patient}/{study}", TABLES[table.name], labels_of(row), image)
    return gathering.listing(tables_sha256(tables))


def _data_folder(root: Path) -> Path:
    """Return the folder that holds train.csv: `root` itself or the one CheXpert folder in it."""
    root = root.resolve()
    found = [root / name for name in FOLDERS if (root / name / "train.csv").is_file()]
    if root.name in FOLDERS and (root / "train.csv").is_file():
        found.append(root)
    if len(found) == 1:
        return found[0]
    what = "no folder with a train.csv" if not found else f"{len(found)} of them"
    raise DataError(f"{root}: expected one of {' and '.join(FOLDERS)} here, found {what}; check ROOT")


def _read(row: Row, data_name: str, folder: ImageFolder) -> tuple[str, str, ImageRecord]:
    """Return patient, study and image of a row; `Path` is NAME/TABLE/patientNNNNN/studyN/viewN_WAY.jpg."""
    relative = row.cells["Path"]
    parts = relative.split("/")
    path = folder.path(relative.removeprefix(f"{data_name}/"), row.where)
    if len(parts) != 5 or parts[0] != data_name or not parts[2].startswith("patient") or "study" not in parts[3]:
        raise DataError(
            f"{row.where}: expected a Path like {data_name}/train/patientNNNNN/studyN/view1_frontal.jpg, "
            "found another form; repair the table"
        )
    view = _VIEWS.get((row.cells["Frontal/Lateral"], row.cells["AP/PA"]))
    if view is None:
        raise DataError(
            f"{row.where}: expected Frontal or Lateral with AP, PA or blank, found "
            f"'{row.cells['Frontal/Lateral'][:20]}' with '{row.cells['AP/PA'][:20]}'; repair the table"
        )
    return parts[2], parts[3], ImageRecord(path, view, row.where)
