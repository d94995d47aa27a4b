"""Ask a trained network about the studies of a file, and write its answers: a row for each study and label.

A label that no study taught the network has no answer. Scores are those of `cxr-hvd evaluate`, bit for bit: the
same studies in the same batches. Owns the form of the answers.
"""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from cxr_hvd.config.sections import Labels
from cxr_hvd.data.loader import Batching, threads_for
from cxr_hvd.data.studies import StudySet
from cxr_hvd.deploy.trained_network import TrainedNetwork
from cxr_hvd.errors import CxrHvdError, StudyFileError, UsageError
from cxr_hvd.files import replaced_file
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.training.validation import predict

ENDINGS = (".csv", ".jsonl")
NEVER_TRAINED = "never trained"
NO_THRESHOLD = "no threshold: no validation studies could tell"


@dataclass(frozen=True)
class Answer:
    """What a network says of one label of one study.

    Attributes:
        file, study_id, split: which study; its id is the file's keyed hash.
        site, step: whose network, after how many steps.
        label: of which label.
        probability: 0 to 1; None where the network was never trained on the label.
        threshold: from which probability on it is present; None where none was chosen.
        decision: `present` or `absent`; None without a probability or a threshold.
        remark: why something is None.
    """

    file: str
    study_id: str
    split: str
    site: str
    step: int
    label: str
    probability: float | None
    threshold: float | None
    decision: str | None
    remark: str


def predict_file(
    network: TrainedNetwork, file: StudyFile, splits: Sequence[Split], on_batch: Callable[[], None] = lambda: None
) -> Iterator[Answer]:
    """Yield an answer for each study and label of a file, split by split, in the file's order.

    Raises:
        StudyFileError: the file's images were made by another pixel pipeline than those that trained the network.
    """
    check_pixels(network, file)
    check_labels(network, file)
    batching = batching_of_network(network)
    policy = Labels().policy(file.header.label_names)
    for split in splits:
        studies, ids = StudySet([file], split, policy), file.study_ids[file.indices(split)]
        scores_NL = predict(network.model, studies, np.arange(len(studies)), batching, on_batch)
        for study_id, scores_L in zip(ids, scores_NL.tolist(), strict=True):
            for label, score in zip(network.label_names, scores_L, strict=True):
                yield _answer(network, file, str(study_id), split, label, score)


def batching_of_network(network: TrainedNetwork) -> Batching:
    """Return how batches are made where a network is judged: as evaluation makes them."""
    threads = threads_for("auto", torch.get_num_threads())
    return Batching(network.record.batch_size, network.image_size, threads)


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


def _answer(
    network: TrainedNetwork, file: StudyFile, study_id: str, split: Split, label: str, score: float
) -> Answer:
    is_trained, threshold = network.is_trained(label), network.thresholds.get(label)
    decision, remark = None, ""
    if not is_trained:
        remark = NEVER_TRAINED
    elif threshold is None:
        remark = NO_THRESHOLD
    else:
        decision = "present" if score >= threshold else "absent"
    return Answer(
        file=file.path.name,
        study_id=study_id,
        split=split.name.lower(),
        site=network.site,
        step=network.step,
        label=label,
        probability=score if is_trained else None,
        threshold=threshold if is_trained else None,
        decision=decision,
        remark=remark,
    )


def check_ending(path: Path) -> None:
    """Raise where the name of an output says no form of answers."""
    if path.suffix not in ENDINGS:
        raise UsageError(f"--out {path}: expected a name that ends in {' or '.join(ENDINGS)}")


def write_answers(path: Path, answers: Iterator[Answer]) -> int:
    """Write answers as a table (`.csv`) or a JSON object a line (`.jsonl`); return of how many studies.

    Raises:
        CxrHvdError: it cannot be written; nothing half-written is left.
    """
    studies = set()
    try:
        with replaced_file(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as output:
            table = csv.DictWriter(output, Answer.__annotations__, lineterminator="\n")
            if path.suffix == ".csv":
                table.writeheader()
            for answer in answers:
                studies.add((answer.file, answer.study_id))
                if path.suffix == ".csv":
                    table.writerow(asdict(answer))
                else:
                    output.write(json.dumps(asdict(answer)) + "\n")
    except OSError as error:
        raise CxrHvdError(f"{path}: cannot write the answers ({error.strerror or error})") from error
    return len(studies)
