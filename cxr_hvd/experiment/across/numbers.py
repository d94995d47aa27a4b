"""Results across sites as the numbers that travel: one row a site, of a length and order that all ranks know.

Owns the order, and the judgement of what another site sends: numbers that no patients can give are refused. A
label that may not be told has NaN in its place, as has a place that a site with fewer networks does not need.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_hvd.experiment.across.record import Histogram, JointNumbers, LabelSummary, SiteSummary
from cxr_hvd.record import MAX_COUNT
from cxr_hvd.stats.clustered import NUM_BINS
from cxr_hvd.stats.metrics import MIN_OF_CLASS
from cxr_hvd.stats.sample import Floats

MEANS = ("macro_auroc", "mean_accuracy", "mean_brier")
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Layout:
    """What all ranks know of the numbers that every site sends.

    Attributes:
        label_names: the labels, in order.
        networks: for each site the places of the networks that it judges.
        drawn: for each site the places of those whose histograms it sends.
    """

    label_names: tuple[str, ...]
    networks: dict[str, tuple[int, ...]]
    drawn: dict[str, tuple[int, ...]]

    @property
    def length(self) -> int:
        """How many numbers a site sends: the same for all."""
        return max(map(self.length_of, self.networks))

    def length_of(self, site: str) -> int:
        """Return how many of them a site needs."""
        num_labels, num_estimates = len(self.label_names), len(MEANS) + len(self.label_names)
        num_histograms = 2 * num_labels * len(self.drawn[site])
        return 2 + 2 * num_labels + num_estimates * self._size_of(site) + NUM_BINS * num_histograms

    def write(self, summary: SiteSummary) -> NDArray[np.float64]:
        """Return a site's row (length,) of numbers."""
        labels, row = summary.labels, [float(summary.num_studies), float(summary.num_patients)]
        counts = (count for label in labels for count in (label.num_studies, label.num_present))
        row += [math.nan if count is None else float(count) for count in counts]
        for estimate in (*(getattr(summary, name) for name in MEANS), *(label.auroc for label in labels)):
            row += _as_row(estimate) if estimate else [math.nan] * self._size_of(summary.site)
        for histogram in summary.histograms:
            row += [*histogram.present, *histogram.absent]
        return np.pad(np.array(row), (0, self.length - len(row)), constant_values=math.nan)

    def read(self, site: str, row: Sequence[float]) -> SiteSummary:
        """Return what a site's row says.

        Raises:
            ValueError: no patients can give such numbers.
        """
        if len(row) != self.length:
            raise ValueError(f"expected {self.length} numbers, found {len(row)}")
        rest = row[self.length_of(site) :]
        if not all(map(math.isnan, rest)):
            raise ValueError("expected nothing after a site's own numbers")
        numbers = iter(row)
        num_studies, num_patients = _read_count(next(numbers)), _read_count(next(numbers))
        if num_patients > num_studies:
            raise ValueError("expected no more patients than studies")
        counts = [_read_label_counts(next(numbers), next(numbers), num_studies) for _ in self.label_names]
        mean_over = [name for name, count in zip(self.label_names, counts, strict=True) if count]
        means = {name: self._read_estimate(site, numbers, bool(mean_over)) for name in MEANS}
        aurocs = [self._read_estimate(site, numbers, bool(count)) for count in counts]
        labels = tuple(
            LabelSummary(label=name, num_studies=count[0], num_present=count[1], auroc=auroc)
            if count
            else LabelSummary(label=name)
            for name, count, auroc in zip(self.label_names, counts, aurocs, strict=True)
        )
        histograms = tuple(
            Histogram(
                network=place,
                label=label.label,
                present=_read_bins(numbers, label.num_present or 0),
                absent=_read_bins(numbers, (label.num_studies or 0) - (label.num_present or 0)),
            )
            for place in self.drawn[site]
            for label in labels
        )
        return SiteSummary(
            site=site,
            num_studies=num_studies,
            num_patients=num_patients,
            networks=self.networks[site],
            mean_over=tuple(mean_over),
            **means,
            labels=labels,
            histograms=histograms,
        )

    def _size_of(self, site: str) -> int:
        num_networks = len(self.networks[site])
        return num_networks + num_networks * (num_networks + 1) // 2

    def _read_estimate(self, site: str, numbers: Iterator[float], is_there: bool) -> JointNumbers | None:
        row = np.array([next(numbers) for _ in range(self._size_of(site))])
        if not is_there:
            if not np.isnan(row).all():
                raise ValueError("expected nothing of a label of few patients")
            return None
        num_networks = len(self.networks[site])
        values_K, covariance_KK = row[:num_networks], np.zeros((num_networks, num_networks))
        rows, columns = np.tril_indices(num_networks)
        covariance_KK[rows, columns] = covariance_KK[columns, rows] = row[num_networks:]
        if not (np.isfinite(row).all() and (values_K >= 0).all() and (values_K <= 1).all()):
            raise ValueError("expected numbers from 0 to 1 and their covariance, found others")
        if (np.diag(covariance_KK) < 0).any() or np.abs(covariance_KK).max() > 1:
            raise ValueError("expected a covariance of numbers from 0 to 1, found a variance below 0 or above 1")
        if np.linalg.eigvalsh(covariance_KK).min() < -TOLERANCE * max(np.trace(covariance_KK), TOLERANCE):
            raise ValueError("expected a covariance, found one with a combination of negative variance")
        return joint_numbers(values_K, covariance_KK)


def joint_numbers(values_K: Floats, covariance_KK: Floats) -> JointNumbers:
    """Return an estimate as a record holds it, symmetric to the last bit."""
    lower_KK = np.tril(covariance_KK)
    symmetric_KK = lower_KK + np.tril(covariance_KK, -1).T
    return JointNumbers(
        values=tuple(values_K.tolist()), covariance=tuple(tuple(row) for row in symmetric_KK.tolist())
    )


def _as_row(estimate: JointNumbers) -> list[float]:
    lower: Any = np.array(estimate.covariance)[np.tril_indices(len(estimate.values))]
    return [*estimate.values, *lower.tolist()]


def _read_count(number: float) -> int:
    if not (0 <= number <= MAX_COUNT and number == int(number)):
        raise ValueError(f"expected a number of studies or patients, found {number}")
    return int(number)


def _read_label_counts(num_studies: float, num_present: float, num_of_site: int) -> tuple[int, int] | None:
    if math.isnan(num_studies) and math.isnan(num_present):
        return None
    counts = _read_count(num_studies), _read_count(num_present)
    if counts[0] > num_of_site or min(counts[1], counts[0] - counts[1]) < MIN_OF_CLASS:
        raise ValueError(f"expected a label of {MIN_OF_CLASS} present and absent studies or more, found {counts}")
    return counts


def _read_bins(numbers: Iterator[float], num_studies: int) -> tuple[int, ...]:
    counts = tuple(_read_count(next(numbers)) for _ in range(NUM_BINS))
    if sum(counts) != num_studies or any(0 < count < MIN_OF_CLASS for count in counts):
        raise ValueError(f"expected cells of {MIN_OF_CLASS} studies or more, {num_studies} in all")
    return counts
