"""Collect rows into studies; rows that contradict each other are refused, and both are named.

Every source hands in its images one by one. A row that says once more what an earlier row has said is dropped and
counted. All else that a table can get wrong about studies is an error here, in the same words for every source:
labels, splits or patients that differ within a study, an image that is named for two things, too many images, a
table of labels that names too few studies.
"""

import re
from dataclasses import dataclass, field

from cxr_hvd.errors import DataError
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import MAX_IMAGES, UNKNOWN_AGE, Sex, Split
from preprocess.records import (
    MAX_UNLABELLED,
    UNKNOWN_DEMOGRAPHICS,
    Demographics,
    ImageRecord,
    StudyListing,
    StudyRecord,
)

Labels = tuple[float, ...]


@dataclass(slots=True)
class _Study:
    patient_id: str
    split: Split | None
    labels: Labels
    where: str
    demographics: Demographics = UNKNOWN_DEMOGRAPHICS
    has_two_sexes: bool = False
    has_two_ages: bool = False
    images: list[ImageRecord] = field(default_factory=list)

    def note(self, row: Demographics) -> None:
        """Take in what a row says of the patient: two sexes or two ages of one study leave it unknown."""
        sex, age = self.demographics
        if sex is Sex.UNKNOWN:
            sex = row.sex
        elif row.sex not in (Sex.UNKNOWN, sex):
            self.has_two_sexes = True
        if age == UNKNOWN_AGE:
            age = row.age
        elif row.age not in (UNKNOWN_AGE, age):
            self.has_two_ages = True
        self.demographics = Demographics(sex, age)

    def agreed(self) -> Demographics:
        """Return what all rows agree on."""
        sex, age = self.demographics
        return Demographics(Sex.UNKNOWN if self.has_two_sexes else sex, UNKNOWN_AGE if self.has_two_ages else age)


class StudyCollector:
    """The studies of a source while its rows are read.

    A published table has hundreds of thousands of rows, and every rank holds them: equal labels are held once, and
    paths are compared as strings, for a `Path` that was compared keeps a list of its parts.
    """

    def __init__(self, max_unlabelled: float = MAX_UNLABELLED) -> None:
        self._max_unlabelled = max_unlabelled
        self._unlabelled: dict[str, str] = {}
        self._studies: dict[str, _Study] = {}
        self._study_of_image: dict[str, str] = {}
        self._labels: dict[str, Labels] = {}
        self._num_duplicates = 0
        self._notes: set[str] = set()

    def add(
        self,
        patient_id: str,
        study_id: str,
        split: Split | None,
        labels: Labels,
        image: ImageRecord,
        demographics: Demographics = UNKNOWN_DEMOGRAPHICS,
    ) -> None:
        """Take in one row: an image, and what its row says about its study.

        Args:
            patient_id, study_id: the source's own; a study_id belongs to one patient.
            split: the one that the source publishes, or None.
            labels: in the order of `LABELS`.
            image: with the row's name for messages.
            demographics: of the patient at the time of the study.

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
        study.note(demographics)
        path = str(image.file)
        known = next((earlier for earlier in study.images if earlier.file == path), None)
        if known is None and self._study_of_image.setdefault(path, study_id) == study_id:
            study.images.append(image)
        elif known is not None and (known.view, known.is_negative) == (image.view, image.is_negative):
            self.count_duplicate()
        else:
            what = (
                "another study"
                if not known
                else "another view"
                if known.view is not image.view
                else "other shades"
            )
            raise DataError(
                f"{where}: expected each image once, found it a second time, with {what}"
                f"{f' than in {known.where}' if known else ''}; repair the table"
            )
        if len(study.images) > MAX_IMAGES:
            raise DataError(
                f"{where}: expected at most {MAX_IMAGES} images in a study, found more; "
                "split the study or leave images out"
            )

    def leave_out(self, study_id: str, where: str, missing: str) -> None:
        """Take in a row whose study has no labels.

        Args:
            study_id: the source's own. where: the row.
            missing: what was looked for and where, without an identifier.
        """
        self._unlabelled.setdefault(study_id, f"{where}: {missing}")

    def count_duplicate(self) -> None:
        """Count a row that says once more what an earlier row has said."""
        self._num_duplicates += 1

    def add_note(self, note: str) -> None:
        """Add a line that the user should know; equal lines are shown once."""
        self._notes.add(note)

    def listing(self, sha256: str) -> StudyListing:
        """Return all studies, sorted by patient and study, their images by path.

        Raises:
            DataError: too many studies have no labels, or there is none at all.
        """
        self._check_unlabelled()
        self._note_contradictions()
        ordered = sorted(self._studies.items(), key=lambda item: (item[1].patient_id, item[0]))
        return StudyListing(
            studies=tuple(
                StudyRecord(
                    patient_id=study.patient_id,
                    study_id=study_id,
                    split=study.split,
                    labels=study.labels,
                    images=tuple(sorted(study.images, key=lambda image: str(image.file))),
                    demographics=study.agreed(),
                )
                for study_id, study in ordered
            ),
            sha256=sha256,
            num_unlabelled=len(self._unlabelled),
            num_duplicates=self._num_duplicates,
            notes=tuple(sorted(self._notes)),
        )

    def _note_contradictions(self) -> None:
        num = sum(study.has_two_sexes or study.has_two_ages for study in self._studies.values())
        if num:
            self.add_note(f"{num:,} studies have rows of two sexes or two ages: there it is taken for unknown")

    def _check_unlabelled(self) -> None:
        num_unlabelled, num_studies = len(self._unlabelled), len(self._unlabelled.keys() | self._studies.keys())
        # In a small table one study is a large share.
        num_allowed = max(self._max_unlabelled * num_studies, int(num_studies > 2))
        if num_unlabelled and (num_unlabelled > num_allowed or not self._studies):
            raise DataError(
                f"{next(iter(self._unlabelled.values()))}: {num_unlabelled:,} of {num_studies:,} studies have no "
                f"labels, more than {self._max_unlabelled:.3g}; repair the ids, or set --max-unlabelled"
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


def _identifier_form(identifier: str) -> str:
    """Return an identifier's form, for messages: a digit as `9`, a letter as `x`; it names nobody."""
    return re.sub(r"[^\W\d_]", "x", re.sub(r"\d", "9", identifier[:20])) or "a blank cell"


def forms_differ(one: str, other: str) -> str:
    """Return `, 99.9 here and 99 there` where two identifiers that should be alike differ in their form."""
    form, other_form = _identifier_form(one), _identifier_form(other)
    return "" if form == other_form else f" (ids like '{form}' here and '{other_form}' there)"
