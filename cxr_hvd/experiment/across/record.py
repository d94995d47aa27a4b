"""The record of results across sites, `across.json`: what each site tells of all networks, in sums over patients.

Every rank makes the same of what all sites send, so that every site has the same file. Tables are made of it
(`comparison`); from it follow differences of any two networks with intervals over patients.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from cxr_hvd.config.schema import ExperimentName
from cxr_hvd.config.sections import SiteName
from cxr_hvd.errors import CheckpointError
from cxr_hvd.experiment.scores import COMMON
from cxr_hvd.record import Count, Finite, Name, Record, first_problem, read_record
from cxr_hvd.stats.clustered import NUM_BINS

ACROSS = "across.json"
MAX_BYTES = 1 << 28

Bins = Annotated[tuple[Count, ...], Field(min_length=NUM_BINS, max_length=NUM_BINS)]


class NetworkName(Record):
    """One network of a release.

    Attributes:
        setup: name of its set-up: the folder above `seed-S`, or the run's own.
        network: the site whose network it is; `common` where all sites have the same.
        step: after how many steps it is judged.
        config_sha256: of what all sites have alike in its run's config.
        shared_sha256: of the tensors that all sites have alike.
    """

    setup: Name
    experiment: ExperimentName
    seed: Count
    network: SiteName
    step: Count
    config_sha256: Name
    shared_sha256: Name

    def __str__(self) -> str:
        return f"{self.setup} seed {self.seed} {self.network}"


class JointNumbers(Record):
    """One number of several networks on one site's patients, with its covariance over them."""

    values: tuple[Finite, ...]
    covariance: tuple[tuple[Finite, ...], ...]


class LabelSummary(Record):
    """One label at one site; all None where fewer than 10 patients have it, or have it not."""

    label: Name
    num_studies: Count | None = None
    num_present: Count | None = None
    auroc: JointNumbers | None = None


class Histogram(Record):
    """Probabilities of the studies with a label and without, in 20 equal bins, for drawing.

    A count stands at the last bin of its cell; cells of fewer than 10 patients are merged with the next.
    """

    network: Count
    label: Name
    present: Bins
    absent: Bins


class SiteSummary(Record):
    """What one site's test studies say of the networks that were judged there.

    Attributes:
        networks: places in the list of all networks; all numbers are in this order.
        mean_over: the labels that means are over: 10 patients have them, and 10 have them not; all None without.
    """

    site: SiteName
    num_studies: Count
    num_patients: Count
    networks: tuple[Count, ...]
    mean_over: tuple[Name, ...]
    macro_auroc: JointNumbers | None
    mean_accuracy: JointNumbers | None
    mean_brier: JointNumbers | None
    labels: tuple[LabelSummary, ...]
    histograms: tuple[Histogram, ...]


class Across(Record):
    """The results of several runs on the test studies of all their sites.

    Attributes:
        checkpoint: `latest` or `best`.
        networks: all networks, by set-up, seed and site.
    """

    across_schema: Literal[1] = 1
    tool: Name
    checkpoint: Name
    label_names: tuple[Name, ...]
    networks: tuple[NetworkName, ...]
    sites: tuple[SiteSummary, ...]

    @model_validator(mode="after")
    def _check_places(self) -> Self:
        for site in self.sites:
            drawn = (histogram.network for histogram in site.histograms)
            if any(place >= len(self.networks) for place in (*site.networks, *drawn)):
                raise ValueError("expected places in the list of networks")
            names = {str(self.networks[place]) for place in site.networks}
            for one in self.networks:
                if names.isdisjoint(f"{one.setup} seed {one.seed} {owner}" for owner in (site.site, COMMON)):
                    raise ValueError("expected for each set-up and seed the network that the site uses")
            if tuple(label.label for label in site.labels) != self.label_names:
                raise ValueError("expected every label in order")
            estimates = (site.macro_auroc, site.mean_accuracy, site.mean_brier)
            for numbers in (*estimates, *(label.auroc for label in site.labels)):
                if numbers and {len(numbers.values), *map(len, numbers.covariance)} != {len(site.networks)}:
                    raise ValueError("expected one number of each network, and their covariance")
                if numbers and len(numbers.covariance) != len(site.networks):
                    raise ValueError("expected a square covariance")
        return self


def read_across(path: Path) -> Across:
    """Read an `across.json`.

    Raises:
        CheckpointError: it is damaged, or not of this form.
    """
    try:
        return read_record(path, Across, MAX_BYTES)
    except ValidationError as error:
        problem = first_problem(error)
    except (OSError, ValueError) as error:
        problem = type(error).__name__
    raise CheckpointError(
        f"{path}: expected results across sites, found none to read ({problem}); make them with "
        "cxr-hvd evaluate RUN... --across-sites"
    )
