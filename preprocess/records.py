"""Records of a hospital's folder before any pixel is read: studies, their images, and the row that names each.

A source (preprocess/sources) turns its tables into a `StudyListing`; everything after it (selection, pixels,
write) knows these records only. A record holds identifiers as the hospital gave them: it stays in memory.
An image that cannot be used is a `BadImageError`: the job sets it aside and goes on.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from cxr_hvd.errors import DataError
from cxr_hvd.study.layout import UNKNOWN_AGE, Sex, Split, View

MAX_UNLABELLED = 0.1


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image file.

    There may be half a million of them in memory, so the path is kept as text: a `Path` weighs three times that.

    Attributes:
        file: its path, resolved, inside the source's folder. It may hold a patient's identifier: never print it.
        view: from which side it was taken.
        where: the table and row that name it, for messages; for example `train.csv row 17`.
        is_negative: whether the table says that the file, which cannot say so itself, stores black as white.
    """

    file: str | Path
    view: View
    where: str
    is_negative: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "file", str(self.file))

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.file)


class Demographics(NamedTuple):
    """A patient's sex, and age in whole years at the time of a study."""

    sex: Sex = Sex.UNKNOWN
    age: int = UNKNOWN_AGE


UNKNOWN_DEMOGRAPHICS = Demographics()


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """One exam of one patient.

    Attributes:
        patient_id, study_id: the source's own identifiers; a study_id is unique in its source.
        split: the split that the source publishes, or None.
        labels: 1, 0, -1 (uncertain) or NaN (not mentioned), in the order of `cxr_hvd.study.labels.LABELS`.
        images: 1 to 20, in a fixed order.
        demographics: as far as the source names them.
    """

    patient_id: str
    study_id: str
    split: Split | None
    labels: tuple[float, ...]
    images: tuple[ImageRecord, ...]
    demographics: Demographics = UNKNOWN_DEMOGRAPHICS


@dataclass(frozen=True, slots=True)
class ImageName:
    """Where an image lies that no table of labels names. It may hold a patient's identifier: never print it.

    Attributes:
        where: what messages call the image.
        given: the PATH of the command line. path: the image's, relative to it.
        study: what the user finds its study by. study_id: of its record.
    """

    where: str
    given: str
    path: str
    study: str
    study_id: str


@dataclass(frozen=True)
class StudyListing:
    """All that a source's tables say.

    Attributes:
        studies: sorted by patient and study, so that the order of rows in the tables changes nothing.
        sha256: digest of the tables' names and bytes, in hexadecimal.
        num_unlabelled: studies that were left out because no label row names them.
        num_duplicates: rows that said once more what an earlier row had said; they were dropped.
        notes: what the tables lack and the user should know, a line each.
        pixels: the pipeline that reads the images, where the source knows.
        names: where the images lie, where no table says it.
        set_aside: (where, reason) of images whose studies were left out.
    """

    studies: tuple[StudyRecord, ...]
    sha256: str
    num_unlabelled: int = 0
    num_duplicates: int = 0
    notes: tuple[str, ...] = ()
    pixels: str | None = None
    names: tuple[ImageName, ...] = ()
    set_aside: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class SourceOptions:
    """What the user may choose about a source, beside its folder. A source passes over what it does not know.

    Attributes:
        labels: which labeler's table to read, where the source publishes two (MIMIC-CXR).
        columns: the YAML file that says what a table's columns mean (manifest).
        max_unlabelled: the share of studies that the table of labels may leave out.
        paths: folders of images, and images (images).
        table: which of these are of one study (images).
        pixels: the pipeline that the user chose, if any (images).
    """

    labels: Literal["chexpert", "negbio"] = "chexpert"
    columns: Path | None = None
    max_unlabelled: float = MAX_UNLABELLED
    paths: tuple[Path, ...] = ()
    table: Path | None = None
    pixels: str | None = None


class UnusableImageError(ValueError):
    """A file is whole, but no image that a pipeline reads; another copy of it would not help.

    Attributes:
        remedy: what to do instead, as the end of a sentence.
    """

    def __init__(self, finding: str, remedy: str = "leave it out") -> None:
        super().__init__(finding)
        self.remedy = remedy


class BadImageError(DataError):
    """One image file cannot be used; the others can.

    Attributes:
        where: the table and row that name the image.
        reason: what was expected, what was found and what to do, without a path, an identifier or the file's
            own text.
    """

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where = where
        self.reason = " ".join(reason.split())
