"""Which studies of a file are explained."""

from collections.abc import Sequence

import numpy as np

from cxr_hvd.errors import UsageError
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile


def choose_studies(file: StudyFile, study_ids: Sequence[str], num_first: int) -> list[int]:
    """Return the places of studies in a file: those named, or the first of its TEST split, else of all.

    Raises:
        UsageError: the file has no study of such a name.
    """
    if not study_ids:
        tested = file.indices(Split.TEST)
        return [int(index) for index in (tested if len(tested) else np.arange(len(file.study_ids)))[:num_first]]
    index_of = {str(study_id): index for index, study_id in enumerate(file.study_ids)}
    for study_id in study_ids:
        if study_id not in index_of:
            raise UsageError(
                f"--study: {file.path} has no study of the name given; names are those that cxr-hvd predict writes"
            )
    return sorted(index_of[study_id] for study_id in study_ids)
