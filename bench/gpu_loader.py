"""The loader beside a GPU: study files to read from, and how many studies a second it makes."""

import itertools
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from bench.gpu_setup import Bench
from cxr_hvd.config.sections import Augmentation, Labels
from cxr_hvd.data.loader import train_batches
from cxr_hvd.data.studies import Shuffle, StudySet
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile
from lab.study_files import write_study_file


def write_studies(bench: Bench, path: Path) -> tuple[Path, int, int]:
    """Write a study file; return it, its studies and the studies of a batch."""
    if not bench.has_gpu:
        return write_study_file(path, 24, splits=(Split.TRAIN,)), 24, 4
    from bench.loader import NUM_STUDIES, write_file

    return write_file(path), NUM_STUDIES, 64


def policy() -> Any:
    """Return the default policy for labels."""
    return Labels().policy(LABELS)


def time_loader(bench: Bench, file: StudyFile, num_studies: int, threads: int) -> float:
    """Return the studies that threads make in a second, after a first pass, which also checks digests."""
    size, num_batches = (64, 40) if bench.has_gpu else (4, 4)
    studies = StudySet([file], Split.TRAIN, policy())
    shuffle = Shuffle(num_studies, size, 1, 0, (0, 1))
    batches = train_batches(
        studies, shuffle, itertools.count(), bench.side, Augmentation(), threads, 2, bench.device
    )
    with closing(batches):
        for _ in range(shuffle.steps_per_epoch + 2):
            next(batches)
        bench.wait()
        began = time.perf_counter()
        for _ in range(num_batches):
            next(batches)
        bench.wait()
        return round(num_batches * size / (time.perf_counter() - began), 1)
