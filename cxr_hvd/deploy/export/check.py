"""Check exported programs: each is run by its own runtime, beside PyTorch, on the same studies.

Owns on which studies that is done, and how far a program may be off.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from cxr_hvd.data.augment import fill_plain
from cxr_hvd.deploy.program_check import MAX_DIFFERENCE, ProgramCheck
from cxr_hvd.deploy.trained_network import TrainedNetwork
from cxr_hvd.errors import CxrHvdError
from cxr_hvd.models.forward import forward
from cxr_hvd.study.layout import MAX_IMAGES, Split
from cxr_hvd.study.study_file import StudyFile

NUM_STUDIES = 64
STUDIES_AT_ONCE = 4
SYNTHETIC_IMAGES = 11
"""Studies of 1 to 11 images are drawn: CheXpert and MIMIC-CXR have no more in nearly all of theirs."""

Program = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""From images (N, 20, H, W) to probabilities (N, L)."""


@dataclass(frozen=True)
class CheckStudies:
    """Studies to check programs on.

    Attributes:
        name: which ones, in words.
        images: of each study, (n, H, W) uint8 of any size.
    """

    name: str
    images: Sequence[NDArray[np.uint8]]

    def batches(self, image_size: int) -> Iterator[tuple[NDArray[np.float32], int]]:
        """Yield images (N, 20, H, W), 0 to 1, and how many channels are in use."""
        for start in range(0, len(self.images), STUDIES_AT_ONCE):
            studies = self.images[start : start + STUDIES_AT_ONCE]
            images_NCHW = np.zeros((len(studies), MAX_IMAGES, image_size, image_size), np.float32)
            for row, images_MHW in zip(images_NCHW, studies, strict=True):
                fill_plain(images_MHW, row)
            yield images_NCHW, max(len(images_MHW) for images_MHW in studies)


def studies_of_file(path: Path) -> CheckStudies:
    """Read up to 64 studies of a study file, spread over it: of TEST, else of VALIDATE, else of TRAIN.

    Raises:
        StudyFileError: it is no study file, or an image of it is damaged.
    """
    with StudyFile(path) as file:
        split = next((split for split in (Split.TEST, Split.VALIDATE) if len(file.indices(split))), Split.TRAIN)
        indices = file.indices(split)
        chosen = indices[np.linspace(0, len(indices) - 1, min(NUM_STUDIES, len(indices))).astype(int)]
        images = [file.images(int(index)) for index in np.sort(chosen)]
    images.sort(key=len)
    return CheckStudies(f"{split.name} studies of {file.header.site}", images)


def synthetic_studies(image_size: int) -> CheckStudies:
    """Draw 64 studies of 1 to 11 images, each a smooth field with noise; the same ones each time."""
    rng = np.random.default_rng(0)

    def draw() -> NDArray[np.uint8]:
        field_HW = cv2.resize(rng.random((8, 8)), (image_size, image_size), interpolation=cv2.INTER_CUBIC)
        noisy_HW = 255 * np.clip(field_HW + rng.normal(0, 0.05, field_HW.shape), 0, 1)
        return np.asarray(noisy_HW, np.uint8)

    counts = sorted(1 + index % SYNTHETIC_IMAGES for index in range(NUM_STUDIES))
    return CheckStudies("synthetic studies", [np.stack([draw() for _ in range(count)]) for count in counts])


def largest_difference(network: TrainedNetwork, program: Program, studies: CheckStudies) -> float:
    """Return the largest difference between a program's probabilities and those of `cxr-hvd predict`.

    The network gets the channels in use, the program all 20. A value that should be a number and is none, or the
    other way round, counts as infinitely far.
    """
    is_trained_L = np.array([network.is_trained(label) for label in network.label_names])
    largest = 0.0
    for images_NCHW, num_channels in studies.batches(network.image_size):
        with torch.inference_mode():
            logits_NL = forward(network.model, torch.from_numpy(images_NCHW[:, :num_channels]), "fp32")
            expected_NL = torch.sigmoid(logits_NL).numpy()
        answers_NL = np.asarray(program(images_NCHW))
        if answers_NL.shape != expected_NL.shape or not np.isnan(answers_NL[:, ~is_trained_L]).all():
            return float("inf")
        differences = np.abs(answers_NL - expected_NL)[:, is_trained_L]
        largest = max(largest, float(np.nan_to_num(differences, nan=np.inf).max(initial=0)))
    return largest


def check_program(
    network: TrainedNetwork, path: Path, program: Program, runtime: tuple[str, str], studies: CheckStudies
) -> ProgramCheck:
    """Run a program beside PyTorch.

    Args:
        runtime: name and version of what runs it.

    Raises:
        CxrHvdError: a probability differs by more than 0.0001.
    """
    difference = largest_difference(network, program, studies)
    if difference > MAX_DIFFERENCE:
        raise CxrHvdError(
            f"{path.name}: expected probabilities within {MAX_DIFFERENCE} of PyTorch's on {len(studies.images)} "
            f"{studies.name}, found one that is {difference:.2g} off under {' '.join(runtime)}; nothing was "
            "exported: try --weights-only, and report the network"
        )
    return ProgramCheck(
        file=path.name,
        runtime=runtime[0],
        version=runtime[1],
        studies=studies.name,
        num_studies=len(studies.images),
        largest_difference=difference,
    )
