"""What a site may tell of networks on its own test studies: sums over patients, of labels that enough have."""

from collections.abc import Sequence

import numpy as np

from cxr_hvd.errors import DataError
from cxr_hvd.experiment.across.networks import SiteRun, judged_at
from cxr_hvd.experiment.across.numbers import Layout, joint_numbers
from cxr_hvd.experiment.across.record import Histogram, LabelSummary, NetworkName, SiteSummary
from cxr_hvd.experiment.scores import COMMON
from cxr_hvd.stats.clustered import (
    NUM_BINS,
    columns_with_patients,
    joint_accuracy,
    joint_auroc,
    joint_brier,
    merged_histogram,
)
from cxr_hvd.stats.sample import Sample, Scores


def lay_out(
    site_runs: Sequence[SiteRun],
    networks: Sequence[NetworkName],
    label_names: tuple[str, ...],
    site_names: Sequence[str],
) -> Layout:
    """Return what every site sends; histograms of the network that it uses itself, of each set-up's first seed."""
    judged = {
        site: tuple(place for place, is_here in enumerate(judged_at(site_runs, site)) if is_here)
        for site in site_names
    }
    drawn = {}
    for site, places in judged.items():
        of_setup: dict[str, int] = {}
        for place in places:
            if networks[place].network in (site, COMMON):
                of_setup.setdefault(networks[place].setup, place)
        drawn[site] = tuple(of_setup.values())
    return Layout(label_names, judged, drawn)


def summarise(
    site: str, scores_KNL: Scores, sample: Sample, label_names: Sequence[str], layout: Layout
) -> SiteSummary:
    """Return what may be told of networks on a site's test studies. Pure.

    Raises:
        DataError: a network's answers are not finite.
    """
    if not np.isfinite(scores_KNL).all():
        raise DataError(
            f"{site}: expected finite probabilities of all networks, found others; leave out the run that diverged"
        )
    columns, places = columns_with_patients(sample), layout.networks[site]
    means = {
        name: joint_numbers(*vars(estimate(scores_KNL, sample, columns)).values()) if columns else None
        for name, estimate in (
            ("macro_auroc", joint_auroc),
            ("mean_accuracy", joint_accuracy),
            ("mean_brier", joint_brier),
        )
    }
    labels, histograms = [], {}
    for column, label in enumerate(label_names):
        if column not in columns:
            labels.append(LabelSummary(label=label))
            continue
        known_N = sample.known_NL[:, column]
        targets_N, patients_N = sample.targets_NL[known_N, column], sample.patients_N[known_N]
        labels.append(
            LabelSummary(
                label=label,
                num_studies=int(known_N.sum()),
                num_present=int(targets_N.sum()),
                auroc=joint_numbers(*vars(joint_auroc(scores_KNL, sample, (column,))).values()),
            )
        )
        for place in layout.drawn[site]:
            scores_N = scores_KNL[places.index(place), known_N, column]
            histograms[place, label] = [
                merged_histogram(scores_N[targets_N == target], patients_N[targets_N == target]).tolist()
                for target in (1, 0)
            ]
    nothing = [[0] * NUM_BINS] * 2
    return SiteSummary(
        site=site,
        num_studies=len(sample.targets_NL),
        num_patients=len(np.unique(sample.patients_N)),
        networks=places,
        mean_over=tuple(label_names[column] for column in columns),
        **means,
        labels=tuple(labels),
        histograms=tuple(
            Histogram(network=place, label=label, present=tuple(present), absent=tuple(absent))
            for place in layout.drawn[site]
            for label in label_names
            for present, absent in [histograms.get((place, label), nothing)]
        ),
    )
