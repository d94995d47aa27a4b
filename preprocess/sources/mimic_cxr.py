"""Read MIMIC-CXR as published: as JPEG files (MIMIC-CXR-JPG 2.0.0, 2.1.0) or as DICOM files (MIMIC-CXR 2.x.0).

Johnson et al., "MIMIC-CXR-JPG", PhysioNet 2019. The tables
`mimic-cxr-2.x.0-{chexpert,negbio,metadata,split}.csv[.gz]` lie beside `files/`: labels are a row a study with
alphabetical columns; views are a row an image; the split is a row an image and disjoint by patient. An image lies
at `files/p10/p10000001/s50000001/DICOM_ID.jpg` (or `.dcm`). A few studies have no label row: they are left out
and counted.

The DICOM download holds no labels and no splits: the tables of MIMIC-CXR-JPG are copied beside its `files/`.
Without its metadata table the images are those of the split table, and their views are read from the files.

Neither download names sex or age: they come from MIMIC-IV's `patients.csv[.gz]` where it lies beside the tables.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cxr_hvd.errors import DataError
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import UNKNOWN_AGE, Sex, Split, View
from preprocess.pixels import dicom
from preprocess.records import UNKNOWN_DEMOGRAPHICS, Demographics, ImageRecord, SourceOptions, StudyListing
from preprocess.sources.collector import Labels, StudyCollector, differing_label, forms_differ
from preprocess.sources.demographics import parse_age, parse_sex
from preprocess.sources.folder import ImageFolder
from preprocess.sources.tables import Row, parse_labels, read_rows
from preprocess.sources.text import tables_sha256

_SPLITS = {"train": Split.TRAIN, "validate": Split.VALIDATE, "test": Split.TEST}
_VIEWS = {"": View.UNKNOWN, "PA": View.PA, "AP": View.AP, "LATERAL": View.LATERAL, "LL": View.LATERAL}
_IDS, _DATE = ("dicom_id", "subject_id", "study_id"), "StudyDate"
# What programs that take ids for numbers make of 50000001.
_DECIMAL = re.compile(r"\d+(\.\d*)?([eE]\+?\d+)?")


@dataclass(frozen=True, slots=True)
class _Patient:
    """A row of MIMIC-IV's patients table: how old a patient is in some year of the shifted calendar."""

    sex: Sex
    age: str
    year: str

    def at(self, date: str) -> Demographics:
        """Return sex and age in the year of a study's date, YYYYMMDD."""
        if not (self.age.isdigit() and self.year.isdigit() and date[:4].isdigit()):
            return Demographics(self.sex)
        years = int(self.age) + int(date[:4]) - int(self.year)
        age = parse_age(str(years)) if years >= 0 else UNKNOWN_AGE
        return Demographics(self.sex, UNKNOWN_AGE if age is None else age)


def read_studies(root: Path, options: SourceOptions) -> StudyListing:
    """Read the three tables of MIMIC-CXR-JPG in `root`; no image is opened.

    ViewPosition PA and AP are frontal, LATERAL and LL (left lateral) lateral, blank unknown, all others other.

    Raises:
        DataError: a table, a column, a label, a split, a path or a study is not as published.
    """
    return _listing(root, options, "jpg", has_metadata=True)


def read_dicom_studies(root: Path, options: SourceOptions) -> StudyListing:
    """Read the tables beside MIMIC-CXR's DICOM files in `root`; without a metadata table also each file's header.

    Raises:
        DataError: a table, a column, a label, a split, a path or a study is not as published.
    """
    return _listing(root, options, "dcm", has_metadata=bool(_tables(root, "metadata")))


def _listing(root: Path, options: SourceOptions, suffix: str, has_metadata: bool) -> StudyListing:
    folder = ImageFolder(root)
    kinds = (options.labels, *(["metadata"] if has_metadata else []), "split")
    tables = {kind: _table(root, kind) for kind in kinds}
    collector = StudyCollector(options.max_unlabelled)
    labels = _labels(tables[options.labels], collector)
    splits = _splits(tables["split"])
    images = tables["metadata" if has_metadata else "split"]
    patients, other_tables = _patients(root)
    for row in read_rows(images, (*_IDS, "ViewPosition") if has_metadata else _IDS, optional=(_DATE,)):
        name, (patient, study) = row.cells["dicom_id"], _ids(row)
        path = folder.path(f"files/p{patient[:2]}/p{patient}/s{study}/{name}.{suffix}", row.where)
        *ids, split = splits.get(name, (None, None, Split.TRAIN))
        if ids != [patient, study]:
            raise DataError(
                f"{row.where}: expected this image in {tables['split'].name} too, with the same subject_id and "
                f"study_id, found none{_forms(study, (ids[1] for *ids, _ in splits.values()))}; repair it"
            )
        if (patient, study) not in labels:
            missing = f"expected its subject_id and study_id in {tables[options.labels].name} too, found none"
            collector.leave_out(study, row.where, missing + _forms(study, (study for _, study in labels)))
            continue
        # A pipe in a file's place would be waited for.
        view = row.cells["ViewPosition"] if has_metadata else dicom.view_position(path) if path.is_file() else ""
        record = ImageRecord(path, _VIEWS.get(view, View.OTHER), row.where)
        known = patients.get(patient)
        demographics = known.at(row.cells.get(_DATE, "")) if known else UNKNOWN_DEMOGRAPHICS
        collector.add(patient, study, split, labels[patient, study], record, demographics)
    return collector.listing(tables_sha256([*tables.values(), *other_tables]))


def _ids(row: Row) -> tuple[str, str]:
    """Return the patient and the study of a row.

    Raises:
        DataError: one is a decimal number such as 123.0, which no other table has and no file is named by.
    """
    patient, study = row.cells["subject_id"], row.cells["study_id"]
    for column, cell in (("subject_id", patient), ("study_id", study)):
        if not cell.isdigit() and _DECIMAL.fullmatch(cell):
            raise DataError(
                f"{row.where}: column '{column}': expected an id as published, in digits alone, found a decimal "
                "number such as 123.0, which matches no other table; write the table again with ids as text"
            )
    return patient, study


def _forms(study: str, others: Iterable[str]) -> str:
    """Say how the form of a study's id differs from that of the first one of another table."""
    return forms_differ(study, next(iter(others), study))


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
    tables = _tables(root, kind)
    if len(tables) != 1:
        raise DataError(
            f"{root}: expected one mimic-cxr-2.x.0-{kind}.csv or .csv.gz here, found {len(tables)}; "
            + ("remove all but one" if tables else "ROOT is the folder that holds files/ and the tables")
        )
    return tables[0]


def _patients(root: Path) -> tuple[dict[str, _Patient], list[Path]]:
    """Return MIMIC-IV's patients by subject_id, and the table where it lies beside the others."""
    tables = [path for path in (root / "patients.csv", root / "patients.csv.gz") if path.is_file()][:1]
    columns = ("subject_id", "gender", "anchor_age", "anchor_year")
    patients = {}
    for table in tables:
        for row in read_rows(table, columns):
            patient, gender, age, year = (row.cells[column] for column in columns)
            patients[patient] = _Patient(parse_sex(gender) or Sex.UNKNOWN, age, year)
    return patients, tables


def _labels(table: Path, collector: StudyCollector) -> dict[tuple[str, str], Labels]:
    """Return the labels of each (patient, study)."""
    labels_by_study: dict[tuple[str, str], tuple[Labels, str]] = {}
    patients: dict[str, str] = {}
    for row in read_rows(table, ("subject_id", "study_id", *LABELS)):
        labels, (patient, study) = parse_labels(row), _ids(row)
        if patients.setdefault(study, patient) != patient:
            _, where = labels_by_study[patients[study], study]
            raise DataError(
                f"{row.where}: expected the subject_id of {where}, which is the same study, found another; "
                "repair the table"
            )
        earlier, where = labels_by_study.setdefault((patient, study), (labels, row.where))
        if where == row.where:
            continue
        if differing := differing_label(labels, earlier):
            raise DataError(
                f"{row.where}: expected the labels of {where}, which is the same study, found another "
                f"'{differing}'; repair the table"
            )
        collector.count_duplicate()
    return {study: labels for study, (labels, _) in labels_by_study.items()}


def _splits(table: Path) -> dict[str, tuple[str, str, Split]]:
    """Return the patient, the study and the published split of each image."""
    splits: dict[str, tuple[str, str, Split]] = {}
    for row in read_rows(table, (*_IDS, "split")):
        split = _SPLITS.get(row.cells["split"])
        if split is None:
            raise DataError(
                f"{row.where}: expected train, validate or test, found '{row.cells['split'][:20]}'; "
                "repair the table"
            )
        image = (*_ids(row), split)
        if (earlier := splits.setdefault(row.cells["dicom_id"], image)) != image:
            what = "split" if earlier[:2] == image[:2] else "subject_id and study_id"
            raise DataError(
                f"{row.where}: expected the {what} of this image's earlier row, found another; repair the table"
            )
    return splits
