"""Read a table that says which images are of one study: columns `path` and `study`, and perhaps `patient`, `view`.

Paths are relative to the folder that was given, and lead to files in it alone. Images that the table does not name
are no part of any study.
"""

from collections.abc import Sequence
from pathlib import Path

from cxr_hvd.errors import DataError, UsageError
from cxr_hvd.study.layout import View
from preprocess.records import ImageRecord
from preprocess.sources.folder import ImageFolder
from preprocess.sources.image_files import ImageFile, Kind, kind_of
from preprocess.sources.image_studies import ImageStudy
from preprocess.sources.tables import read_rows


def read_table(table: Path, paths: Sequence[Path]) -> tuple[list[ImageStudy], int]:
    """Return the studies that a table names, in the order of their names, and how many rows say a thing twice.

    Raises:
        UsageError: not one folder was given beside it.
        DataError: a row's cell is blank, its view unknown or its path outside, or rows contradict each other.
    """
    if len(paths) != 1 or not paths[0].is_dir():
        raise UsageError(f"--table {table}: expected one folder as PATH, to which the table's paths are relative")
    folder = ImageFolder(paths[0], "PATH")
    studies: dict[str, ImageStudy] = {}
    first_row: dict[str, tuple[str, str]] = {}
    num_duplicates = 0
    for row in read_rows(table, ("path", "study"), optional=("patient", "view")):
        name, patient = row.cells["study"], row.cells.get("patient", row.cells["study"])
        view = row.cells.get("view", "").upper() or "UNKNOWN"
        if not name or not patient:
            raise DataError(f"{row.where}: expected a study and a patient, found a blank cell; repair the row")
        if view not in View.__members__:
            raise DataError(
                f"{row.where}: column 'view': expected {', '.join(View.__members__)} or blank, found another word"
            )
        file = str(folder.path(row.cells["path"], row.where))
        study = studies.setdefault(name, ImageStudy(name, patient, name))
        if study.patient_id != patient:
            raise DataError(f"{row.where}: expected one patient for each study, found two; repair the table")
        earlier, where = first_row.setdefault(file, (name, row.where))
        if where != row.where:
            if earlier != name:
                raise DataError(f"{row.where}: expected each image in one study, found that of {where} again")
            num_duplicates += 1
            continue
        image = ImageFile(paths[0], row.cells["path"], file, kind_of(file) or Kind.UNKNOWN, is_alone=False)
        study.images.append((image, ImageRecord(file, View[view], row.where)))
    if not studies:
        raise DataError(f"{table}: expected rows of images below the header, found none")
    for study in studies.values():
        study.images.sort(key=lambda pair: pair[0].file)
    return [studies[name] for name in sorted(studies)], num_duplicates
