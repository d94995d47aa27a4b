"""What K networks are worth on one test set and how chance moves them together, in closed form, over patients.

From values (K,) and their covariance (K, K) follow differences, means over seeds and over sites, and the interval
of each, paired and clustered by patient, without a draw and without a score. So a hospital can say what networks
are worth on its patients and keep every score at home. Patients are the units (Obuchowski, Biometrics 1997).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_hvd.stats.delong import structural_components, sums_of_patients, unbiased
from cxr_hvd.stats.metrics import MIN_OF_CLASS, THRESHOLD, is_present
from cxr_hvd.stats.sample import Codes, Floats, Sample, Scores

NUM_BINS = 20
"""Of a histogram. 200 bins of a few hundred studies would be the list of scores."""


@dataclass(frozen=True)
class JointEstimate:
    """One number of each of K networks on the same patients.

    Attributes:
        values_K: (K,), as measured.
        covariance_KK: (K, K), over patients.
    """

    values_K: Floats
    covariance_KK: Floats


def columns_with_patients(sample: Sample, at_least: int = MIN_OF_CLASS) -> tuple[int, ...]:
    """Return the columns of the labels that so many patients have, and so many have not; some do both."""
    columns = []
    for column in range(sample.targets_NL.shape[1]):
        known_N = sample.known_NL[:, column]
        counts = [
            len(np.unique(sample.patients_N[known_N & (sample.targets_NL[:, column] == target)]))
            for target in (0, 1)
        ]
        if min(counts) >= at_least:
            columns.append(column)
    return tuple(columns)


def joint_auroc(scores_KNL: Scores, sample: Sample, columns: Sequence[int]) -> JointEstimate:
    """Return the mean AUROC over labels of K networks, with their covariance.

    Of one label it is `delong.auroc_covariance`. Of several, each patient's components are summed over the labels
    before they are multiplied, so that it counts that one patient is in all of them.

    Args:
        scores_KNL: (K, N, L), finite.
        columns: labels with both classes; at least one.
    """
    codes_N, num_patients = _code_patients(sample, columns)
    num_networks, factor = len(scores_KNL), unbiased(num_patients)
    aurocs_K = np.zeros(num_networks)
    # The sum of all components, and what the factors of the two classes, of fewer patients, are above its own.
    total_KC, present_KC, absent_KC = (np.zeros((num_networks, num_patients)) for _ in range(3))
    for column in columns:
        known_N = sample.known_NL[:, column]
        targets_N, codes_M = sample.targets_NL[known_N, column], codes_N[known_N]
        aurocs, present, absent = structural_components(
            scores_KNL[:, known_N, column], targets_N, codes_M, num_patients
        )
        aurocs_K += aurocs
        total_KC += present + absent
        for sums_KC, components, target in ((present_KC, present, 1), (absent_KC, absent, 0)):
            more = unbiased(len(np.unique(codes_M[targets_N == target]))) - factor
            sums_KC += np.sqrt(max(more, 0.0)) * components
    covariance_KK = factor * total_KC @ total_KC.T + present_KC @ present_KC.T + absent_KC @ absent_KC.T
    return JointEstimate(aurocs_K / len(columns), covariance_KK / len(columns) ** 2)


def joint_accuracy(
    scores_KNL: Scores, sample: Sample, columns: Sequence[int], threshold: float = THRESHOLD
) -> JointEstimate:
    """Return the mean over labels of K networks' shares of right answers, with their covariance."""
    wanted_NL = sample.targets_NL == 1
    return _joint_mean((is_present(scores_KNL, threshold) == wanted_NL).astype(np.float64), sample, columns)


def joint_brier(scores_KNL: Scores, sample: Sample, columns: Sequence[int]) -> JointEstimate:
    """Return the mean over labels of K networks' Brier scores, with their covariance."""
    return _joint_mean((scores_KNL.astype(np.float64) - sample.targets_NL) ** 2, sample, columns)


def merged_histogram(
    scores_N: Scores, patients_N: Codes, num_bins: int = NUM_BINS, at_least: int = MIN_OF_CLASS
) -> NDArray[np.int64]:
    """Count probabilities in equal bins of which neighbours are merged until each holds enough patients.

    Returns:
        (num_bins,): the number of studies at the last bin of each cell, 0 at its other bins; all 0 where all
        studies together are of too few patients.
    """
    bins_N = np.minimum((np.asarray(scores_N) * num_bins).astype(np.int64), num_bins - 1)
    ends: list[int] = []
    for end in range(num_bins):
        start = ends[-1] + 1 if ends else 0
        if len(np.unique(patients_N[(bins_N >= start) & (bins_N <= end)])) >= at_least:
            ends.append(end)
    counts = np.zeros(num_bins, dtype=np.int64)
    if ends:
        ends[-1] = num_bins - 1  # too few are left for a cell of their own
        starts = [0, *(end + 1 for end in ends[:-1])]
        counts[ends] = [((bins_N >= low) & (bins_N <= high)).sum() for low, high in zip(starts, ends, strict=True)]
    return counts


def _joint_mean(values_KNL: NDArray[np.floating[Any]], sample: Sample, columns: Sequence[int]) -> JointEstimate:
    """Return the mean over labels of the mean over the studies in which each is known."""
    codes_N, num_patients = _code_patients(sample, columns)
    means_K, parts_KC = np.zeros(len(values_KNL)), np.zeros((len(values_KNL), num_patients))
    for column in columns:
        known_N = sample.known_NL[:, column]
        values_KN = values_KNL[:, known_N, column]
        means = values_KN.mean(axis=1)
        means_K += means
        parts_KC += sums_of_patients(values_KN - means[:, None], codes_N[known_N], num_patients) / known_N.sum()
    covariance_KK = unbiased(num_patients) * parts_KC @ parts_KC.T
    return JointEstimate(means_K / len(columns), covariance_KK / len(columns) ** 2)


def _code_patients(sample: Sample, columns: Sequence[int]) -> tuple[NDArray[np.int64], int]:
    """Number the patients of whom any of the labels is known; return (N,), and how many there are.

    Studies of other patients get the number of none that counts.
    """
    is_known_N = sample.known_NL[:, list(columns)].any(axis=1)
    patients = np.unique(sample.patients_N[is_known_N])
    return np.minimum(np.searchsorted(patients, sample.patients_N), len(patients) - 1), len(patients)
