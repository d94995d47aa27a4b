"""MIMIC-CXR-JPG as published: `mimic-cxr-2.x.0-{chexpert,metadata,split}.csv[.gz]` beside `files/`.

Johnson et al., "MIMIC-CXR-JPG", PhysioNet 2019. Labels are a row a study with alphabetical columns; views are
a row an image; the split is a row an image and disjoint by patient. An image lies at
`files/p10/p10000001/s50000001/DICOM_ID.jpg`. A few studies have no label row: they are left out and counted.
"""

import re
from pathlib import Path

from cxr_hvd.errors import DataError
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.study_file import MAX_IMAGES, Split, View
from preprocess.records import ImageRecord, StudyListing, StudyRecord
from preprocess.sources.folder import ImageFolder
from preprocess.sources.tables import labels_of, read_rows, tables_sha256

_SPLITS = {"train": Split.TRAIN, "validate": Split.VALIDATE, "test": Split.TEST}
_VIEWS = {"": View.UNKNOWN, "PA": View.PA, "AP": View.AP, "LATERAL": View.LATERAL, "LL": View.LATERAL}


def studies(root: Path) -> StudyListing:
    """Read the three tables in `root`; no image is opened.

    ViewPosition PA and AP are frontal, LATERAL and LL (left lateral) lateral, blank unknown, all others other.

    Raises:
        DataError: a table, a column, a label, a split, a path or a study is not as published.
    """
    folder = ImageFolder(root)
    tables = {kind: _table(root, kind) for kind in ("chexpert", "metadata", "split")}
    labels: dict[tuple[str, str], tuple[float, ...]] = {}
    for row in read_rows(tables["chexpert"], ("subject_id", "study_id", *LABELS)):
        key = (row.cells["subject_id"], row.cells["study_id"])
        if key in labels:
            raise DataError(f"{row.where}: expected one row a study, found a second one; repair the table")
        labels[key] = labels_of(row)
    splits = _splits(tables["split"])
    images: dict[tuple[str, str], dict[str, ImageRecord]] = {}
    split_of_study: dict[tuple[str, str], Split] = {}
    for row in read_rows(tables["metadata"], ("dicom_id", "subject_id", "study_id", "ViewPosition")):
        dicom, key = row.cells["dicom_id"], (row.cells["subject_id"], row.cells["study_id"])
        patient, study = key
        path = folder.path(f"files/p{patient[:2]}/p{patient}/s{study}/{dicom}.jpg", row.where)
        if (dicom, *key) not in splits:
            raise DataError(
                f"{row.where}: expected this image in {tables['split'].name} too, found none; repair it"
            )
        split = splits[dicom, patient, study]
        if split_of_study.setdefault(key, split) is not split:
            raise DataError(
                f"{row.where}: expected one split for a study, found two; repair {tables['split'].name}"
            )
        known = images.setdefault(key, {})
        if dicom in known:
            raise DataError(f"{row.where}: expected each image once, found it a second time; repair the table")
        known[dicom] = ImageRecord(path, _VIEWS.get(row.cells["ViewPosition"], View.OTHER), row.where)
        if len(known) > MAX_IMAGES:
            raise DataError(
                f"{row.where}: expected at most {MAX_IMAGES} images in a study, found more; "
                "split the study or leave images out"
            )
    return StudyListing(
        studies=tuple(
            StudyRecord(
                patient_id=key[0],
                study_id=key[1],
                split=split_of_study[key],
                labels=labels[key],
                images=tuple(image for _, image in sorted(images[key].items())),
            )
            for key in sorted(images)
            if key in labels
        ),
        sha256=tables_sha256(list(tables.values())),
        num_unlabelled=sum(key not in labels for key in images),
    )


def _table(root: Path, kind: str) -> Path:
    """Return the one table of a kind in `root`."""
    form = re.compile(rf"mimic-cxr-2\.\d+\.\d+-{kind}\.csv(\.gz)?")
    found = sorted(path for path in root.iterdir() if form.fullmatch(path.name))
    if len(found) != 1:
        raise DataError(
            f"{root}: expected one mimic-cxr-2.x.0-{kind}.csv or .csv.gz here, found {len(found)}; "
            "ROOT is the folder that holds files/ and the tables"
        )
    return found[0]


def _splits(table: Path) -> dict[tuple[str, str, str], Split]:
    """Return the published split of each (image, patient, study)."""
    splits = {}
    for row in read_rows(table, ("dicom_id", "study_id", "subject_id", "split")):
        split = _SPLITS.get(row.cells["split"])
        if split is None:
            raise DataError(
                f"{row.where}: expected train, validate or test, found '{row.cells['split'][:20]}'; "
                "repair the table"
            )
        splits[row.cells["dicom_id"], row.cells["subject_id"], row.cells["study_id"]] = split
    return splits
