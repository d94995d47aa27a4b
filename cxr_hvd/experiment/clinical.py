"""What a clinical journal asks of one set-up on one site's test studies, beside its AUROCs.

Owns the step from scores to records: operating points, recalibration, precision-recall curves, and subgroups by
view, sex and age. Intervals are closed forms over patients and seeds (stats/clusters.py).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve

from cxr_hvd.experiment.clinical_record import (
    JudgedSubgroup,
    JudgedThreshold,
    PrecisionCurve,
    SubgroupLabel,
)
from cxr_hvd.experiment.estimates import Estimate
from cxr_hvd.stats.areas import columns_with_patients, mean_area
from cxr_hvd.stats.operating_points import operating_point
from cxr_hvd.stats.recalibration import recalibrate
from cxr_hvd.stats.sample import Codes, Interval, Sample, Scores
from cxr_hvd.study.groups import StudyGroups

CURVE_POINTS = 101

BySeed = tuple[float | None, ...]


def judge_threshold(
    scores_SN: Scores,
    targets_N: NDArray[np.floating[Any]],
    patients_N: Codes,
    thresholds: Sequence[float | None],
) -> JudgedThreshold:
    """Judge a label's answers at the thresholds that each seed's validation chose."""
    point = operating_point(scores_SN, targets_N, patients_N, thresholds)
    rates = {name: closed_estimate(rate.interval, rate.by_seed) for name, rate in vars(point).items()}
    return JudgedThreshold(thresholds=tuple(thresholds), **rates)


def judge_calibration(
    scores_SN: Scores, targets_N: NDArray[np.floating[Any]], patients_N: Codes
) -> tuple[Estimate, Estimate]:
    """Return a label's calibration intercept and slope."""
    recalibration = recalibrate(scores_SN, targets_N, patients_N)
    return closed_estimate(*recalibration.intercept), closed_estimate(*recalibration.slope)


def average_precision_curve(scores_SN: Scores, targets_N: NDArray[np.floating[Any]]) -> PrecisionCurve:
    """Return the precision at the highest threshold that reaches each recall: mean and range over seeds.

    At recall 0 it is that of the first present study. These are the steps whose area is the average precision:
    lines between points would promise too much (Davis and Goadrich, ICML 2006).
    """
    grid = np.linspace(0, 1, CURVE_POINTS)
    curves = []
    for scores_N in scores_SN:
        precision_K, recall_K, _ = precision_recall_curve(targets_N, scores_N)
        # By ascending recall, without scikit-learn's made-up point at recall 0.
        precision_K, recall_K = precision_K[-2::-1], recall_K[-2::-1]
        precision_K, recall_K = precision_K[recall_K > 0], recall_K[recall_K > 0]
        curves.append(precision_K[np.searchsorted(recall_K, grid - 1e-9)])
    return PrecisionCurve(
        recall=tuple(grid.tolist()),
        precision=tuple(np.mean(curves, axis=0).tolist()),
        low=tuple(np.min(curves, axis=0).tolist()),
        high=tuple(np.max(curves, axis=0).tolist()),
    )


def judge_subgroups(
    groups: StudyGroups, sample: Sample, scores_SNL: Scores, label_names: Sequence[str]
) -> tuple[JudgedSubgroup, ...]:
    """Judge a set-up on the studies of each view, sex and age, by the labels with enough patients among them."""
    subgroups = []
    everybody_N = np.ones(len(sample.patients_N), dtype=bool)
    for kind, members in groups.members().items():
        for name, is_member_N in members.items():
            columns = columns_with_patients(sample, is_member_N)
            labels = []
            for column in columns:
                known_N = is_member_N & sample.known_NL[:, column]
                labels.append(
                    SubgroupLabel(
                        label=label_names[column],
                        num_studies=int(known_N.sum()),
                        num_present=int(sample.targets_NL[known_N, column].sum()),
                        auroc=closed_estimate(*mean_area(sample, scores_SNL, (column,), is_member_N)),
                    )
                )
            subgroups.append(
                JudgedSubgroup(
                    kind=kind,
                    name=name,
                    num_studies=int(is_member_N.sum()),
                    num_patients=len(np.unique(sample.patients_N[is_member_N])),
                    macro_auroc=closed_estimate(*mean_area(sample, scores_SNL, columns, is_member_N)),
                    all_studies_auroc=mean_area(sample, scores_SNL, columns, everybody_N)[0].value,
                    labels=tuple(labels),
                )
            )
    return tuple(subgroups)


def closed_estimate(interval: Interval, by_seed: BySeed) -> Estimate:
    """Return the record of a number with an interval in closed form."""
    return Estimate(
        value=interval.value,
        by_seed=by_seed,
        note=interval.note,
        low=interval.low,
        high=interval.high,
        standard_error=interval.standard_error,
    )
