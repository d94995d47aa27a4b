"""Check that a study file is undamaged: compute every digest once more, on all cores."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cxr_hvd.errors import StudyFileError
from cxr_hvd.study.study_file import StudyFile
from preprocess.parallel.progress import Progress

_STUDIES_PER_TASK = 64


def verify_digests(path: Path, progress: Progress, num_threads: int | None = None) -> tuple[int, int]:
    """Read every image of a study file and compare it with its digest.

    Args:
        path: the study file; opening it checks its tables.
        progress: counts the images that were compared.
        num_threads: as many as this process may use cores, unless given.

    Returns:
        Numbers of studies and of images.

    Raises:
        StudyFileError: the file is refused, or images are damaged; the message names the first study by its
            index and says how many there are.
    """
    damaged: list[tuple[int, StudyFileError]] = []
    with StudyFile(path) as file:
        num_images = int(file.num_images.sum(dtype=np.int64))
        progress.start("checking images", num_images)

        def check(start: int) -> int:
            done = 0
            for index in range(start, min(start + _STUDIES_PER_TASK, len(file))):
                try:
                    file.check_images(index, file.images(index))
                except StudyFileError as error:
                    damaged.append((index, error))
                done += int(file.num_images[index])
            return done

        with ThreadPoolExecutor(num_threads or len(os.sched_getaffinity(0))) as threads:
            for done in threads.map(check, range(0, len(file), _STUDIES_PER_TASK)):
                progress.advance(done)
        num_studies = len(file)
    if damaged:
        first = min(damaged, key=lambda study: study[0])[1]
        raise StudyFileError(f"{first} ({len(damaged):,} of {num_studies:,} studies are damaged)")
    return num_studies, num_images
