"""The record of a comparison: what `compare` builds, the report shows, and `comparison.json` holds.

Numbers are None where they are undefined, and a `note` beside them says why. All means of one place are over the
labels in its `mean_over`, those with both classes in the studies; those in `frequent` beside them are over the
labels with at least 10 present and 10 absent studies.
"""

import json
from typing import Final, Literal

from pydantic import Field

from cxr_hvd.experiment.clinical_record import (
    JudgedSubgroup,
    JudgedThreshold,
    PrecisionCurve,
)
from cxr_hvd.experiment.estimates import Estimate as Estimate
from cxr_hvd.experiment.estimates import PairedEstimate as PairedEstimate
from cxr_hvd.experiment.estimates import RocCurve as RocCurve
from cxr_hvd.experiment.estimates import SeedMean as SeedMean
from cxr_hvd.record import Record
from cxr_hvd.study.flow import Flow

SCHEMA: Final = 3
READABLE: Final = (2, 3)  # 2 has no operating points, recalibration, precision curves, subgroups and flow


class BlockScope(Record):
    """The tensors of one scope in one block of the network."""

    block: str
    scope: str
    num_tensors: int | None = None
    num_parameters: int | None
    bytes_per_step: float | None


class RunCommands(Record):
    """The commands that make a run again, after a launcher such as `horovodrun -np 2`."""

    seed: int
    train: str
    score: str


class SetUp(Record):
    """A set-up: what it is, what it sends, how long its runs took.

    Attributes:
        experiment: A, B, C or D.
        trains_on, private: in words.
        bytes_per_exchange, bytes_per_run: what one rank hands over.
        seconds, studies_per_s: of each run that tells.
    """

    name: str
    experiment: str
    seeds: tuple[int, ...]
    trains_on: str
    private: str = Field(alias="private_said")
    batchnorm: str
    exchange: str
    every: int
    wire: str
    num_steps: int
    batch_size: int
    num_ranks: int
    image_size: int
    blocks: tuple[BlockScope, ...]
    bytes_per_exchange: int
    bytes_per_run: int
    seconds: tuple[float, ...]
    studies_per_s: tuple[float, ...]
    config_sha256: tuple[str, ...]
    commands: tuple[RunCommands, ...]


class LabelCounts(Record):
    """How often a label is present, absent, uncertain and blank at a site, by split."""

    label: str
    present: dict[str, int]
    absent: dict[str, int]
    uncertain: dict[str, int]
    blank: dict[str, int]


class SiteDescription(Record):
    """A site's study file; all but the first three only where the file is here.

    Attributes:
        note: why nothing else is known, or that the institution took no part.
        num_studies, num_patients, num_images: by split.
        images_per_study: number of studies, by number of images.
        groups: number of studies by kind (`view`, `sex`, `age`), group and split.
        flow: what was left out on the way from the source; None where the file does not say.
    """

    name: str
    data_sha256: str
    note: str | None
    source: str | None = None
    pixels: str | None = None
    image_size: int | None = None
    num_studies: dict[str, int] = Field(default_factory=dict)
    num_patients: dict[str, int] = Field(default_factory=dict)
    num_images: dict[str, int] = Field(default_factory=dict)
    images_per_study: dict[str, int] = Field(default_factory=dict)
    labels: tuple[LabelCounts, ...] = ()
    groups: dict[str, dict[str, dict[str, int]]] = Field(default_factory=dict)
    flow: Flow | None = None


class JudgedLabel(Record):
    """One label of a set-up on one site's test studies.

    Attributes:
        calibration: mean probability, share present and number of studies of each bin that holds one.
        at_threshold, precision, calibration_intercept, calibration_slope: earlier files have none.
    """

    label: str
    num_studies: int
    num_present: int
    note: str | None
    auroc: Estimate
    all_negative_accuracy: float | None
    average_precision: SeedMean
    accuracy: SeedMean
    accuracy_at_threshold: SeedMean
    brier: SeedMean
    sensitivity: SeedMean
    expected_calibration_error: SeedMean
    roc: RocCurve | None
    calibration: tuple[tuple[float, float, int], ...]
    at_threshold: JudgedThreshold | None = None
    precision: PrecisionCurve | None = None
    calibration_intercept: Estimate | None = None
    calibration_slope: Estimate | None = None


class MeanEstimates(Record):
    """Means over one set of labels."""

    mean_over: tuple[str, ...]
    macro_auroc: Estimate
    mean_accuracy: Estimate
    mean_accuracy_at_threshold: Estimate
    macro_average_precision: SeedMean
    mean_brier: SeedMean
    mean_sensitivity: SeedMean
    mean_all_negative_accuracy: float | None


class JudgedSetUp(MeanEstimates):
    """A set-up on one site's test studies, by the network that the site uses."""

    experiment: str
    site: str
    network: str
    num_studies: int
    num_patients: int
    frequent: MeanEstimates
    labels: tuple[JudgedLabel, ...]
    subgroups: tuple[JudgedSubgroup, ...] = ()


class JudgedNetwork(Record):
    """One network on one institution's test studies."""

    experiment: str
    network: str
    site: str
    macro_auroc: SeedMean


class JudgedPolicy(Record):
    """What an institution without private blocks of its own could use of a set-up's networks."""

    experiment: str
    site: str
    policy: str
    macro_auroc: Estimate
    mean_accuracy: Estimate


class PairedMeans(Record):
    """Differences of means over one set of labels.

    Attributes:
        mean_over: the labels; None in a mean of sites, where each site has its own.
        macro_auroc, mean_accuracy: with Student's t, which holds with few seeds.
        macro_auroc_bootstrap, mean_accuracy_bootstrap: by resampling; earlier files have none.
    """

    mean_over: tuple[str, ...] | None
    macro_auroc: PairedEstimate
    macro_auroc_bootstrap: PairedEstimate | None = None
    mean_accuracy: PairedEstimate
    mean_accuracy_bootstrap: PairedEstimate | None = None


class LabelDifference(Record):
    """DeLong's difference in one label's AUROC."""

    label: str
    auroc: PairedEstimate


class SetUpDifference(PairedMeans):
    """How much set-up `a` is above `b` on the studies of one split of a site, by pairs of seeds."""

    a: str
    b: str
    site: str
    split: str
    frequent: PairedMeans
    labels: tuple[LabelDifference, ...]


class LossCurve(Record):
    """The training loss of one site in one run, smoothed and thinned."""

    experiment: str
    seed: int
    site: str
    steps: tuple[int, ...]
    loss: tuple[float | None, ...]


class Comparison(Record):
    """All that is known of the set-ups that are compared.

    Attributes:
        experiments: the set-ups.
        results: each set-up on each site's test studies.
        matrix: every network on every institution's test studies.
        policies: what an institution that took no part could do with a set-up's networks.
        notes: what a reader has to know first.
    """

    schema_number: Literal[2, 3] = Field(alias="schema")
    tool: str
    command: str | None
    num_resamples: int
    label_names: tuple[str, ...]
    sites: tuple[SiteDescription, ...]
    experiments: tuple[SetUp, ...]
    results: tuple[JudgedSetUp, ...]
    matrix: tuple[JudgedNetwork, ...]
    policies: tuple[JudgedPolicy, ...]
    differences: tuple[SetUpDifference, ...]
    curves: tuple[LossCurve, ...]
    notes: tuple[str, ...]

    @property
    def site_names(self) -> list[str]:
        """Return the sites whose test studies were judged, in the comparison's order."""
        judged = dict.fromkeys(result.site for result in self.results)
        described = [site.name for site in self.sites if site.name in judged]
        return list(dict.fromkeys([*described, *judged]))

    @property
    def institutions(self) -> list[str]:
        """Return where networks were tried: the sites that trained, then those that took no part."""
        tried = (row.site for rows in (self.matrix, self.policies) for row in rows)
        return list(dict.fromkeys([*self.site_names, *tried]))

    def as_json(self) -> str:
        """Return what `comparison.json` holds."""
        values = self.model_dump(mode="json", by_alias=True, exclude_unset=True)
        return json.dumps(values, allow_nan=False)
