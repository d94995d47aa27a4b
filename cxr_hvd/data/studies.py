"""The studies of a rank: which study files it opens, and in which order it trains on their studies.

The order is a pure function of seed, site and step (`Shuffle.batch_at`): nothing needs to be saved to go on after
a stop, and one rank with a batch of 2B sees what two ranks with B see. Sites of different size take equally many
steps; one that has run out starts a fresh shuffled pass (decision 0003).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxr_hvd.comm.sites import Topology
from cxr_hvd.config.schema import Config
from cxr_hvd.errors import ConfigError, StudyFileError
from cxr_hvd.study.labels import LabelPolicy
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile

MERGED = 0xB


class StudySet:
    """The studies of one split, of one file or of several merged into one (experiment B).

    An image is checked against its digest when it is first read, and in no later pass: checking takes a fifth of
    the loader's time, and most of it where a GPU moves the images. What happens to the file after that goes
    unnoticed until the next run, or `cxr-preprocess verify`.

    Attributes:
        label_names: names of the L labels, in order.
        num_images: (N,) images of each study, 1 to 20.
        targets, known: (N, L) as in `loader.Batch`.
    """

    def __init__(self, files: Sequence[StudyFile], split: Split, policy: LabelPolicy) -> None:
        self._files = files
        indices = [file.indices(split) for file in files]
        self._file_N = np.repeat(np.arange(len(files)), [len(rows) for rows in indices])
        self._index_N = np.concatenate(indices)
        self.label_names = files[0].header.label_names
        parts = list(zip(files, indices, strict=True))
        self.num_images: NDArray[np.uint8] = np.concatenate([file.num_images[rows] for file, rows in parts])
        labels_NL = np.concatenate([file.labels[rows] for file, rows in parts])
        self.targets, self.known = policy.targets(labels_NL, self.label_names)
        self._is_checked_N = np.zeros(len(self), dtype=bool)

    def __len__(self) -> int:
        return len(self._index_N)

    def images(self, position: int) -> NDArray[np.uint8]:
        """Read the images (n, H, W) of the study at a position of this set; check them, the first time.

        Raises:
            StudyFileError: the file cannot be read, or an image differs from its digest.
        """
        file, index = self._files[int(self._file_N[position])], int(self._index_N[position])
        images_NHW = file.images(index)
        if not self._is_checked_N[position]:
            file.check_images(index, images_NHW)
            self._is_checked_N[position] = True
        return images_NHW

    def labels(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return targets and known (B, L) of the studies at these positions."""
        return torch.from_numpy(self.targets[positions]), torch.from_numpy(self.known[positions])


@dataclass(frozen=True)
class Shuffle:
    """The endless shuffled sequence of a set's studies, dealt out to the ranks that share it.

    Attributes:
        num_studies: size of the set.
        batch_size: studies of one rank in one step.
        num_ranks, rank: how many ranks share the set, and which of them this is.
        key: seeds of the sequence; equal for ranks that share it.
    """

    num_studies: int
    batch_size: int
    num_ranks: int
    rank: int
    key: tuple[int, ...]

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every study is seen at least once."""
        return -(-self.num_studies // (self.batch_size * self.num_ranks))

    def batch_at(self, step: int) -> list[tuple[int, int]]:
        """Return (position, pass) of each study in this rank's batch of a step."""
        first = (step * self.num_ranks + self.rank) * self.batch_size
        places = [divmod(place, self.num_studies) for place in range(first, first + self.batch_size)]
        orders = {
            number: _order(self.key, number, self.num_studies) for number in {number for number, _ in places}
        }
        return [(int(orders[number][place]), number) for number, place in places]


@lru_cache(maxsize=4)
def _order(key: tuple[int, ...], number: int, num_studies: int) -> NDArray[np.int64]:
    """Return the order of a pass; kept, as drawing it for every step would cost milliseconds at a large site."""
    order_N: NDArray[np.int64] = np.random.default_rng([*key, number]).permutation(num_studies)
    order_N.setflags(write=False)
    return order_N


@dataclass(frozen=True)
class TrainingData:
    """What a rank trains on.

    Attributes:
        files: the study files that it opened: its own site's, or all of them in experiment B.
        studies: their training studies.
        shuffle: this rank's share of the endless shuffled sequence.
        validation_studies: its own site's VALIDATE studies; may be none.
        own_file: the one of its own site.
    """

    files: list[StudyFile]
    studies: StudySet
    shuffle: Shuffle
    validation_studies: StudySet
    own_file: StudyFile


def open_training_data(
    config: Config, topology: Topology, staged: Callable[[Path], Path] = lambda path: path
) -> TrainingData:
    """Open this rank's study file, or all of them where experiment B merges the sites.

    Args:
        config: names the files.
        topology: says whose rank this is.
        staged: gives the path to open for a file.
    """
    names = list(config.sites) if config.is_merged else [topology.site]
    files = [StudyFile(staged(config.sites[name].data)) for name in names]
    for file in files:
        if not len(file.indices(Split.TRAIN)):
            raise StudyFileError(f"{file.path}: expected training studies, found none; draw some with --train N")
        if file.header.label_names != files[0].header.label_names:
            raise StudyFileError(f"{file.path}: its label order differs from {files[0].path}'s; write both alike")
        if file.header.image_size < config.model.image_size:
            raise ConfigError(
                f"model.image_size: {config.model.image_size} px is more than the {file.header.image_size} px "
                f"of {file.path}"
            )
    check_pixel_pipelines({file.path: file.header.pixels for file in files}, config.pixel_pipelines)
    policy = config.labels.policy(files[0].header.label_names)
    studies = StudySet(files, Split.TRAIN, policy)
    own_file = files[topology.site_index if config.is_merged else 0]
    sharers = range(topology.num_ranks) if config.is_merged else topology.ranks_of_site
    shuffle = Shuffle(
        num_studies=len(studies),
        batch_size=config.training.batch_size,
        num_ranks=len(sharers),
        rank=list(sharers).index(topology.rank),
        key=(config.seed, MERGED if config.is_merged else _site_key(topology.site)),
    )
    return TrainingData(files, studies, shuffle, StudySet([own_file], Split.VALIDATE, policy), own_file)


def _site_key(site: str) -> int:
    """Seed by name, so that a site draws the same order whoever trains beside it."""
    return int.from_bytes(site.encode(), "big")


def check_pixel_pipelines(pipeline_of_file: Mapping[Path, str], allowed: Literal["same", "any"]) -> None:
    """Check that study files that are used together have one pixel pipeline.

    Args:
        pipeline_of_file: the pixel pipeline of each study file.
        allowed: `pixel_pipelines` of the config; `any` allows several.

    Raises:
        StudyFileError: names two such files and their pipelines.
    """
    (first, expected), *others = pipeline_of_file.items()
    for path, pipeline in others:
        if allowed == "same" and pipeline != expected:
            raise StudyFileError(
                f"{path}: its pixel pipeline is {pipeline}, {first} has {expected}; write both alike, or set "
                "pixel_pipelines: any"
            )
