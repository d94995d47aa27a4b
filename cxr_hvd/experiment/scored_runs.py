"""The runs that are compared: found by their scores, named by their set-up, and held to be of the same studies."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cxr_hvd.errors import CheckpointError
from cxr_hvd.experiment.scores import NAME, Origin, RunScores, Truth, read_scores
from cxr_hvd.experiment.variants import EXPERIMENTS
from cxr_hvd.stats.bootstrap import Draws, draw
from cxr_hvd.stats.sample import Sample
from cxr_hvd.study.groups import StudyGroups

SEED_FOLDER = re.compile(r"seed-[0-9]+")


@dataclass(frozen=True)
class ScoredRun:
    """A run with its scores.

    Attributes:
        name: of its set-up: the folder above `seed-S`, or the run's own.
        path: its run folder.
    """

    name: str
    path: Path
    scores: RunScores

    @property
    def seed(self) -> int:
        return self.scores.origin.seed


@dataclass(frozen=True)
class ScoredRuns:
    """All runs of a comparison, judged on the same studies.

    Attributes:
        of_name: runs by name of the set-up, A to D first, each by ascending seed.
        samples: by site and split, what is known of the studies.
    """

    of_name: dict[str, list[ScoredRun]]
    samples: dict[tuple[str, str], Sample]

    @property
    def origin(self) -> Origin:
        """Of the first run; labels, sites and data are those of all."""
        return next(iter(self.of_name.values()))[0].scores.origin

    @property
    def names(self) -> list[str]:
        return list(self.of_name)

    @property
    def institutions(self) -> tuple[str, ...]:
        """The sites, and those that took no part."""
        return (*self.origin.sites, *self.origin.outside)

    def groups(self, site: str) -> StudyGroups | None:
        """Return the groups of an institution's TEST studies; None where no run's scores tell."""
        runs = (run for of_setup in self.of_name.values() for run in of_setup)
        return next((groups for run in runs if (groups := run.scores.groups.get(site)) is not None), None)

    def networks(self, name: str) -> tuple[str, ...]:
        """Return the names of the networks that a set-up's runs have."""
        return self.of_name[name][0].scores.origin.networks

    def seeds(self, name: str) -> list[int]:
        return [run.seed for run in self.of_name[name]]

    def scores_SNL(self, name: str, network: str, site: str, split: str = "test") -> NDArray[np.float32]:
        """Return what a network of a set-up says of a site's studies, seed by seed."""
        return np.stack([run.scores.probabilities[network, site, split] for run in self.of_name[name]])

    def site_scores_SNL(self, name: str, site: str, split: str = "test") -> NDArray[np.float32]:
        """Return the same of the network that the site uses."""
        return self.scores_SNL(name, self.of_name[name][0].scores.origin.network_of(site), site, split)

    def draw(self, site: str, num_seeds: int, num_resamples: int, split: str = "test") -> Draws:
        """Draw a site's patients: the same draws for all set-ups, so that they can be compared in pairs."""
        stream = self.institutions.index(site)
        return draw(self.samples[site, split].patients_N, num_seeds, num_resamples, stream=stream)


def load_runs(paths: Sequence[Path]) -> ScoredRuns:
    """Read all scores in these folders: of runs, or of experiments, which hold NAME/seed-S.

    Raises:
        CheckpointError: there are none, or they are not of the same studies.
    """
    folders = [folder for path in paths for folder in find_folders(path)]
    if not folders:
        raise CheckpointError(
            f"{', '.join(map(str, paths))}: expected runs with {NAME}, found none; make them with "
            "cxr-hvd experiment or cxr-hvd evaluate RUN --pooled, or judge RUN... --across-sites"
        )
    of_name: dict[str, list[ScoredRun]] = {}
    for folder in folders:
        run = ScoredRun(name_of(folder), folder, read_scores(folder / NAME))
        of_name.setdefault(run.name, []).append(run)
    names = sorted(of_name, key=lambda name: (name not in EXPERIMENTS, name))
    of_name = {name: sorted(of_name[name], key=lambda run: run.seed) for name in names}
    check_alike(of_name)
    first = of_name[names[0]][0]
    samples = {place: _sample(truth) for place, truth in first.scores.truth.items()}
    return ScoredRuns(of_name, samples)


def find_folders(path: Path) -> list[Path]:
    """Return the run folders with scores in a folder: itself, or NAME/seed-S below it."""
    if (path / NAME).is_file():
        return [path]
    return sorted(file.parent for file in path.glob(f"*/seed-*/{NAME}"))


def name_of(folder: Path) -> str:
    """Return the name of the set-up that a run is of."""
    folder = folder.absolute()
    return folder.parent.name if SEED_FOLDER.fullmatch(folder.name) else folder.name


def check_alike(of_name: dict[str, list[ScoredRun]]) -> None:
    """Raise where runs cannot be compared: judged on other studies, by other labels, or twice with one seed."""
    first = next(iter(of_name.values()))[0]
    for name, runs in of_name.items():
        seeds = [run.seed for run in runs]
        if len(set(seeds)) < len(seeds):
            raise CheckpointError(f"{runs[0].path}: expected one run of {name} for each seed, found {seeds}")
        for run in runs:
            origin, wanted = run.scores.origin, first.scores.origin
            for what in ("label_names", "sites", "outside", "data_sha256"):
                if getattr(origin, what) != getattr(wanted, what):
                    raise CheckpointError(
                        f"{run.path}: expected the {what} of {first.path}, found others: compare them apart"
                    )
            if origin.networks != runs[0].scores.origin.networks:
                raise CheckpointError(f"{run.path}: its networks are not those of {runs[0].path}: two set-ups")
            for place, truth in run.scores.truth.items():
                if not _is_same(truth, first.scores.truth[place]):
                    raise CheckpointError(
                        f"{run.path}: expected the label policies of {first.path}, found others: compare them "
                        "apart"
                    )


def _is_same(one: Truth, other: Truth) -> bool:
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def _sample(truth: Truth) -> Sample:
    return Sample(truth.targets_NL, truth.known_NL, truth.patients_N)
