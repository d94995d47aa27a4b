"""Scores: what the networks of a run say of every site's studies, in one file, from which all judgement follows.

`RUN/scores.safetensors` holds probabilities, targets and which patient a study is of, as a running number: no id,
no image. Scores of single studies are as private as the studies: the file has mode 0600, and nothing here travels.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import save_file

from cxr_hvd import __version__
from cxr_hvd.atomic import replaced_file
from cxr_hvd.config import Config
from cxr_hvd.errors import CheckpointError
from cxr_hvd.training.run_folder import disk_errors

SCHEMA = 2
READABLE = (1, 2)  # 1 does not know the pixel pipelines
NAME = "scores.safetensors"
COMMON = "common"
"""The network of a run in which all sites have the same."""

AVERAGED = "averaged"
"""The network whose private tensors are the mean of the sites': for a site that took no part."""


@dataclass(frozen=True)
class Truth:
    """What is known of the studies of one site and split.

    Attributes:
        targets_NL: float32 of 0 and 1.
        known_NL: where False, the target is 0 and counts nowhere.
        patients_N: a running number for each patient; studies of one patient have the same.
    """

    targets_NL: NDArray[np.float32]
    known_NL: NDArray[np.bool_]
    patients_N: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.patients_N)


@dataclass(frozen=True)
class Origin:
    """Where scores come from.

    Attributes:
        experiment: A, B, C or D.
        seed, step: the run's seed, and after how many steps its networks were judged.
        checkpoint: `latest` or `best`.
        label_names: names of the labels, in order.
        sites: names of the sites, in the config's order.
        outside: names of institutions that took no part, and have studies here to judge on.
        networks: `common` alone where nothing is private; else one by the name of each site, and `averaged`.
        config_sha256: of what all sites had alike in the run's config.
        data_sha256: digest of each institution's study file.
        pixels: name of its pixel pipeline; empty in scores of schema 1.
    """

    experiment: str
    seed: int
    step: int
    checkpoint: str
    label_names: tuple[str, ...]
    sites: tuple[str, ...]
    outside: tuple[str, ...]
    networks: tuple[str, ...]
    config_sha256: str
    data_sha256: Mapping[str, str]
    pixels: Mapping[str, str] = field(default_factory=dict)

    def network_of(self, site: str) -> str:
        """Return which network a site that took part uses."""
        return site if site in self.networks else COMMON


@dataclass(frozen=True)
class Scores:
    """All scores of a run.

    Attributes:
        origin: where they come from.
        truth: by institution and split (`test`, `validate`); a split without studies is there, too, and empty.
        probabilities: (N, L) float32, 0 to 1, by network, institution and split.
    """

    origin: Origin
    truth: Mapping[tuple[str, str], Truth]
    probabilities: Mapping[tuple[str, str, str], NDArray[np.float32]]


def config_digest(config: Config) -> str:
    """Return the SHA-256, in hexadecimal, of what all sites have alike in a config."""
    return hashlib.sha256(json.dumps(config.shared_part(), sort_keys=True).encode()).hexdigest()


def write_scores(path: Path, scores: Scores) -> None:
    """Write scores as the whole file `path`."""
    tensors: dict[str, NDArray[Any]] = {}
    for (site, split), truth in scores.truth.items():
        for name, values in vars(truth).items():
            tensors[f"{name}/{site}/{split}"] = np.ascontiguousarray(values)
    for place, probabilities_NL in scores.probabilities.items():
        tensors["/".join(["probabilities", *place])] = np.ascontiguousarray(probabilities_NL)
    said = {"schema": SCHEMA, "tool": f"cxr-hvd {__version__}", **vars(scores.origin)}
    with disk_errors(path), replaced_file(path) as beside:
        beside.touch(mode=0o600)
        save_file(tensors, beside, metadata={"origin": json.dumps(said)})


def read_origin(path: Path) -> Origin:
    """Read where the scores in a file come from.

    Raises:
        CheckpointError: it is missing, damaged or of another schema.
    """
    return _read(path, with_tensors=False).origin


def read_scores(path: Path) -> Scores:
    """Read all scores of a run.

    Raises:
        CheckpointError: the file is missing, damaged or of another schema.
    """
    return _read(path, with_tensors=True)


def _read(path: Path, with_tensors: bool) -> Scores:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            said = json.loads(file.metadata()["origin"])
            if said.pop("schema") not in READABLE:
                raise ValueError("another schema")
            said.pop("tool")
            lists = {name: tuple(said[name]) for name in ("label_names", "sites", "outside", "networks")}
            origin = Origin(**{**said, **lists})
            places = [name.split("/") for name in list(file.keys())] if with_tensors else []
            truth = {
                (site, split): Truth(
                    *(file.get_tensor(f"{name}/{site}/{split}") for name in Truth.__dataclass_fields__)
                )
                for kind, site, split in (place for place in places if len(place) == 3)
                if kind == "patients_N"
            }
            probabilities = {
                (network, site, split): file.get_tensor(f"probabilities/{network}/{site}/{split}")
                for _, network, site, split in (place for place in places if len(place) == 4)
            }
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{path}: expected scores of schema {SCHEMA}, found none to read ({type(error).__name__}); make them "
            "with cxr-hvd evaluate RUN --across-sites"
        ) from error
    scores = Scores(origin, truth, probabilities)
    _check_shapes(path, scores)
    return scores


def _check_shapes(path: Path, scores: Scores) -> None:
    num_labels = len(scores.origin.label_names)
    for (network, site, split), found in scores.probabilities.items():
        truth = scores.truth.get((site, split))
        wanted = None if truth is None else (len(truth), num_labels)
        if truth is None or not found.shape == truth.targets_NL.shape == truth.known_NL.shape == wanted:
            raise CheckpointError(
                f"{path}: scores of {network} on {site}'s {split} studies have shape {found.shape}, expected "
                f"{wanted}; make them again with cxr-hvd evaluate RUN --across-sites"
            )
