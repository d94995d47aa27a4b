"""The form of `results.json`: how good a site's network is on the studies of one split.

`cxr-hvd evaluate` writes it and hands it to the other ranks; `inspect-run` reads the line that it shows.
"""

from typing import Annotated, Self

from pydantic import ConfigDict, Field, TypeAdapter, model_validator

from cxr_hvd.config.sections import SiteName
from cxr_hvd.record import Count, Name, Record

Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Bounds = tuple[Finite, Finite]


class ResultsSummary(Record):
    """What `inspect-run` shows of a site's results; files of earlier versions have it, too."""

    split: Name
    step: Count
    macro_auroc: Share | None
    mean_accuracy: Share | None


class LabelResult(Record):
    """The metrics of one label; see `stats.metrics.LabelMetrics`."""

    model_config = ConfigDict(from_attributes=True)
    label: Name
    num_studies: Count
    num_present: Count
    auroc: Share | None
    accuracy: Share | None
    all_negative_accuracy: Share | None
    average_precision: Share | None
    brier: Share | None
    sensitivity_at_specificity: Share | None
    expected_calibration_error: Share | None
    threshold: Finite | None
    accuracy_at_threshold: Share | None
    note: str | None


class MeansResult(Record):
    """Means over one set of labels; see `stats.metrics.LabelMeans`."""

    model_config = ConfigDict(from_attributes=True)
    mean_over: tuple[Name, ...]
    macro_auroc: Share | None
    mean_accuracy: Share | None
    mean_all_negative_accuracy: Share | None
    macro_average_precision: Share | None
    mean_brier: Share | None
    mean_sensitivity: Share | None
    mean_accuracy_at_threshold: Share | None
    note: str | None


class MeanIntervals(Record):
    """95% intervals of two means over patients; None where there is none."""

    macro_auroc: Bounds | None
    mean_accuracy: Bounds | None


class ResultIntervals(MeanIntervals):
    """95% intervals over patients: of the means, and of each label's AUROC by the label's name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Bounds | None]
    frequent: MeanIntervals

    @property
    def labels(self) -> dict[str, Bounds | None]:
        """Return the intervals of the labels' AUROCs."""
        return self.__pydantic_extra__


class _Network(Record):
    site: SiteName
    experiment: Name
    split: Name
    checkpoint: Name
    step: Count


class SiteResults(MeansResult, _Network):
    """How good a site's network is on one split: its means are over the labels with both classes."""

    labels: tuple[LabelResult, ...]
    num_studies: Count
    frequent: MeansResult
    intervals: ResultIntervals

    @model_validator(mode="after")
    def _check_intervals(self) -> Self:
        missing = {label.label for label in self.labels} - self.intervals.labels.keys()
        if missing:
            raise ValueError(f"expected an interval of every label, found none of {', '.join(sorted(missing))}")
        return self


RESULTS: TypeAdapter[tuple[SiteResults, ...]] = TypeAdapter(tuple[SiteResults, ...])
"""The results of several sites, as ranks hand them over."""
