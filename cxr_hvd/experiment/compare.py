"""The comparison of set-ups, from their runs' scores to plain values that tables, figures and page are made of.

    experiments   each set-up: what it is, what it sent, how long it took, its commands
    results       each set-up on each site's test studies, with intervals over patients and seeds
    matrix        every network on every site's test studies
    policies      what an institution that took no part could do with a set-up's networks
    differences   between two set-ups, by pairs of seeds on the same patients
    sites, curves, notes

Numbers are None where they are undefined, and a `note` beside them says why. All means of one place are over the
labels in its `mean_over`, those with both classes in the studies; those in `frequent` beside them are over the
labels with at least 10 present and 10 absent studies.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cxr_hvd import __version__
from cxr_hvd.experiment.judge import draws_of, interval, judge
from cxr_hvd.experiment.run_record import curves_of, describe, read_command
from cxr_hvd.experiment.scored_runs import ScoredRuns, load_runs
from cxr_hvd.experiment.scores import AVERAGED, COMMON
from cxr_hvd.experiment.site_record import describe_sites
from cxr_hvd.experiment.variants import EXPERIMENTS
from cxr_hvd.stats.bootstrap import NUM_RESAMPLES, Draws, difference, resampled
from cxr_hvd.stats.delong import delong_difference
from cxr_hvd.stats.intervals import components_difference
from cxr_hvd.stats.metrics import MIN_OF_CLASS, why_no_interval
from cxr_hvd.stats.sample import Difference, Floats, Sample, Scores
from cxr_hvd.stats.weighted import Accuracy, Auroc, Metric, macro_auroc, mean_accuracy

SCHEMA = 2
MEAN_OF_SITES = "mean of sites"
FIRST_PAIRS = (("D", "C"), ("D", "B"), ("D", "A"), ("C", "A"), ("B", "A"))
METRICS = ("macro_auroc", "mean_accuracy")
SPLITS = ("test", "validate")

Tables = dict[tuple[str, str, str], list[Floats]]
"""One for each metric of `metrics_of`, (S, B), by set-up, site and split."""


def compare(paths: Sequence[Path], num_resamples: int = NUM_RESAMPLES) -> dict[str, Any]:
    """Compare all runs in these folders. Takes some seconds for each set-up.

    Raises:
        CheckpointError: there is nothing to compare, or it is not of the same studies.
    """
    runs = load_runs(paths)
    origin = runs.origin
    draws = {
        (name, site): draws_of(runs, site, len(runs.seeds(name)), num_resamples)
        for name in runs.names
        for site in runs.institutions
    }
    tables = tables_of(runs, num_resamples)
    return {
        "schema": SCHEMA,
        "tool": f"cxr-hvd {__version__}",
        "command": read_command(paths),
        "num_resamples": num_resamples,
        "label_names": list(origin.label_names),
        "sites": describe_sites(next(iter(runs.of_name.values()))[0].path, origin),
        "experiments": [describe(name, runs.of_name[name]) for name in runs.names],
        "results": [judge(runs, name, site, draws[name, site]) for name in runs.names for site in origin.sites],
        "matrix": [cell for name in runs.names for cell in matrix_of(runs, name)],
        "policies": [
            policy
            for name in runs.names
            for site in runs.institutions
            for policy in policies_of(runs, name, site, draws[name, site])
        ],
        "differences": [
            each
            for split in SPLITS
            for a, b in pairs_of(runs.names)
            for each in differences_of(runs, a, b, split, num_resamples, tables)
        ],
        "curves": [curve for name in runs.names for run in runs.of_name[name] for curve in curves_of(run)],
        "notes": notes_of(runs),
    }


def matrix_of(runs: ScoredRuns, name: str) -> list[dict[str, Any]]:
    """Return the mean AUROC of every network of a set-up on every site's test studies."""
    cells = []
    for network in runs.networks(name):
        for site in runs.institutions:
            sample = runs.samples[site, "test"]
            once = draws_of(runs, site, len(runs.seeds(name)), num_resamples=0)
            found = interval(macro_auroc(sample), runs.scores_SNL(name, network, site), once)
            told = {key: found[key] for key in ("value", "by_seed", "note")}
            told["note"] = None if told["value"] is not None else told["note"]
            cells.append({"experiment": name, "network": network, "site": site, "macro_auroc": told})
    return cells


def policies_of(runs: ScoredRuns, name: str, site: str, draws: Draws) -> list[dict[str, Any]]:
    """Judge what an institution without private blocks of its own could use of a set-up's networks.

    Those are a site's network, the one whose private weights are the mean of all sites', and the ensemble: the
    mean of the probabilities of all sites' networks. For a site itself `own` stands beside them, and the means
    hold its part, too. Where nothing is private there is `common` alone, and only for those outside.
    """
    networks, is_outside = runs.networks(name), site in runs.origin.outside
    of_sites = [each for each in networks if each in runs.origin.sites]
    told = {}
    if COMMON in networks and is_outside:
        told[COMMON] = runs.scores_SNL(name, COMMON, site)
    if AVERAGED in networks:
        told = {"own" if each == site else f"of {each}": runs.scores_SNL(name, each, site) for each in of_sites}
        everyone = np.stack(list(told.values()))
        told["averaged weights"] = runs.scores_SNL(name, AVERAGED, site)
        told["ensemble"] = everyone.mean(axis=0, dtype=np.float64).astype(np.float32)
        told = {policy: told[policy] for policy in sorted(told, key=lambda policy: policy != "own")}
    sample = runs.samples[site, "test"]
    return [
        {
            "experiment": name,
            "site": site,
            "policy": policy,
            "macro_auroc": interval(macro_auroc(sample), scores_SNL, draws),
            "mean_accuracy": interval(mean_accuracy(sample), scores_SNL, draws),
        }
        for policy, scores_SNL in told.items()
    ]


def pairs_of(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return which set-ups are compared: the study's four, and each variant with D, C and its own parent."""
    pairs = [(a, b) for a, b in FIRST_PAIRS if a in names and b in names]
    of_study = [name for name in EXPERIMENTS if name in names]
    pairs += [(name, other) for name in names if name not in EXPERIMENTS for other in of_study]
    return pairs or list(itertools.combinations(reversed(names), 2))


def tables_of(runs: ScoredRuns, num_resamples: int) -> Tables:
    """Return every set-up's metrics in every resample, seed by seed, on each site's studies: once for all pairs.

    Patients are drawn alike whatever the number of seeds, so that rows of any two set-ups make a pair.
    """
    found: Tables = {}
    for name in runs.names:
        for site, split in itertools.product(runs.origin.sites, SPLITS):
            draws = draws_of(runs, site, len(runs.seeds(name)), num_resamples, split)
            scores_SNL = runs.own_scores_SNL(name, site, split)
            metrics = metrics_of(runs.samples[site, split])
            own = [resampled(metric, scores_SNL, draws) for metric in metrics[:2]]
            is_same = metrics[0].columns == metrics[2].columns
            own += own if is_same else [resampled(metric, scores_SNL, draws) for metric in metrics[2:]]
            found[name, site, split] = own
    return found


def differences_of(
    runs: ScoredRuns, a: str, b: str, split: str, num_resamples: int, tables: Tables
) -> list[dict[str, Any]]:
    """Return how much one set-up is above another, on each site's studies and in the mean of the sites.

    Both networks of a pair judged the same patients and began with the same seed; runs without a partner count
    nowhere.

    Args:
        tables: of `tables_of`, with as many resamples.
    """
    seeds = [seed for seed in runs.seeds(a) if seed in runs.seeds(b)]
    rows = {name: [runs.seeds(name).index(seed) for seed in seeds] for name in (a, b)}
    found, of_sites = [], []
    for site in runs.origin.sites:
        sample = runs.samples[site, split]
        draws = draws_of(runs, site, len(seeds), num_resamples, split)
        scores = [runs.own_scores_SNL(name, site, split)[rows[name]] for name in (a, b)]
        own = [[table_SB[rows[name]] for table_SB in tables[name, site, split]] for name in (a, b)]
        metrics = metrics_of(sample)
        notes = [why_undefined(metric, scores) for metric in metrics]
        of_sites.append(own)
        labels = label_differences(runs, sample, scores) if split == "test" else []
        place = {"a": a, "b": b, "site": site, "split": split}
        sets = [[runs.origin.label_names[column] for column in metric.columns] for metric in metrics[::2]]
        found.append(place | both_paired(own, draws, notes, sets) | {"labels": labels})
    if len(of_sites) > 1:
        means = np.mean(np.array(of_sites), axis=0)  # of sites: (2 set-ups, 4 metrics, S, B)
        place = {"a": a, "b": b, "site": MEAN_OF_SITES, "split": split}
        found.append(place | both_paired(means, draws, [None] * 4, [None, None]) | {"labels": []})
    return found


def metrics_of(sample: Sample) -> tuple[Auroc | Accuracy, ...]:
    """Return what `METRICS` names, on one test set: over labels with both classes, and over frequent ones."""
    return tuple(
        metric
        for at_least in (1, MIN_OF_CLASS)
        for metric in (macro_auroc(sample, at_least), mean_accuracy(sample, at_least=at_least))
    )


def why_undefined(metric: Metric, scores: Sequence[Scores]) -> str | None:
    """Return why a metric is undefined for a seed of one of several set-ups; None where it is not."""
    return next((why for each in scores for row in each if (why := metric.why_undefined(row))), None)


def both_paired(
    tables: Sequence[Sequence[Floats]],
    draws: Draws,
    notes: Sequence[str | None],
    sets: Sequence[Sequence[str] | None],
) -> dict[str, Any]:
    """Return the paired differences of means over the labels with both classes, and over the frequent ones.

    Args:
        tables: of two set-ups, one for each metric of `metrics_of`.
        notes: why these are undefined.
        sets: the labels of either set; None in a mean of sites, where each site has its own.
    """
    a, b = tables
    frequent = {"mean_over": sets[1], **paired(a[2:], b[2:], draws, notes[2])}
    return {"mean_over": sets[0], **paired(a[:2], b[:2], draws, notes[0]), "frequent": frequent}


def label_differences(runs: ScoredRuns, sample: Sample, scores: Sequence[Scores]) -> list[dict[str, Any]]:
    """Return DeLong's difference in AUROC of each label between two set-ups; scores (S, N, L) of each.

    With few present or absent studies it has neither interval nor p-value, and a note says so.
    """
    found = []
    for column, label in enumerate(runs.origin.label_names):
        known = sample.known_NL[:, column]
        told = delong_difference(
            scores[0][:, known, column],
            scores[1][:, known, column],
            sample.targets_NL[known, column],
            sample.patients_N[known],
        )
        few = why_no_interval(int(known.sum()), int(sample.targets_NL[known, column].sum()))
        if few and told.value is not None:
            told = replace(told, low=None, high=None, standard_error=None, p_value=None, note=few)
        found.append({"label": label, "auroc": difference_json(told)})
    return found


def paired(
    tables_a: Sequence[Floats], tables_b: Sequence[Floats], draws: Draws, note: str | None
) -> dict[str, dict[str, Any]]:
    """Return the difference in each metric twice: with Student's t, which holds with few seeds, and by bootstrap.

    Args:
        tables_a, tables_b: of `resampled`, one for each of `METRICS`.
    """
    found = {}
    for metric, table_a_SB, table_b_SB in zip(METRICS, tables_a, tables_b, strict=True):
        found[metric] = difference_json(components_difference(table_a_SB, table_b_SB, note))
        found[f"{metric}_bootstrap"] = difference_json(difference(table_a_SB, table_b_SB, draws, note))
    return found


def difference_json(found: Difference) -> dict[str, Any]:
    """Return a difference as plain values."""
    return {
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "standard_error": found.standard_error,
        "p_value": found.p_value,
        "by_seed": list(found.per_seed),
        "note": found.note,
    }


def notes_of(runs: ScoredRuns) -> list[str]:
    """Say what a reader has to know: seeds that set-ups lack, sites without studies."""
    notes = []
    most = max((runs.seeds(name) for name in runs.names), key=len)
    for name in runs.names:
        missing = [str(seed) for seed in most if seed not in runs.seeds(name)]
        if missing:
            notes.append(f"{name} has no run with seed {', '.join(missing)}; differences are over common seeds.")
    for (site, split), sample in runs.samples.items():
        if not len(sample.targets_NL):
            said = "nothing can be said of it" if split == "test" else "no threshold can be chosen there"
            notes.append(f"{site} has no {split} studies: {said}.")
    pixels = runs.origin.pixels
    if len(set(pixels.values())) > 1:
        told = ", ".join(f"{name} {pipeline}" for name, pipeline in pixels.items())
        notes.append(
            f"Study files are of different pixel pipelines ({told}): where test sets differ, it may be by their "
            "pixels."
        )
    which = {run.scores.origin.checkpoint for own in runs.of_name.values() for run in own}
    if len(which) > 1:
        notes.append("Some runs were judged by their latest checkpoint, others by their best.")
    return notes
