"""Records of numbers over seeds: a mean, its interval, a difference, a curve."""

from cxr_hvd.record import Record


class SeedMean(Record):
    """The mean of a number over seeds."""

    value: float | None
    by_seed: tuple[float | None, ...]
    note: str | None


class Estimate(SeedMean):
    """The same with its 95% interval over patients and seeds."""

    low: float | None
    high: float | None
    standard_error: float | None = None


class PairedEstimate(Estimate):
    """The estimate of a difference, with the two-sided p-value of no difference."""

    p_value: float | None


class RocCurve(Record):
    """A ROC curve, averaged over seeds at each false positive rate, and the seeds' range."""

    false_positive: tuple[float, ...]
    true_positive: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
