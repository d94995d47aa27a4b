"""The answers of a trained network, and the table that they are written to: a row for each study and label.

A label that no study taught the network has no answer. Owns the form of the answers.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cxr_hvd.deploy.combine import AVERAGED, ENSEMBLE
from cxr_hvd.deploy.trained_network import TrainedNetwork
from cxr_hvd.errors import CxrHvdError, UsageError
from cxr_hvd.files import replaced_file

ENDINGS = (".csv", ".jsonl")
NEVER_TRAINED = "never trained"
NOT_EVERYWHERE = "not trained at every site"
NO_THRESHOLD = "no threshold: no validation studies could tell"
NO_COMMON_THRESHOLD = "no threshold: none is chosen for several sites' networks"


@dataclass(frozen=True)
class Answer:
    """What a network says of one label of one study.

    Attributes:
        file: the PATH that was given.
        study: which study of it: of a study file its id there, of images where they lie, from `file` on.
        split: of a study in a study file; blank for images.
        site, step: whose network, after how many steps; `ensemble` and `averaged` are of several sites.
        label: of which label.
        probability: 0 to 1; None where the network was never trained on the label, or no image can be used.
        threshold: from which probability on it is present; None where none was chosen.
        decision: `present` or `absent`; None without a probability or a threshold.
        remark: why something is None, and what else to know.
    """

    file: str
    study: str
    split: str
    site: str
    step: int
    label: str
    probability: float | None
    threshold: float | None
    decision: str | None
    remark: str


@dataclass(frozen=True)
class AskedStudy:
    """A study that a network is asked about.

    Attributes:
        file, study, split: as in `Answer`.
        remark: what to know about its images.
    """

    file: str
    study: str
    split: str = ""
    remark: str = ""


def answer_study(network: TrainedNetwork, study: AskedStudy, scores_L: Sequence[float] | None) -> Iterator[Answer]:
    """Yield the answers for one study: to each of the network's labels.

    Args:
        scores_L: the probabilities, 0 to 1, in the order of the labels; None where there was nothing to look at.
    """
    untrained = NOT_EVERYWHERE if network.site == AVERAGED else NEVER_TRAINED
    no_threshold = NO_COMMON_THRESHOLD if network.site in (AVERAGED, ENSEMBLE) else NO_THRESHOLD
    for position, label in enumerate(network.label_names):
        probability, threshold = None, network.thresholds.get(label)
        decision, remark = None, ""
        if scores_L is None:
            threshold = None
        elif not network.is_trained(label):
            threshold, remark = None, untrained
        else:
            probability = scores_L[position]
            if threshold is None:
                remark = no_threshold
            else:
                decision = "present" if probability >= threshold else "absent"
        yield Answer(
            file=study.file,
            study=study.study,
            split=study.split,
            site=network.site,
            step=network.step,
            label=label,
            probability=probability,
            threshold=threshold,
            decision=decision,
            remark="; ".join(part for part in (remark, study.remark) if part),
        )


def check_ending(path: Path) -> None:
    """Raise where the name of an output says no form of answers."""
    if path.suffix not in ENDINGS:
        raise UsageError(f"--out {path}: expected a name that ends in {' or '.join(ENDINGS)}")


def write_answers(path: Path, answers: Iterator[Answer]) -> int:
    """Write answers as a table (`.csv`) or a JSON object a line (`.jsonl`); return how many.

    Raises:
        CxrHvdError: it cannot be written; nothing half-written is left.
    """
    num_answers = 0
    try:
        with replaced_file(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as output:
            table = csv.DictWriter(output, Answer.__annotations__, lineterminator="\n")
            if path.suffix == ".csv":
                table.writeheader()
            for answer in answers:
                num_answers += 1
                if path.suffix == ".csv":
                    table.writerow(asdict(answer))
                else:
                    output.write(json.dumps(asdict(answer)) + "\n")
    except OSError as error:
        raise CxrHvdError(f"{path}: cannot write the answers ({error.strerror or error})") from error
    return num_answers
