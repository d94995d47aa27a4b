"""How much one set-up is above another: paired differences by seeds, on the same patients."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cxr_hvd.experiment.comparison import LabelDifference, PairedEstimate, PairedMeans, SetUpDifference
from cxr_hvd.experiment.scored_runs import ScoredRuns
from cxr_hvd.experiment.variants import EXPERIMENTS
from cxr_hvd.stats.bootstrap import Draws, difference, resampled
from cxr_hvd.stats.delong import delong_difference
from cxr_hvd.stats.intervals import MIN_SEEDS, components_difference
from cxr_hvd.stats.metrics import MIN_OF_CLASS, why_no_interval
from cxr_hvd.stats.sample import Difference, Floats, Sample, Scores
from cxr_hvd.stats.weighted import Accuracy, Auroc, Metric, macro_auroc, mean_accuracy

MEAN_OF_SITES = "mean of sites"
FIRST_PAIRS = (("D", "C"), ("D", "B"), ("D", "A"), ("C", "A"), ("B", "A"))
SPLITS = ("test", "validate")

Tables = dict[tuple[str, str, str], list[Floats]]
"""One for each metric of `list_metrics`, (S, B), by set-up, site and split."""


@dataclass(frozen=True)
class TablePair:
    """Tables of two set-ups, (S, B) with paired seeds, one for each metric of `list_metrics`."""

    a: Sequence[Floats]
    b: Sequence[Floats]
    draws: Draws

    def differ(
        self, columns: slice, notes: Sequence[str | None], mean_over: tuple[str, ...] | None
    ) -> PairedMeans:
        """Return the differences in AUROC and accuracy over one set of labels.

        Args:
            columns: the two tables of this set.
            notes: why these are undefined.
        """
        auroc, accuracy = (
            (components_difference(a_SB, b_SB, note), difference(a_SB, b_SB, self.draws, note))
            for a_SB, b_SB, note in zip(self.a[columns], self.b[columns], notes, strict=True)
        )
        return PairedMeans(
            mean_over=mean_over,
            macro_auroc=paired_estimate(auroc[0]),
            macro_auroc_bootstrap=paired_estimate(auroc[1]),
            mean_accuracy=paired_estimate(accuracy[0]),
            mean_accuracy_bootstrap=paired_estimate(accuracy[1]),
        )


def compare_pairs(runs: ScoredRuns, num_resamples: int) -> Iterator[SetUpDifference]:
    """Yield the differences of all pairs of set-ups on each site's studies, TEST first."""
    tables = resample_all(runs, num_resamples)
    for split in SPLITS:
        for a, b in choose_pairs(runs.names):
            yield from compare_pair(runs, a, b, split, num_resamples, tables)


def choose_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return which set-ups are compared: the study's four, and each variant with D, C and its own parent."""
    pairs = [(a, b) for a, b in FIRST_PAIRS if a in names and b in names]
    of_study = [name for name in EXPERIMENTS if name in names]
    pairs += [(name, other) for name in names if name not in EXPERIMENTS for other in of_study]
    return pairs or list(itertools.combinations(reversed(names), 2))


def resample_all(runs: ScoredRuns, num_resamples: int) -> Tables:
    """Return every set-up's metrics in every resample, seed by seed, on each site's studies: once for all pairs.

    Patients are drawn alike whatever the number of seeds, so that rows of any two set-ups make a pair.
    """
    tables: Tables = {}
    for name in runs.names:
        for site, split in itertools.product(runs.origin.sites, SPLITS):
            draws = runs.draw(site, len(runs.seeds(name)), num_resamples, split)
            scores_SNL = runs.site_scores_SNL(name, site, split)
            metrics = list_metrics(runs.samples[site, split])
            both = [resampled(metric, scores_SNL, draws) for metric in metrics[:2]]
            is_same = metrics[0].columns == metrics[2].columns
            frequent = both if is_same else [resampled(metric, scores_SNL, draws) for metric in metrics[2:]]
            tables[name, site, split] = both + frequent
    return tables


def compare_pair(
    runs: ScoredRuns, a: str, b: str, split: str, num_resamples: int, tables: Tables
) -> list[SetUpDifference]:
    """Return how much one set-up is above another, on each site's studies and in the mean of the sites.

    Both networks of a pair judged the same patients and began with the same seed; runs without a partner count
    nowhere.

    Args:
        tables: of `resample_all`, with as many resamples.
    """
    seeds = [seed for seed in runs.seeds(a) if seed in runs.seeds(b)]
    rows_a, rows_b = ([runs.seeds(name).index(seed) for seed in seeds] for name in (a, b))
    differences, pairs = [], []
    for site in runs.origin.sites:
        sample = runs.samples[site, split]
        scores_a = runs.site_scores_SNL(a, site, split)[rows_a]
        scores_b = runs.site_scores_SNL(b, site, split)[rows_b]
        pair = TablePair(
            [table_SB[rows_a] for table_SB in tables[a, site, split]],
            [table_SB[rows_b] for table_SB in tables[b, site, split]],
            runs.draw(site, len(seeds), num_resamples, split),
        )
        metrics = list_metrics(sample)
        notes = [_why_undefined(metric, (scores_a, scores_b)) for metric in metrics]
        both, frequent = (
            tuple(runs.origin.label_names[column] for column in metric.columns) for metric in metrics[::2]
        )
        labels = compare_labels(runs.origin.label_names, sample, scores_a, scores_b) if split == "test" else ()
        differences.append(
            SetUpDifference(
                a=a,
                b=b,
                site=site,
                split=split,
                **vars(pair.differ(slice(2), notes[:2], both)),
                frequent=pair.differ(slice(2, 4), notes[2:], frequent),
                labels=labels,
            )
        )
        pairs.append(pair)
    if len(pairs) > 1:
        mean_a, mean_b = np.mean([(pair.a, pair.b) for pair in pairs], axis=0)
        mean = TablePair(mean_a, mean_b, pairs[-1].draws)
        differences.append(
            SetUpDifference(
                a=a,
                b=b,
                site=MEAN_OF_SITES,
                split=split,
                **vars(mean.differ(slice(2), [None, None], None)),
                frequent=mean.differ(slice(2, 4), [None, None], None),
                labels=(),
            )
        )
    return differences


def list_metrics(sample: Sample) -> tuple[Auroc | Accuracy, ...]:
    """Return AUROC and accuracy on one test set: over labels with both classes, and over frequent ones."""
    return tuple(
        metric
        for at_least in (1, MIN_OF_CLASS)
        for metric in (macro_auroc(sample, at_least), mean_accuracy(sample, at_least=at_least))
    )


def compare_labels(
    label_names: Sequence[str], sample: Sample, scores_a_SNL: Scores, scores_b_SNL: Scores
) -> tuple[LabelDifference, ...]:
    """Return DeLong's difference in AUROC of each label between two set-ups.

    With few present or absent studies it has neither interval nor p-value, and a note says so.
    """
    rows = []
    for column, label in enumerate(label_names):
        known_N = sample.known_NL[:, column]
        targets_N = sample.targets_NL[known_N, column]
        auroc = delong_difference(
            scores_a_SNL[:, known_N, column],
            scores_b_SNL[:, known_N, column],
            targets_N,
            sample.patients_N[known_N],
        )
        few = why_no_interval(len(targets_N), int(targets_N.sum()))
        if few and auroc.value is not None:
            auroc = replace(auroc, low=None, high=None, standard_error=None, p_value=None, note=few)
        rows.append(LabelDifference(label=label, auroc=paired_estimate(auroc)))
    return tuple(rows)


def _why_undefined(metric: Metric, scores: Sequence[Scores]) -> str | None:
    """Return why a metric is undefined for a seed of one of several set-ups; None where it is not."""
    return next((why for scores_SNL in scores for row in scores_SNL if (why := metric.why_undefined(row))), None)


def paired_estimate(of_pair: Difference) -> PairedEstimate:
    """Return the record of a difference, without a p-value where there are too few seeds for one."""
    return PairedEstimate(
        value=of_pair.value,
        low=of_pair.low,
        high=of_pair.high,
        standard_error=of_pair.standard_error,
        p_value=of_pair.p_value if len(of_pair.per_seed) >= MIN_SEEDS else None,
        by_seed=of_pair.per_seed,
        note=of_pair.note,
    )
