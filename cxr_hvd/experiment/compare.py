"""The comparison of set-ups, from their runs' scores to the record that tables, figures and page are made of."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cxr_hvd import __version__
from cxr_hvd.experiment.comparison import SCHEMA, Comparison, JudgedNetwork, JudgedPolicy, SeedMean
from cxr_hvd.experiment.differences import compare_pairs
from cxr_hvd.experiment.experiment_file import read_command
from cxr_hvd.experiment.judge import estimate, judge
from cxr_hvd.experiment.scored_runs import ScoredRuns, load_runs
from cxr_hvd.experiment.scores import AVERAGED, COMMON
from cxr_hvd.experiment.setup_record import describe_setup, read_curves
from cxr_hvd.experiment.site_record import describe_sites
from cxr_hvd.stats.bootstrap import NUM_RESAMPLES, Draws
from cxr_hvd.stats.sample import Scores
from cxr_hvd.stats.weighted import macro_auroc, mean_accuracy


def compare(paths: Sequence[Path], num_resamples: int = NUM_RESAMPLES) -> Comparison:
    """Compare all runs in these folders. Takes some seconds for each set-up.

    Raises:
        CheckpointError: there is nothing to compare, or it is not of the same studies.
    """
    runs = load_runs(paths)
    origin = runs.origin
    draws = {
        (name, site): runs.draw(site, len(runs.seeds(name)), num_resamples)
        for name in runs.names
        for site in runs.institutions
    }
    return Comparison(
        schema=SCHEMA,
        tool=f"cxr-hvd {__version__}",
        command=read_command(paths),
        num_resamples=num_resamples,
        label_names=origin.label_names,
        sites=describe_sites(next(iter(runs.of_name.values()))[0].path, origin),
        experiments=tuple(describe_setup(name, runs.of_name[name]) for name in runs.names),
        results=tuple(judge(runs, name, site, draws[name, site]) for name in runs.names for site in origin.sites),
        matrix=tuple(network for name in runs.names for network in judge_networks(runs, name)),
        policies=tuple(
            policy
            for name in runs.names
            for site in runs.institutions
            for policy in judge_policies(runs, name, site, draws[name, site])
        ),
        differences=tuple(compare_pairs(runs, num_resamples)),
        curves=tuple(curve for name in runs.names for run in runs.of_name[name] for curve in read_curves(run)),
        notes=tuple(list_notes(runs)),
    )


def judge_networks(runs: ScoredRuns, name: str) -> list[JudgedNetwork]:
    """Return the mean AUROC of every network of a set-up on every institution's test studies."""
    rows = []
    for network in runs.networks(name):
        for site in runs.institutions:
            as_measured = runs.draw(site, len(runs.seeds(name)), num_resamples=0)
            metric = macro_auroc(runs.samples[site, "test"])
            auroc = estimate(metric, runs.scores_SNL(name, network, site), as_measured)
            note = auroc.note if auroc.value is None else None
            mean = SeedMean(value=auroc.value, by_seed=auroc.by_seed, note=note)
            rows.append(JudgedNetwork(experiment=name, network=network, site=site, macro_auroc=mean))
    return rows


def judge_policies(runs: ScoredRuns, name: str, site: str, draws: Draws) -> list[JudgedPolicy]:
    """Judge what an institution without private blocks of its own could use of a set-up's networks.

    Those are a site's network, the one whose private weights are the mean of all sites', and the ensemble: the
    mean of the probabilities of all sites' networks. For a site itself `own` stands beside them, and the means
    hold its part, too. Where nothing is private there is `common` alone, and only for those outside.
    """
    networks, is_outside = runs.networks(name), site in runs.origin.outside
    scores: dict[str, Scores] = {}
    if COMMON in networks and is_outside:
        scores[COMMON] = runs.scores_SNL(name, COMMON, site)
    if AVERAGED in networks:
        of_sites = [network for network in networks if network in runs.origin.sites]
        of_sites.sort(key=lambda network: network != site)
        scores = {
            "own" if network == site else f"of {network}": runs.scores_SNL(name, network, site)
            for network in of_sites
        }
        all_networks = np.stack(
            [runs.scores_SNL(name, network, site) for network in networks if network in of_sites]
        )
        scores["averaged weights"] = runs.scores_SNL(name, AVERAGED, site)
        scores["ensemble"] = all_networks.mean(axis=0, dtype=np.float64).astype(np.float32)
    sample = runs.samples[site, "test"]
    return [
        JudgedPolicy(
            experiment=name,
            site=site,
            policy=policy,
            macro_auroc=estimate(macro_auroc(sample), scores_SNL, draws),
            mean_accuracy=estimate(mean_accuracy(sample), scores_SNL, draws),
        )
        for policy, scores_SNL in scores.items()
    ]


def list_notes(runs: ScoredRuns) -> list[str]:
    """Say what a reader has to know: seeds that set-ups lack, sites without studies."""
    notes = []
    longest = max((runs.seeds(name) for name in runs.names), key=len)
    for name in runs.names:
        missing = [str(seed) for seed in longest if seed not in runs.seeds(name)]
        if missing:
            notes.append(f"{name} has no run with seed {', '.join(missing)}; differences are over common seeds.")
    for (site, split), sample in runs.samples.items():
        if not len(sample.targets_NL):
            outcome = "nothing can be said of it" if split == "test" else "no threshold can be chosen there"
            notes.append(f"{site} has no {split} studies: {outcome}.")
    pixels = runs.origin.pixels
    if len(set(pixels.values())) > 1:
        pipelines = ", ".join(f"{name} {pipeline}" for name, pipeline in pixels.items())
        notes.append(
            f"Study files are of different pixel pipelines ({pipelines}): where test sets differ, it may be by "
            "their pixels."
        )
    checkpoints = {run.scores.origin.checkpoint for of_setup in runs.of_name.values() for run in of_setup}
    if len(checkpoints) > 1:
        notes.append("Some runs were judged by their latest checkpoint, others by their best.")
    return notes
