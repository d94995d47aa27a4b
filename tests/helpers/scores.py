"""RunScores of runs that follow the truth by so much, and the runs that have them."""

from pathlib import Path

import numpy as np

from cxr_hvd.experiment.scored_runs import ScoredRun, ScoredRuns, check_alike
from cxr_hvd.experiment.scores import Origin, RunScores, Truth
from cxr_hvd.stats.sample import Sample
from cxr_hvd.study.groups import StudyGroups
from cxr_hvd.study.labels import LABELS

SITES = ("north", "south")


def truth_of(num_studies: int, seed: int) -> Truth:
    rng = np.random.default_rng(seed)
    known_NL = np.ones((num_studies, len(LABELS)), dtype=bool)
    known_NL[:, 5] = False
    targets_NL = (rng.random(known_NL.shape) < 0.3).astype(np.float32) * known_NL
    targets_NL[:, 7] = 0  # never present
    return Truth(targets_NL, known_NL, np.arange(num_studies) // 2)


def groups_of(num_studies: int) -> StudyGroups:
    """Two views, two sexes and three ages, one of two studies alone; one study in five has no known sex."""
    numbers = np.arange(num_studies)
    sexes_N = np.where(numbers % 5, 1 + numbers // 2 % 2, 0)
    ages_N = np.where(numbers < 2, 1, 2 + numbers % 2)
    return StudyGroups(*((codes_N).astype(np.uint8) for codes_N in (1 + numbers % 2, sexes_N, ages_N)))


def scores_of(
    seed: int, skill: float, networks: tuple[str, ...] = (*SITES, "averaged"), num_test: int = 40
) -> RunScores:
    """Scores that follow the truth by so much, at two sites and one outside."""
    rng = np.random.default_rng(seed)
    names = (*SITES, "east")
    truth = {
        (name, split): truth_of(num, number)
        for number, name in enumerate(names)
        for split, num in (("test", num_test), ("validate", 20))
    }
    probabilities = {}
    for network in networks:
        for place, known in truth.items():
            noise_NL = rng.random(known.targets_NL.shape)
            probabilities[network, *place] = (skill * known.targets_NL + (1 - skill) * noise_NL).astype(np.float32)
    digests = dict.fromkeys(names, "0" * 64)
    origin = Origin(
        experiment="D",
        seed=seed,
        step=10,
        checkpoint="latest",
        label_names=LABELS,
        sites=SITES,
        outside=("east",),
        networks=networks,
        config_sha256="1" * 64,
        data_sha256=digests,
    )
    return RunScores(origin, truth, probabilities, {name: groups_of(num_test) for name in names})


def runs_of(**scores: list[RunScores]) -> ScoredRuns:
    of_name = {
        name: [ScoredRun(name, Path(name), of_run) for of_run in of_setup] for name, of_setup in scores.items()
    }
    check_alike(of_name)
    first = next(iter(of_name.values()))[0].scores
    samples = {
        place: Sample(truth.targets_NL, truth.known_NL, truth.patients_N) for place, truth in first.truth.items()
    }
    return ScoredRuns(of_name, samples)
