"""The data of a rank: which study files it opens, and its share of their studies."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cxr_hvd.comm.sites import Topology
from cxr_hvd.config.schema import Config
from cxr_hvd.data.loader import Shuffle, StudySet
from cxr_hvd.errors import ConfigError, StudyFileError
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile

MERGED = 0xB


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
    check_pixel_pipelines({file.path: file.header.pixels for file in files}, config)
    policy = config.labels.policy(files[0].header.label_names)
    studies = StudySet(files, Split.TRAIN, policy)
    own = files[topology.site_index if config.is_merged else 0]
    sharers = range(topology.num_ranks) if config.is_merged else topology.ranks_of_site
    shuffle = Shuffle(
        num_studies=len(studies),
        batch_size=config.training.batch_size,
        num_ranks=len(sharers),
        rank=list(sharers).index(topology.rank),
        key=(config.seed, MERGED if config.is_merged else _site_key(topology.site)),
    )
    return TrainingData(files, studies, shuffle, StudySet([own], Split.VALIDATE, policy), own)


def _site_key(site: str) -> int:
    """Seed by name, so that a site draws the same order whoever trains beside it."""
    return int.from_bytes(site.encode(), "big")


def check_pixel_pipelines(pipeline_of_file: Mapping[Path, str], config: Config) -> None:
    """Raise where study files of different pixel pipelines are used together and the config does not allow it.

    Raises:
        StudyFileError: names two such files and their pipelines.
    """
    (first, expected), *others = pipeline_of_file.items()
    for path, pipeline in others:
        if config.pixel_pipelines == "same" and pipeline != expected:
            raise StudyFileError(
                f"{path}: its pixel pipeline is {pipeline}, {first} has {expected}; write both alike, or set "
                "pixel_pipelines: any"
            )
