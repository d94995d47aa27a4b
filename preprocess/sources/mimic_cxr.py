"""MIMIC-CXR as published: as JPEG files (MIMIC-CXR-JPG 2.0.0, 2.1.0) or as DICOM files (MIMIC-CXR 2.x.0).

Johnson et al., "MIMIC-CXR-JPG", PhysioNet 2019. The tables
`mimic-cxr-2.x.0-{chexpert,negbio,metadata,split}.csv[.gz]` lie beside `files/`: labels are a row a study with
alphabetical columns; views are a row an image; the split is a row an image and disjoint by patient. An image lies
at `files/p10/p10000001/s50000001/DICOM_ID.jpg` (or `.dcm`). A few studies have no label row: they are left out
and counted.

The DICOM download holds no labels and no splits: the tables of MIMIC-CXR-JPG are copied beside its `files/`.
Without its metadata table the images are those of the split table, and their views are read from the files.
"""

import re
from pathlib import Path

from cxr_hvd.errors import DataError
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.study_file import Split, View
from preprocess import dicom
from preprocess.records import ImageRecord, SourceOptions, StudyListing
from preprocess.sources.folder import ImageFolder
from preprocess.sources.gathering import Gathering, Labels, differing_label
from preprocess.sources.tables import labels_of, read_rows, tables_sha256

_SPLITS = {"train": Split.TRAIN, "validate": Split.VALIDATE, "test": Split.TEST}
_VIEWS = {"": View.UNKNOWN, "PA": View.PA, "AP": View.AP, "LATERAL": View.LATERAL, "LL": View.LATERAL}
_IDS = ("dicom_id", "subject_id", "study_id")


def studies(root: Path, options: SourceOptions) -> StudyListing:
    """Read the three tables of MIMIC-CXR-JPG in `root`; no image is opened.

    ViewPosition PA and AP are frontal, LATERAL and LL (left lateral) lateral, blank unknown, all others other.

    Raises:
        DataError: a table, a column, a label, a split, a path or a study is not as published.
    """
    return _listing(root, options, "jpg", has_metadata=True)


def dicom_studies(root: Path, options: SourceOptions) -> StudyListing:
    """Read the tables beside MIMIC-CXR's DICOM files in `root`; without a metadata table also each file's header.

    Raises:
        DataError: a table, a column, a label, a split, a path or a study is not as published.
    """
    return _listing(root, options, "dcm", has_metadata=bool(_tables(root, "metadata")))


def _listing(root: Path, options: SourceOptions, suffix: str, has_metadata: bool) -> StudyListing:
    folder = ImageFolder(root)
    kinds = (options.labels, *(["metadata"] if has_metadata else []), "split")
    tables = {kind: _table(root, kind) for kind in kinds}
    gathering = Gathering()
    labels = _labels(tables[options.labels], gathering)
    splits = _splits(tables["split"])
    unlabelled = set()
    images = tables["metadata" if has_metadata else "split"]
    for row in read_rows(images, (*_IDS, "ViewPosition") if has_metadata else _IDS):
        name, patient, study = (row.cells[column] for column in _IDS)
        path = folder.path(f"files/p{patient[:2]}/p{patient}/s{study}/{name}.{suffix}", row.where)
        if (name, patient, study) not in splits:
            raise DataError(
                f"{row.where}: expected this image in {tables['split'].name} too, found none; repair it"
            )
        if (patient, study) not in labels:
            unlabelled.add((patient, study))
            continue
        view = row.cells["ViewPosition"] if has_metadata else dicom.view_position(path)
        record = ImageRecord(path, _VIEWS.get(view, View.OTHER), row.where)
        gathering.add(patient, study, splits[name, patient, study], labels[patient, study], record)
    return gathering.listing(tables_sha256(list(tables.values())), len(unlabelled))


def _tables(root: Path, kind: str) -> list[Path]:
    form = re.compile(rf"mimic-cxr-2\.\d+\.\d+-{kind}\.csv(\.gz)?")
    try:
        return sorted(path for path in root.iterdir() if form.fullmatch(path.name))
    except OSError as error:
        raise DataError(
            f"{root}: expected a readable folder, found none ({type(error).__name__}); check ROOT"
        ) from error


def _table(root: Path, kind: str) -> Path:
    """Return the one table of a kind in `root`."""
    found = _tables(root, kind)
    if len(found) != 1:
        raise DataError(
            f"{root}: expected one mimic-cxr-2.x.0-{kind}.csv or .csv.gz here, found {len(found)}; "
            "ROOT is the folder that holds files/ and the tables"
        )
    return found[0]


def _labels(table: Path, gathering: Gathering) -> dict[tuple[str, str], Labels]:
    """Return the labels of each (patient, study)."""
    found: dict[tuple[str, str], tuple[Labels, str]] = {}
    for row in read_rows(table, ("subject_id", "study_id", *LABELS)):
        labels = labels_of(row)
        earlier, where = found.setdefault((row.cells["subject_id"], row.cells["study_id"]), (labels, row.where))
        if where == row.where:
            continue
        if differing := differing_label(labels, earlier):
            raise DataError(
                f"{row.where}: expected the labels of {where}, which is the same study, found another "
                f"'{differing}'; repair the table"
            )
        gathering.num_duplicates += 1
    return {study: labels for study, (labels, _) in found.items()}


def _splits(table: Path) -> dict[tuple[str, str, str], Split]:
    """Return the published split of each (image, patient, study)."""
    splits: dict[tuple[str, str, str], Split] = {}
    for row in read_rows(table, (*_IDS, "split")):
        split = _SPLITS.get(row.cells["split"])
        if split is None:
            raise DataError(
                f"{row.where}: expected train, validate or test, found '{row.cells['split'][:20]}'; "
                "repair the table"
            )
        key = (row.cells["dicom_id"], row.cells["subject_id"], row.cells["study_id"])
        if splits.setdefault(key, split) is not split:
            raise DataError(
                f"{row.where}: expected the split of this image's earlier row, found another; repair the table"
            )
    return splits
