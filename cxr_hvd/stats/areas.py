"""Mean AUROC over labels in a part of a test set, in closed form: for subgroups, of which there are many.

Each patient's influence on an AUROC is the sum of its studies' structural components, those of DeLong as
Obuchowski sums them (Biometrics 1997); on a mean of AUROCs it is the mean of these.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from cxr_hvd.stats.clusters import area_interval, patient_codes, sums_of_patients, without_interval
from cxr_hvd.stats.metrics import MIN_OF_CLASS
from cxr_hvd.stats.sample import Flags, Floats, Interval, Sample, Scores

NO_LABEL = f"no label with {MIN_OF_CLASS} patients with it and {MIN_OF_CLASS} without"


def columns_with_patients(sample: Sample, is_member_N: Flags, at_least: int = MIN_OF_CLASS) -> tuple[int, ...]:
    """Return the labels with at least so many patients with and without them among these studies."""

    def num_patients(is_counted_N: Flags) -> int:
        return len(np.unique(sample.patients_N[is_counted_N & is_member_N]))

    return tuple(
        column
        for column, (targets_N, known_N) in enumerate(zip(sample.targets_NL.T, sample.known_NL.T, strict=True))
        if min(num_patients(known_N & (targets_N == target)) for target in (0, 1)) >= at_least
    )


def mean_area(
    sample: Sample, scores_SNL: Scores, columns: Sequence[int], is_member_N: Flags
) -> tuple[Interval, tuple[float | None, ...]]:
    """Return the mean AUROC over labels among some studies with its interval, and that of each seed.

    Args:
        scores_SNL: (S, N, L) of all studies of the sample.
        columns: of the labels; each has both classes among these studies, as `columns_with_patients` sees to.
        is_member_N: which studies count.
    """
    num_seeds = len(scores_SNL)
    if not len(columns):
        return without_interval(None, NO_LABEL), (None,) * num_seeds
    codes_N, num_patients = patient_codes(sample.patients_N)
    values_LS = np.empty((len(columns), num_seeds))
    influences_SP = np.zeros((num_seeds, num_patients))
    for place, column in enumerate(columns):
        rows = np.flatnonzero(is_member_N & sample.known_NL[:, column])
        scores_SN = scores_SNL[:, rows, column]
        if not np.isfinite(scores_SN).all():
            return without_interval(None, "scores are not finite"), (None,) * num_seeds
        values_LS[place], components_SN = area_components(scores_SN, sample.targets_NL[rows, column])
        influences_SP += sums_of_patients(components_SN, codes_N[rows], num_patients) / len(columns)
    values_S = values_LS.mean(axis=0)
    return area_interval(values_S, influences_SP), tuple(values_S.tolist())


def area_components(scores_SN: Scores, targets_N: NDArray[np.floating[Any]]) -> tuple[Floats, Floats]:
    """Return the AUROC (S,) of each row of scores, and each study's influence (S, N) on it.

    Args:
        scores_SN: (S, N), finite. targets_N: (N,), 0 or 1, both there.
    """
    is_present_N = targets_N == 1
    num_present = int(is_present_N.sum())
    num_absent = len(targets_N) - num_present
    ranks_SN = rankdata(scores_SN, axis=1)
    # Of a present study, the share of absent ones below it; of an absent one, of present ones above it.
    shares_SN = np.empty(ranks_SN.shape)
    of_present, of_absent = (rankdata(scores_SN[:, part], axis=1) for part in (is_present_N, ~is_present_N))
    shares_SN[:, is_present_N] = (ranks_SN[:, is_present_N] - of_present) / num_absent
    shares_SN[:, ~is_present_N] = 1 - (ranks_SN[:, ~is_present_N] - of_absent) / num_present
    areas_S = shares_SN[:, is_present_N].mean(axis=1)
    return areas_S, (shares_SN - areas_S[:, None]) / np.where(is_present_N, num_present, num_absent)
