"""Scores: what the networks of a run say of every site's studies, in one file, from which all judgement follows.

`RUN/scores.safetensors` holds probabilities, targets, groups by view, sex and age, and which patient a study is
of, as a running number: no id, no age, no image. Scores of single studies are as private as the studies: the file
has mode 0600, and nothing here travels.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import safetensors
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator
from safetensors.numpy import save_file

from cxr_hvd import __version__
from cxr_hvd.config.sections import SiteName
from cxr_hvd.errors import CheckpointError
from cxr_hvd.files import open_plain, replaced_file
from cxr_hvd.record import Count, Name, Record, first_problem
from cxr_hvd.study.groups import StudyGroups
from cxr_hvd.terminal import shown
from cxr_hvd.training.run_folder import disk_errors

SCHEMA = 3
READABLE = (1, 2, 3)  # 1 does not know the pixel pipelines, and neither 1 nor 2 the groups of studies
NAME = "scores.safetensors"
SPLITS = ("test", "validate")
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


class Origin(Record):
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

    experiment: Name
    seed: int
    step: Count
    checkpoint: Name
    label_names: Annotated[tuple[Name, ...], Field(min_length=1)]
    sites: Annotated[tuple[SiteName, ...], Field(min_length=1)]
    outside: tuple[SiteName, ...]
    networks: Annotated[tuple[SiteName, ...], Field(min_length=1)]
    config_sha256: Name
    data_sha256: dict[SiteName, Name]
    pixels: dict[SiteName, Name] = Field(default_factory=dict)

    def network_of(self, site: str) -> str:
        """Return which network a site that took part uses."""
        return site if site in self.networks else COMMON

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        institutions = [*self.sites, *self.outside]
        if len(set(institutions)) < len(institutions) or set(institutions) != self.data_sha256.keys():
            raise ValueError("expected each institution once, with its study file's digest")
        if not self.pixels.keys() <= set(institutions):
            raise ValueError("expected pixel pipelines of these institutions alone")
        if not set(self.networks) <= {COMMON, AVERAGED, *self.sites}:
            raise ValueError("expected networks of sites, common or averaged")
        if any(site not in self.networks and COMMON not in self.networks for site in self.sites):
            raise ValueError("expected a network for every site")
        return self


class _Header(Record):
    schema_number: Annotated[int, Field(alias="schema", ge=min(READABLE), le=max(READABLE))]


@dataclass(frozen=True)
class RunScores:
    """All scores of a run.

    Attributes:
        origin: where they come from.
        truth: by institution and split (`test`, `validate`); a split without studies is there, too, and empty.
        probabilities: (N, L) float32, 0 to 1, by network, institution and split.
        groups: of the TEST studies by view, sex and age, by institution; none in scores of schema 1 and 2.
    """

    origin: Origin
    truth: Mapping[tuple[str, str], Truth]
    probabilities: Mapping[tuple[str, str, str], NDArray[np.float32]]
    groups: Mapping[str, StudyGroups] = field(default_factory=dict)


def write_scores(path: Path, scores: RunScores) -> None:
    """Write scores as the whole file `path`."""
    tensors: dict[str, NDArray[Any]] = {}
    for (site, split), truth in scores.truth.items():
        for name, values in vars(truth).items():
            tensors[f"{name}/{site}/{split}"] = np.ascontiguousarray(values)
    for site, groups in scores.groups.items():
        for name, codes_N in vars(groups).items():
            tensors[f"{name}/{site}/test"] = np.ascontiguousarray(codes_N)
    for place, probabilities_NL in scores.probabilities.items():
        tensors["/".join(["probabilities", *place])] = np.ascontiguousarray(probabilities_NL)
    header = {"schema": SCHEMA, "tool": f"cxr-hvd {__version__}", **scores.origin.model_dump(mode="json")}
    with disk_errors(path), replaced_file(path) as beside:
        save_file(tensors, beside, metadata={"origin": json.dumps(header)})


def read_origin(path: Path) -> Origin:
    """Read where the scores in a file come from.

    Raises:
        CheckpointError: it is missing, damaged or of another schema.
    """
    return _read(path, with_tensors=False).origin


def read_scores(path: Path) -> RunScores:
    """Read all scores of a run.

    Raises:
        CheckpointError: the file is missing, damaged or of another schema.
    """
    return _read(path, with_tensors=True)


def _read(path: Path, with_tensors: bool) -> RunScores:
    try:
        open_plain(path, follows_links=True).close()  # a pipe would hang who opens it
        with safetensors.safe_open(path, framework="numpy") as file:
            header = file.metadata()["origin"]
            _Header.model_validate_json(header)
            origin = Origin.model_validate_json(header)
            places = [name.split("/") for name in list(file.keys())] if with_tensors else []
            truth = {
                (site, split): Truth(
                    *(file.get_tensor(f"{name}/{site}/{split}") for name in Truth.__dataclass_fields__)
                )
                for kind, site, split in (place for place in places if len(place) == 3)
                if kind == "patients_N"
            }
            groups = {
                site: StudyGroups(
                    *(file.get_tensor(f"{name}/{site}/test") for name in StudyGroups.__dataclass_fields__)
                )
                for kind, site, _ in (place for place in places if len(place) == 3)
                if kind == "sexes_N"
            }
            probabilities = {
                (network, site, split): file.get_tensor(f"probabilities/{network}/{site}/{split}")
                for _, network, site, split in (place for place in places if len(place) == 4)
            }
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: expected scores of schema {SCHEMA}, found others ({first_problem(error)}); make them with "
            "cxr-hvd evaluate RUN --pooled"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{path}: expected scores of schema {SCHEMA}, found none to read ({type(error).__name__}); make them "
            "with cxr-hvd evaluate RUN --pooled"
        ) from error
    scores = RunScores(origin, truth, probabilities, groups)
    if with_tensors:
        _check_tensors(path, scores)
    return scores


def _check_tensors(path: Path, scores: RunScores) -> None:
    """Raise where not every network was judged on every split of every institution, or not by its form."""
    origin, num_labels = scores.origin, len(scores.origin.label_names)
    institutions = (*origin.sites, *origin.outside)
    wanted_places = set(product(institutions, SPLITS))
    judged_places = {(network, *place) for network in origin.networks for place in wanted_places}
    if scores.truth.keys() != wanted_places or scores.probabilities.keys() != judged_places:
        raise CheckpointError(
            f"{path}: expected scores of {', '.join(origin.networks)} on {' and '.join(SPLITS)} studies of "
            f"{', '.join(institutions)}, found others; make them again with cxr-hvd evaluate RUN --pooled"
        )
    for place, known in scores.truth.items():
        types = [values.dtype for values in vars(known).values()]
        if types != [np.float32, np.bool_, np.int64] or not np.isin(known.targets_NL, (0, 1)).all():
            raise CheckpointError(f"{path}: what is known of {' '.join(place)} studies has not its form")
    for site, groups in scores.groups.items():
        wanted_form = ((len(scores.truth[site, "test"]),), np.uint8) if site in institutions else None
        if any((codes_N.shape, codes_N.dtype) != wanted_form for codes_N in vars(groups).values()):
            raise CheckpointError(f"{path}: the groups of {shown(site)}'s test studies have not their form")
    for values in scores.probabilities.values():
        if values.dtype != np.float32 or (values < 0).any() or (values > 1).any():
            raise CheckpointError(f"{path}: expected probabilities, found other numbers")
    for (network, site, split), probabilities_NL in scores.probabilities.items():
        truth = scores.truth.get((site, split))
        wanted = None if truth is None else (len(truth), num_labels)
        if truth is None or not probabilities_NL.shape == truth.targets_NL.shape == truth.known_NL.shape == wanted:
            raise CheckpointError(
                f"{path}: scores of {network} on {site}'s {split} studies have shape {probabilities_NL.shape}, "
                f"expected {wanted}; make them again with cxr-hvd evaluate RUN --pooled"
            )
