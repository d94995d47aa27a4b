"""The comparison of set-ups from results across sites: the same numbers as of pooled scores, without a score.

Values are those of `compare`, over the labels that 10 patients have and 10 have not; intervals are Student's t,
with the covariance over patients as each site sent it. Patients of two sites are others, so that covariances of a
mean of sites add up.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cxr_hvd.errors import CheckpointError
from cxr_hvd.experiment.across.comparison import (
    AcrossComparison,
    AcrossDifference,
    AcrossHistogram,
    AcrossLabel,
    AcrossResult,
    AcrossSetUp,
)
from cxr_hvd.experiment.across.record import ACROSS, Across, JointNumbers, SiteSummary, read_across
from cxr_hvd.experiment.comparison import Estimate, JudgedNetwork, LabelDifference, PairedEstimate, SeedMean
from cxr_hvd.experiment.differences import MEAN_OF_SITES, choose_pairs, paired_estimate
from cxr_hvd.experiment.scores import COMMON
from cxr_hvd.experiment.variants import EXPERIMENTS
from cxr_hvd.stats.delong import contrast_difference
from cxr_hvd.stats.intervals import covariance_difference
from cxr_hvd.stats.sample import Difference, Floats

MEANS = ("macro_auroc", "mean_accuracy", "mean_brier")
NOTHING = Difference(None, None, None, None, None, (), 0, "fewer than 10 patients in a class")


@dataclass(frozen=True)
class Joint:
    """Numbers of some networks with their covariance over patients."""

    values_K: Floats
    covariance_KK: Floats


def find_across(paths: Sequence[Path]) -> Path | None:
    """Return the results across sites in folders of runs, of sites or of experiments; None where there are none.

    Raises:
        CheckpointError: there are several, and they differ.
    """
    patterns = (ACROSS, f"*/{ACROSS}", f"*/seed-*/*/{ACROSS}")
    files = [file for path in paths for pattern in patterns for file in sorted(path.glob(pattern))]
    contents = {file.read_bytes(): file for file in files}
    if len(contents) > 1:
        one, other = list(contents.values())[:2]
        raise CheckpointError(
            f"{one} and {other} are of two releases: name runs that were judged together, or judge them together"
        )
    return files[0] if files else None


def compare_across(path: Path) -> AcrossComparison:
    """Compare the set-ups of an `across.json`.

    Raises:
        CheckpointError: it is damaged.
    """
    across = read_across(path)
    names = sorted({one.setup for one in across.networks}, key=lambda name: (name not in EXPERIMENTS, name))
    experiments = {one.setup: one.experiment for one in across.networks}
    return AcrossComparison(
        tool=across.tool,
        checkpoint=across.checkpoint,
        label_names=across.label_names,
        experiments=tuple(
            AcrossSetUp(name=name, experiment=experiments[name], seeds=tuple(_seeds(across, name)))
            for name in names
        ),
        results=tuple(result for name in names for result in _judge(across, name)),
        differences=tuple(row for a, b in choose_pairs(names) for row in _differ(across, a, b)),
        matrix=tuple(_list_networks(across, names)),
        histograms=tuple(
            AcrossHistogram(
                experiment=network.setup,
                seed=network.seed,
                site=site.site,
                label=one.label,
                present=one.present,
                absent=one.absent,
            )
            for site in across.sites
            for one in site.histograms
            for network in [across.networks[one.network]]
        ),
    )


def _judge(across: Across, name: str) -> Iterator[AcrossResult]:
    """Yield a set-up's results at each site, and their mean over several sites."""
    seeds, sites = _seeds(across, name), across.sites
    for site in sites:
        places = _places(across, site, name, seeds)
        yield AcrossResult(
            experiment=name,
            site=site.site,
            num_studies=site.num_studies,
            num_patients=site.num_patients,
            mean_over=site.mean_over,
            **{mean: _estimate(_choose(getattr(site, mean), places)) for mean in MEANS},
            labels=tuple(
                AcrossLabel(
                    label=label.label,
                    num_studies=label.num_studies,
                    num_present=label.num_present,
                    auroc=_estimate(_choose(label.auroc, places)),
                )
                for label in site.labels
            ),
        )
    if len(sites) > 1:
        joints = {
            mean: [_choose(getattr(site, mean), _places(across, site, name, seeds)) for site in sites]
            for mean in MEANS
        }
        yield AcrossResult(
            experiment=name,
            site=MEAN_OF_SITES,
            num_studies=sum(site.num_studies for site in sites),
            num_patients=sum(site.num_patients for site in sites),
            mean_over=None,
            **{mean: _estimate(_mean(of_sites)) for mean, of_sites in joints.items()},
            labels=(),
        )


def _differ(across: Across, a: str, b: str) -> Iterator[AcrossDifference]:
    """Yield the differences of two set-ups at each site, and in the mean of several sites."""
    seeds = [seed for seed in _seeds(across, a) if seed in _seeds(across, b)]
    of_mean: dict[str, list[Joint | None]] = {mean: [] for mean in MEANS}
    for site in across.sites:
        places = [*_places(across, site, a, seeds), *_places(across, site, b, seeds)]
        joints = {mean: _subtract(_choose(getattr(site, mean), places)) for mean in MEANS}
        for mean, joint in joints.items():
            of_mean[mean].append(joint)
        yield AcrossDifference(
            a=a,
            b=b,
            site=site.site,
            **{mean: _paired(joint) for mean, joint in joints.items()},
            labels=tuple(
                LabelDifference(
                    label=label.label, auroc=_paired(_choose(label.auroc, places), contrast_difference)
                )
                for label in site.labels
            ),
        )
    if len(across.sites) > 1:
        means = {mean: _paired(_mean(joints)) for mean, joints in of_mean.items()}
        yield AcrossDifference(a=a, b=b, site=MEAN_OF_SITES, **means, labels=())


def _list_networks(across: Across, names: Sequence[str]) -> Iterator[JudgedNetwork]:
    """Yield the mean AUROC of every network of each set-up on each site's studies where it was judged."""
    for name in names:
        for network in dict.fromkeys(one.network for one in across.networks if one.setup == name):
            for site in across.sites:
                places = [
                    place
                    for place, index in enumerate(site.networks)
                    if (across.networks[index].setup, across.networks[index].network) == (name, network)
                ]
                if places:
                    mean = _estimate(_choose(site.macro_auroc, places))
                    seed_mean = SeedMean(value=mean.value, by_seed=mean.by_seed, note=mean.note)
                    yield JudgedNetwork(experiment=name, network=network, site=site.site, macro_auroc=seed_mean)


def _seeds(across: Across, name: str) -> list[int]:
    return sorted({one.seed for one in across.networks if one.setup == name})


def _places(across: Across, site: SiteSummary, name: str, seeds: Sequence[int]) -> list[int]:
    """Return where a site's numbers of the network that it uses stand, seed by seed."""
    places = {
        across.networks[index].seed: place
        for place, index in enumerate(site.networks)
        if across.networks[index].setup == name and across.networks[index].network in (site.site, COMMON)
    }
    return [places[seed] for seed in seeds]


def _choose(numbers: JointNumbers | None, places: Sequence[int]) -> Joint | None:
    if numbers is None or not places:
        return None
    return Joint(np.array(numbers.values)[places], np.array(numbers.covariance)[np.ix_(places, places)])


def _subtract(joint: Joint | None) -> Joint | None:
    """Return the differences of the first half from the second, pair by pair."""
    if joint is None:
        return None
    num_seeds = len(joint.values_K) // 2
    contrast_SK = np.concatenate([np.eye(num_seeds), -np.eye(num_seeds)], axis=1)
    return Joint(contrast_SK @ joint.values_K, contrast_SK @ joint.covariance_KK @ contrast_SK.T)


def _mean(joints: Sequence[Joint | None]) -> Joint | None:
    """Return the mean of several sites, whose patients are others; None where one has no number."""
    defined = [joint for joint in joints if joint is not None]
    if len(defined) < len(joints):
        return None
    return Joint(
        np.mean([joint.values_K for joint in defined], axis=0),
        np.sum([joint.covariance_KK for joint in defined], axis=0) / len(defined) ** 2,
    )


def _estimate(joint: Joint | None) -> Estimate:
    """Return the mean over seeds with its interval; that it differs from 0 is no question."""
    return Estimate.model_validate(_paired(joint).model_dump())


def _paired(
    joint: Joint | None, differ: Callable[[Floats, Floats], Difference] = covariance_difference
) -> PairedEstimate:
    return paired_estimate(differ(joint.values_K, joint.covariance_KK) if joint else NOTHING)
