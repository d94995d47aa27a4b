"""Ask networks about a hospital's VALIDATE and TEST studies, in one order and with one set of labels for all.

Owns what an answer is worth that a network does not have: a label that it was never trained on scores 0.5 in every
study, which puts no two studies in an order, so that its AUROC is 0.5.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cxr_hvd.comm.device import choose_device
from cxr_hvd.comm.local import LocalComm
from cxr_hvd.config.schema import Config
from cxr_hvd.data.loader import batching_of_run
from cxr_hvd.data.studies import StudySet
from cxr_hvd.deploy.combine import AVERAGED, ENSEMBLE
from cxr_hvd.deploy.trained_network import TrainedNetwork
from cxr_hvd.errors import StudyFileError
from cxr_hvd.stats.sample import Sample
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.training.validation import predict

NO_ANSWER = 0.5
JUDGED = (Split.VALIDATE, Split.TEST)


@dataclass(frozen=True)
class ScoredNetwork:
    """A network's answers at one hospital.

    Attributes:
        name, kind: as in `JudgedNetwork`.
        step: steps that it was trained for.
        trained_labels: that it was trained on.
        scores: for TEST, and for one of the others for VALIDATE, the probabilities (N, L).
    """

    name: str
    kind: str
    step: int
    trained_labels: frozenset[str]
    scores: dict[Split, NDArray[np.float32]]


@dataclass(frozen=True)
class JudgedStudies:
    """The studies that networks are judged on, in the order of the scores."""

    sets: dict[Split, StudySet]
    samples: dict[Split, Sample]

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.sets[Split.TEST].label_names


def judged_studies(file: StudyFile, config: Config) -> JudgedStudies:
    """Open the VALIDATE and TEST studies of a file.

    Raises:
        StudyFileError: there are none of a split.
    """
    policy, sets, samples = config.labels.policy(file.header.label_names), {}, {}
    for split in JUDGED:
        sets[split] = studies = StudySet([file], split, policy)
        if not len(studies):
            raise StudyFileError(
                f"{file.path}: expected {split.name} studies, found none: the new hospital's networks are chosen "
                f"on VALIDATE and reported on TEST studies; draw some with --{split.name.lower()} N"
            )
        patients_N = np.unique(file.patient_ids[file.indices(split)], return_inverse=True)[1]
        samples[split] = Sample(studies.targets, studies.known, patients_N)
    return JudgedStudies(sets, samples)


def score_network(
    network: TrainedNetwork,
    name: str,
    kind: str,
    studies: JudgedStudies,
    config: Config,
    on_batch: Callable[[], None] = lambda: None,
    trained_labels: Sequence[str] | None = None,
) -> ScoredNetwork:
    """Return a network's answers.

    Args:
        trained_labels: labels whose outputs count; None: those of its record.
    """
    labels = frozenset(network.record.trained_labels if trained_labels is None else trained_labels)
    network.model.to(choose_device(config.training.device, LocalComm()))
    batching = batching_of_run(config, torch.get_num_threads())
    has_answer_L = np.array([label in labels for label in studies.label_names])
    scores = {}
    for split in JUDGED if kind == "other" else (Split.TEST,):  # the best of the others is chosen on VALIDATE
        judged = studies.sets[split]
        answers_NL = predict(network.model, judged, np.arange(len(judged)), batching, on_batch)
        scores[split] = np.where(has_answer_L, answers_NL, np.float32(NO_ANSWER))
    return ScoredNetwork(name, kind, network.step, labels, scores)


def score_ensemble(members: Sequence[ScoredNetwork], label_names: Sequence[str]) -> ScoredNetwork:
    """Return the mean answers of several networks, label by label over those that were trained on it."""
    is_trained_ML = np.array([[label in member.trained_labels for label in label_names] for member in members])
    counts_ML = is_trained_ML | ~is_trained_ML.any(axis=0)
    shares_ML = (counts_ML / counts_ML.sum(axis=0)).astype(np.float32)
    scores_MNL = np.stack([member.scores[Split.TEST] for member in members])
    scores = {Split.TEST: np.einsum("mnl,ml->nl", scores_MNL, shares_ML)}
    labels = frozenset().union(*(member.trained_labels for member in members))
    return ScoredNetwork(ENSEMBLE, ENSEMBLE, members[0].step, labels, scores)


def score_others(
    networks: Mapping[str, TrainedNetwork],
    averaged: TrainedNetwork,
    studies: JudgedStudies,
    config: Config,
    on_batch: Callable[[], None] = lambda: None,
) -> list[ScoredNetwork]:
    """Return the answers of each of the others' networks, and of all of them together where there are several.

    The averaged network counts for every label that one of its heads was trained on: what a mean of a trained and
    a never trained output is worth is what is to be measured here.
    """
    members = [
        score_network(network, name, "other", studies, config, on_batch) for name, network in networks.items()
    ]
    if len(members) < 2:
        return members
    labels = frozenset().union(*(member.trained_labels for member in members))
    mean = score_network(averaged, AVERAGED, AVERAGED, studies, config, on_batch, sorted(labels))
    return [*members, score_ensemble(members, studies.label_names), mean]
