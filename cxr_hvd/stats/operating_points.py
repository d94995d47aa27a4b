"""Sensitivity, specificity and predictive values at a chosen threshold, with intervals over patients and seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_hvd.stats.clusters import patient_codes, share_interval, sums_of_patients, too_few, without_interval
from cxr_hvd.stats.metrics import is_present
from cxr_hvd.stats.sample import Codes, Flags, Interval, Scores

NO_THRESHOLD = "no threshold from validation"


@dataclass(frozen=True)
class Rate:
    """A share of studies: its mean over seeds with an interval, and each seed's."""

    interval: Interval
    by_seed: tuple[float | None, ...]


@dataclass(frozen=True)
class OperatingPoint:
    """What a network's answers at a threshold are worth.

    Attributes:
        sensitivity: of the studies with the finding, the share that is called present.
        specificity: of those without it, the share that is called absent.
        positive_predictive_value: of the studies that are called present, the share with the finding.
        negative_predictive_value: of those that are called absent, the share without it. Both hold for these
            studies' share of findings alone.
    """

    sensitivity: Rate
    specificity: Rate
    positive_predictive_value: Rate
    negative_predictive_value: Rate


def operating_point(
    scores_SN: Scores,
    targets_N: NDArray[np.floating[Any]],
    patients_N: Codes,
    thresholds: Sequence[float | None],
) -> OperatingPoint:
    """Judge answers at the threshold of each seed, which was chosen on other studies.

    A share of fewer than 10 patients has no interval, and a note says so.

    Args:
        scores_SN: (S, N), 0 to 1. targets_N: (N,), 0 or 1.
        patients_N: a number for each study; studies of one patient have the same.
    """
    why = "no study" if not len(targets_N) else None
    if why is None and not np.isfinite(scores_SN).all():
        why = "scores are not finite"
    chosen = [threshold for threshold in thresholds if threshold is not None]
    if why is None and len(chosen) < len(thresholds):
        why = NO_THRESHOLD
    if why:
        undefined = Rate(without_interval(None, why), (None,) * len(thresholds))
        return OperatingPoint(undefined, undefined, undefined, undefined)
    called_SN = is_present(scores_SN, np.array(chosen)[:, None])
    has_it_SN = np.broadcast_to(targets_N == 1, called_SN.shape)

    def rate(right_SN: Flags, counted_SN: Flags, of_what: str) -> Rate:
        return _rate(right_SN & counted_SN, counted_SN, patients_N, of_what)

    return OperatingPoint(
        sensitivity=rate(called_SN, has_it_SN, " with it"),
        specificity=rate(~called_SN, ~has_it_SN, " without it"),
        positive_predictive_value=rate(has_it_SN, called_SN, " called present"),
        negative_predictive_value=rate(~has_it_SN, ~called_SN, " called absent"),
    )


def _rate(right_SN: Flags, counted_SN: Flags, patients_N: Codes, of_what: str) -> Rate:
    """Return the share of right answers among the studies that count.

    Args:
        of_what: which patients count, after their number.
    """
    num_counted_S, num_right_S = counted_SN.sum(axis=1), right_SN.sum(axis=1)
    by_seed = tuple(
        right / counted if counted else None
        for right, counted in zip(num_right_S.tolist(), num_counted_S.tolist(), strict=True)
    )
    if not num_counted_S.all():
        return Rate(without_interval(None, f"no study{of_what}"), by_seed)
    values_S = num_right_S / num_counted_S
    codes_N, num_patients = patient_codes(patients_N)
    counted_SP = sums_of_patients(counted_SN.astype(np.float64), codes_N, num_patients)
    right_SP = sums_of_patients(right_SN.astype(np.float64), codes_N, num_patients)
    fewest = int((counted_SP > 0).sum(axis=1).min())
    if few := too_few(fewest, of_what):
        return Rate(without_interval(float(values_S.mean()), few), by_seed)
    influences_SP = (right_SP - values_S[:, None] * counted_SP) / num_counted_S[:, None]
    return Rate(share_interval(values_S, influences_SP, fewest, float(num_counted_S.mean())), by_seed)
