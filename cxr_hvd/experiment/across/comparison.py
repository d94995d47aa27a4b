"""The record of a comparison of set-ups from results across sites: what tables and JSON are made of.

Numbers are None where they are undefined, and a `note` beside them says why.
"""

from typing import Literal

from cxr_hvd.experiment.comparison import Estimate, JudgedNetwork, LabelDifference, PairedEstimate
from cxr_hvd.record import Record


class AcrossSetUp(Record):
    """A set-up that was judged across sites."""

    name: str
    experiment: str
    seeds: tuple[int, ...]


class AcrossLabel(Record):
    """One label of a set-up at one site; None where fewer than 10 patients have it, or have it not."""

    label: str
    num_studies: int | None
    num_present: int | None
    auroc: Estimate


class AcrossResult(Record):
    """A set-up on one site's test studies, by the network that the site uses; or in the mean of the sites.

    Attributes:
        mean_over: the labels; None in a mean of sites, where each site has its own.
    """

    experiment: str
    site: str
    num_studies: int
    num_patients: int
    mean_over: tuple[str, ...] | None
    macro_auroc: Estimate
    mean_accuracy: Estimate
    mean_brier: Estimate
    labels: tuple[AcrossLabel, ...]


class AcrossDifference(Record):
    """How much set-up `a` is above `b` at a site, or in the mean of the sites, by pairs of seeds."""

    a: str
    b: str
    site: str
    macro_auroc: PairedEstimate
    mean_accuracy: PairedEstimate
    mean_brier: PairedEstimate
    labels: tuple[LabelDifference, ...]


class AcrossHistogram(Record):
    """Probabilities of one network at the site that uses it; see `record.Histogram`."""

    experiment: str
    seed: int
    site: str
    label: str
    present: tuple[int, ...]
    absent: tuple[int, ...]


class AcrossComparison(Record):
    """All that results across sites say of their set-ups."""

    across_schema: Literal[1] = 1
    tool: str
    checkpoint: str
    label_names: tuple[str, ...]
    experiments: tuple[AcrossSetUp, ...]
    results: tuple[AcrossResult, ...]
    differences: tuple[AcrossDifference, ...]
    matrix: tuple[JudgedNetwork, ...]
    histograms: tuple[AcrossHistogram, ...]
