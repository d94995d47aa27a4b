"""Records of what a clinical journal asks: operating points, precision-recall curves and subgroups."""

from cxr_hvd.experiment.estimates import Estimate
from cxr_hvd.record import Record


class PrecisionCurve(Record):
    """A precision-recall curve, averaged over seeds at each recall, and the seeds' range."""

    recall: tuple[float, ...]
    precision: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


class JudgedThreshold(Record):
    """What answers at the chosen thresholds are worth.

    Attributes:
        thresholds: of each seed, chosen on validation studies.
        positive_predictive_value, negative_predictive_value: with this test set's share of findings.
    """

    thresholds: tuple[float | None, ...]
    sensitivity: Estimate
    specificity: Estimate
    positive_predictive_value: Estimate
    negative_predictive_value: Estimate


class SubgroupLabel(Record):
    """One label in a subgroup."""

    label: str
    num_studies: int
    num_present: int
    auroc: Estimate


class JudgedSubgroup(Record):
    """A set-up on one site's test studies of one kind.

    Attributes:
        kind, name: what the studies have in common, for example `sex` and `female`.
        macro_auroc: mean over the labels with at least 10 patients with and 10 without it in the subgroup.
        all_studies_auroc: the mean over the same labels on all test studies.
        labels: these labels.
    """

    kind: str
    name: str
    num_studies: int
    num_patients: int
    macro_auroc: Estimate
    all_studies_auroc: float | None
    labels: tuple[SubgroupLabel, ...]
