"""Ask a trained network about study files, folders of images and single images.

    network = cxr_hvd.load_model("runs/D/chexpert")
    for answer in cxr_hvd.predict(network, "scans/"):
        print(answer.study, answer.label, answer.probability)

Scores are those of `cxr-hvd evaluate`, bit for bit: the same studies in the same batches.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cxr_hvd.config.sections import Labels
from cxr_hvd.data.loader import Batching, threads_for
from cxr_hvd.data.studies import StudySet
from cxr_hvd.deploy.answers import Answer, AskedStudy, answer_study
from cxr_hvd.deploy.images import ImageStudies, opened_images
from cxr_hvd.deploy.progress import AnswerProgress
from cxr_hvd.deploy.trained_network import TrainedNetwork
from cxr_hvd.errors import StudyFileError, UsageError
from cxr_hvd.files import open_plain
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.training.validation import predict as predict_studies

HDF5 = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class OpenedStudies:
    """What a network is asked about.

    Attributes:
        files: study files, in the order in which they were given.
        images: the studies of all folders and images; None where none was given.
        pixels: the pipeline of the images, where it is another than the network's; else blank.
    """

    files: tuple[StudyFile, ...]
    images: ImageStudies | None
    pixels: str


def predict(
    network: TrainedNetwork,
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    table: str | os.PathLike[str] | None = None,
    pixels: str | None = None,
) -> Iterator[Answer]:
    """Yield a network's answer to each label of each study: of study files first, then of images.

    Args:
        network: from `load_model`.
        paths: study files, folders of JPEG, PNG or DICOM, and single images; one or several.
        table: CSV with columns `path`, `study`: which images are a study.
        pixels: make the images by this pixel pipeline though the network was trained on another; answers say so.

    Raises:
        CxrHvdError: a path, a table or the pixels are not as expected. An image that cannot be used is none of it:
            its study is answered without it, and says so.
    """
    listed = [paths] if isinstance(paths, str | os.PathLike) else paths
    table_path = None if table is None else Path(table)
    with opened_studies(network, [Path(path) for path in listed], table_path, pixels) as studies:
        yield from answers_of(network, studies)


@contextmanager
def opened_studies(
    network: TrainedNetwork,
    paths: Sequence[Path],
    table: Path | None = None,
    pixels: str | None = None,
    folder: Path | None = None,
    progress: AnswerProgress = AnswerProgress(),  # noqa: B008, it shows nothing
) -> Iterator[OpenedStudies]:
    """Open what a network is asked about, and check that it can be asked; arguments are those of `predict`.

    Args:
        folder: where images become a study file; None: the system's folder for temporary files.
    """
    named = [path for path in paths if is_study_file(path)]
    images = [path for path in paths if path not in named]
    if len({os.path.realpath(path) for path in named}) < len(named):
        raise UsageError("PATHS: expected each study file once, found one twice")
    if table is not None and not images:
        raise UsageError(f"--table {table}: expected a folder of images beside it, found study files alone")
    made_by = pixels or network.record.pixels
    with ExitStack() as opened:
        files = tuple(opened.enter_context(StudyFile(path)) for path in named)
        for file in files:
            check_pixels(network, file)
            check_labels(network, file)
        studies = None
        if images:
            studies = opened.enter_context(opened_images(images, made_by, table, folder, progress.read))
        yield OpenedStudies(files, studies, made_by if made_by != network.record.pixels else "")


def answers_of(
    network: TrainedNetwork,
    studies: OpenedStudies,
    splits: Sequence[Split] = tuple(Split),
    progress: AnswerProgress = AnswerProgress(),  # noqa: B008, it shows nothing
) -> Iterator[Answer]:
    """Yield the answers, in the order of the files, and within images in the order of paths.

    Args:
        splits: which studies of study files; of images all are answered.
    """
    asked = [(file, split) for file in studies.files for split in splits]
    from_images = studies.images.file if studies.images else None
    counts = [len(file.indices(split)) for file, split in asked] + [len(from_images) if from_images else 0]
    batch_size = network.record.batch_size
    progress.begin_answers(sum(-(-count // batch_size) for count in counts))
    for file, split in asked:
        ids, scores_NL = score_split(network, file, split, progress)
        name = os.fsencode(file.path).decode("utf-8", "backslashreplace")  # a name may be no text
        for study_id, scores_L in zip(ids, scores_NL, strict=True):
            study = AskedStudy(name, str(study_id), split.name.lower())
            yield from answer_study(network, study, scores_L.tolist())
    if studies.images is not None:
        yield from _answers_of_images(network, studies.images, studies.pixels, progress)


def score_split(
    network: TrainedNetwork,
    file: StudyFile,
    split: Split,
    progress: AnswerProgress = AnswerProgress(),  # noqa: B008
) -> tuple[Sequence[str], NDArray[np.float32]]:
    """Return the ids of a split's studies and the network's probabilities (N, L), 0 to 1."""
    studies = StudySet([file], split, Labels().policy(file.header.label_names))
    batching = batching_of_network(network)
    scores_NL = predict_studies(network.model, studies, np.arange(len(studies)), batching, progress.advance)
    return list(file.study_ids[file.indices(split)]), scores_NL


def batching_of_network(network: TrainedNetwork) -> Batching:
    """Return how batches are made where a network is judged: as evaluation makes them."""
    threads = threads_for("auto", torch.get_num_threads())
    return Batching(network.record.batch_size, network.image_size, threads)


def is_study_file(path: Path) -> bool:
    """Return whether a path names a study file rather than images: by its ending, or by how it begins."""
    if path.suffix in (".h5", ".hdf5"):
        return True
    try:
        with open_plain(path, follows_links=True) as file:
            return file.read(len(HDF5)) == HDF5
    except OSError:
        return False


def check_labels(network: TrainedNetwork, file: StudyFile) -> None:
    """Raise where a file's labels are not the network's, in its order."""
    if file.header.label_names != network.label_names:
        raise StudyFileError(
            f"{file.path}: expected the labels of {network.site}'s network in its order, found others: write the "
            "file again with cxr-preprocess"
        )


def check_pixels(network: TrainedNetwork, file: StudyFile) -> None:
    """Raise where a file's images look different from those that the network was trained on."""
    if network.record.pixel_pipelines == "same" and file.header.pixels != network.record.pixels:
        raise StudyFileError(
            f"{file.path}: expected images of pixel pipeline {network.record.pixels}, which {network.site} "
            f"trained on, found {file.header.pixels}: write the file again with cxr-preprocess --pixels"
        )


def _answers_of_images(
    network: TrainedNetwork, images: ImageStudies, pixels: str, progress: AnswerProgress
) -> Iterator[Answer]:
    scores: dict[str, NDArray[np.float32]] = {}
    if images.file is not None:
        scores = dict(zip(*score_split(network, images.file, Split.TEST, progress), strict=True))
    other = f"images of pixel pipeline {pixels}, trained on {network.record.pixels}" if pixels else ""
    for placed in images.studies():
        bad = [image for image in placed if image.reason]
        study = AskedStudy(placed[0].given, placed[0].study, remark=other)
        scores_L = scores.get(placed[0].study_id)
        if scores_L is None:
            count = f"none of its {len(bad)} images" if len(bad) > 1 else "no image"
            remark = f"{count} can be used: {bad[0].reason}"
            yield from answer_study(network, replace(study, remark=remark), None)
            continue
        if bad:
            aside = f"{len(bad)} of {len(placed)} images set aside: {bad[0].reason}"
            study = replace(study, remark="; ".join(part for part in (aside, other) if part))
        yield from answer_study(network, study, scores_L.tolist())
