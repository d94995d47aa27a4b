"""Rows to studies: every source hands in its images one by one, and what contradicts is refused with both rows.

A row that says once more what an earlier row has said is dropped and counted. All else that a table can get wrong
about studies is an error here, in the same words for every source: labels, splits or patients that differ within
a study, an image that is named for two things, too many images.
"""

from dataclasses import dataclass, field

from cxr_hvd.errors import DataError
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.study_file import MAX_IMAGES, Split
from preprocess.records import ImageRecord, StudyListing, StudyRecord

Labels = tuple[float, ...]


@dataclass(slots=True)
class _Study:
    patient_id: str
    split: Split | None
    labels: Labels
    where: str
    images: list[ImageRecord] = field(default_factory=list)


class Gathering:
    """The studies of a source while its rows are read.

    A published table has hundreds of thousands of rows, and every rank holds them: equal labels are held once, and
    paths are compared as strings, for a `Path` that was compared keeps a list of its parts.
    """

    def __init__(self) -> None:
        self._studies: dict[str, _Study] = {}
        self._study_of_image: dict[str, str] = {}
        self._labels: dict[str, Labels] = {}
        self.num_duplicates = 0

    def add(self, patient_id: str, study_id: str, split: Split | None, labels: Labels, image: ImageRecord) -> None:
        """Take in one row: an image, and what its row says about its study.

        Args:
            patient_id, study_id: the source's own; a study_id belongs to one patient.
            split: the one that the source publishes, or None.
            labels: in the order of `LABELS`.
            image: with the row's name for messages.

        Raises:
            DataError: the row contradicts an earlier one, or lacks a patient or a study.
        """
        where = image.where
        if not patient_id or not study_id:
            raise DataError(f"{where}: expected a patient and a study, found a blank cell; repair the table")
        study = self._studies.get(study_id)
        if study is None:
            # repr, for NaN (blank) is not equal to itself.
            labels = self._labels.setdefault(repr(labels), labels)
            study = self._studies[study_id] = _Study(patient_id, split, labels, where)
        _check_same(study, patient_id, split, labels, where)
        path = str(image.file)
        known = next((each for each in study.images if each.file == path), None)
        if known is None and self._study_of_image.setdefault(path, study_id) == study_id:
            study.images.append(image)
        elif known is not None and known.view is image.view:
            self.num_duplicates += 1
        else:
            what = "another view" if known else "another study"
            raise DataError(
                f"{where}: expected each image once, found it a second time, with {what}"
                f"{f' than in {known.where}' if known else ''}; repair the table"
            )
        if len(study.images) > MAX_IMAGES:
            raise DataError(
                f"{where}: expected at most {MAX_IMAGES} images in a study, found more; "
                "split the study or leave images out"
            )

    def listing(self, sha256: str, num_unlabelled: int = 0) -> StudyListing:
        """Return all studies, sorted by patient and study, their images by path."""
        ordered = sorted(self._studies.items(), key=lambda item: (item[1].patient_id, item[0]))
        return StudyListing(
            studies=tuple(
                StudyRecord(
                    patient_id=study.patient_id,
                    study_id=study_id,
                    split=study.split,
                    labels=study.labels,
                    images=tuple(sorted(study.images, key=lambda image: str(image.file))),
                )
                for study_id, study in ordered
            ),
            sha256=sha256,
            num_unlabelled=num_unlabelled,
            num_duplicates=self.num_duplicates,
        )


def _check_same(study: _Study, patient_id: str, split: Split | None, labels: Labels, where: str) -> None:
    if patient_id != study.patient_id:
        raise DataError(
            f"{where}: expected the patient of {study.where}, which names the same study, found another; "
            "repair the table, or name a column whose studies are unique"
        )
    if differing := differing_label(labels, study.labels):
        raise DataError(
            f"{where}: expected the labels of {study.where}, which is the same study, found another "
            f"'{differing}'; repair the table"
        )
    if split is not study.split:
        raise DataError(
            f"{where}: expected the split of {study.where}, which is the same study, found another; "
            "repair the table"
        )


def differing_label(labels: Labels, others: Labels) -> str | None:
    """Return the name of the first label in which two differ, or None; blank equals blank."""
    for name, one, other in zip(LABELS, labels, others, strict=True):
        if one != other and not (one != one and other != other):
            return name
    return None
