"""Which studies are explained, and what they are called."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cxr_hvd.deploy.predict import OpenedStudies
from cxr_hvd.errors import UsageError
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile


@dataclass(frozen=True)
class ChosenStudy:
    """A study that is to be explained.

    Attributes:
        file: where its images are.
        index: its place there.
        given: the PATH that was given.
        name: as `cxr-hvd predict` names it: its id in a study file, or where its images lie.
    """

    file: StudyFile
    index: int
    given: str
    name: str


def choose_studies(studies: OpenedStudies, names: Sequence[str], num_first: int) -> list[ChosenStudy]:
    """Return studies by name, or the first of them: of study files those of TEST, else of any split.

    Raises:
        UsageError: there is no study of such a name.
    """
    every = list(_studies_of(studies))
    if not names:
        tested = [study for study in every if study.file.splits[study.index] == Split.TEST]
        return (tested or every)[:num_first]
    chosen = [study for study in every if study.name in names]
    if len({study.name for study in chosen}) < len(set(names)):
        raise UsageError(
            "--study: expected the name of a study of these PATHS, found another; names are those that cxr-hvd "
            "predict writes"
        )
    return chosen


def _studies_of(studies: OpenedStudies) -> Iterator[ChosenStudy]:
    for file in studies.files:
        for index in np.argsort(file.splits, kind="stable").tolist():
            yield ChosenStudy(file, index, str(file.path), str(file.study_ids[index]))
    if studies.images and studies.images.file:
        place_of = {placed.study_id: placed for placed in studies.images.images}
        for index, study_id in enumerate(studies.images.file.study_ids):
            placed = place_of[str(study_id)]
            yield ChosenStudy(studies.images.file, index, placed.given, placed.study)
