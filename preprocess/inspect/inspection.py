"""Inspect study files: what each holds, and how far apart each two are."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from preprocess.inspect.distances import SiteDistance, SiteSample, load_sample, site_distances
from preprocess.inspect.summary import FileSummary, ShadeStatistics, shade_statistics, summarize


@dataclass(frozen=True)
class InspectedFile:
    """One study file: its counts, a sample of its pixels, and the gray shades of the sample."""

    path: Path
    summary: FileSummary
    sample: SiteSample
    shades: ShadeStatistics


@dataclass(frozen=True)
class Inspection:
    """Study files, and the distances of each two of them."""

    files: tuple[InspectedFile, ...]
    distances: tuple[SiteDistance, ...]

    def as_json(self) -> dict[str, Any]:
        """Return plain values, as `inspect --json` prints them."""
        return {
            "files": [{**asdict(file.summary), "shades": asdict(file.shades)} for file in self.files],
            "distances": [asdict(distance) for distance in self.distances],
        }


def inspect_files(paths: Sequence[Path], seed: int = 0) -> Inspection:
    """Read study files and compare them.

    Args:
        paths: the study files. seed: of the sample of studies.

    Raises:
        StudyFileError: a file is refused.
    """
    samples = [load_sample(path, seed) for path in paths]
    files = tuple(
        InspectedFile(path, summarize(path), sample, shade_statistics(sample.shades_MS.mean(axis=0)))
        for path, sample in zip(paths, samples, strict=True)
    )
    return Inspection(files, tuple(site_distances(samples, seed)))
