"""Print summaries of study files, and distances between them, as tables on standard output."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from preprocess.inspect.distances import STATES, SiteDistance
from preprocess.inspect.summary import FileSummary, ShadeStatistics

if TYPE_CHECKING:
    from rich.table import Column


def print_summary(summary: FileSummary, shades: ShadeStatistics | None = None) -> None:
    """Print what a study file holds; with the gray shades of a sample, where they are given."""
    from rich.table import Table

    from cxr_hvd.console import Console

    console = Console(highlight=False)
    console.print(
        f"{summary.file}: site {summary.site}, source {summary.source}, {summary.studies:,} studies, "
        f"{summary.images:,} images of {summary.image_size} px, {summary.bytes / 1e6:,.1f} MB",
        soft_wrap=True,
    )
    console.print(
        f"pixels {summary.pixels}, seed {summary.seed}, created {summary.created}, digest {summary.digest[:16]}",
        soft_wrap=True,
    )
    if shades is not None:
        console.print(
            f"gray shades of a sample: mean {shades.mean:.0f}, standard deviation {shades.std:.0f}, "
            f"5th, 50th and 95th percentile {shades.p5}, {shades.p50}, {shades.p95}, "
            f"{shades.black:.1%} black, {shades.white:.1%} white",
            soft_wrap=True,
        )
    if summary.one_shade:
        console.print(f"films of one shade, which show nothing: {summary.one_shade:,} images")
    splits = Table("split", *[_right(name) for name in ("patients", "studies", "images")])
    for name, split in summary.splits.items():
        splits.add_row(name, f"{split.patients:,}", f"{split.studies:,}", f"{split.images:,}")
    console.print(splits)
    console.print("images per study: " + ", ".join(f"{n}: {c:,}" for n, c in summary.images_per_study.items()))
    console.print("views: " + ", ".join(f"{view} {count:,}" for view, count in summary.views.items()))
    for heading, groups in (("sex", summary.sexes), ("age", summary.ages)):
        if groups:
            table = Table(heading, *[_right(split) for split in groups])
            for name in next(iter(groups.values())):
                table.add_row(name, *[f"{counts[name]:,}" for counts in groups.values()])
            console.print(table)
    if not summary.sexes and not summary.ages:
        console.print("sex and age: the file does not say")
    labels = Table("label", *[_right(name) for name in (*STATES, "present of assessed")])
    for name, counts in summary.labels.items():
        numbers = (counts.present, counts.absent, counts.uncertain, counts.blank)
        labels.add_row(name, *[f"{number:,}" for number in numbers], format_prevalence(counts.prevalence))
    console.print(labels)


def print_distances(distances: Sequence[SiteDistance]) -> None:
    """Print how far apart the sites of each pair are."""
    from rich.table import Table

    from cxr_hvd.console import Console

    console = Console(highlight=False)
    for distance in distances:
        console.print(f"how far apart: A {distance.files[0]}, B {distance.files[1]}", soft_wrap=True)
        table = Table("label", *[_right(name) for name in ("present in A", "in B", "JS bits", "by chance")])
        for name, label in distance.labels.items():
            shares = map(format_prevalence, label.prevalence)
            table.add_row(name, *shares, f"{label.js_bits:.4f}", f"{label.chance:.4f}")
        if distance.labels:
            mean = distance.labels_total
            table.add_section()
            table.add_row("mean", "", "", f"{mean.js_bits:.4f}", f"{mean.chance:.4f}")
        console.print(table)
        if (pixels := distance.pixels) is None:
            console.print(f"pixels: {distance.why_no_pixels()}", soft_wrap=True)
            continue
        console.print(
            f"pixels: Wasserstein {pixels.wasserstein_shades:.1f} of 256 shades (by chance "
            f"{pixels.wasserstein_chance:.1f}), JS {pixels.js_bits:.4f} bits (by chance {pixels.js_chance:.4f})"
        )


def format_prevalence(prevalence: float | None) -> str:
    """Return the share of present among present and absent as text, the same wherever it is shown."""
    return "never assessed" if prevalence is None else f"{prevalence:.1%}"


def _right(name: str) -> "Column":
    from rich.table import Column

    return Column(name, justify="right")
