"""What is in a study file, and how far apart two are: counts and shares, never a study or a patient."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_hvd.study.layout import Split, View, image_digest
from cxr_hvd.study.study_file import StudyFile


def describe(path: Path) -> dict[str, Any]:
    """Return the counts of a study file as plain values, for JSON and for `table`.

    Raises:
        StudyFileError: the file is refused.
    """
    with StudyFile(path) as file:
        header, digest = file.header, file.digest
        num_images, labels_NL, splits, patients = file.num_images, file.labels, file.splits, file.patient_ids
        used = np.arange(file.views.shape[1]) < num_images[:, None]
        views = Counter(file.views[used].tolist())
        one_shade = one_shade_digests(header.image_size)
        num_one_shade = sum(digest.tobytes() in one_shade for digest in file.digests)
    counts_of_label: dict[str, dict[str, Any]] = {
        name: {
            "present": int((labels_NL[:, column] == 1).sum()),
            "absent": int((labels_NL[:, column] == 0).sum()),
            "uncertain": int((labels_NL[:, column] == -1).sum()),
            "blank": int(np.isnan(labels_NL[:, column]).sum()),
        }
        for column, name in enumerate(header.label_names)
    }
    for counts in counts_of_label.values():
        num_assessed = counts["present"] + counts["absent"]
        counts["prevalence"] = counts["present"] / num_assessed if num_assessed else None
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        **{name: value for name, value in vars(header).items() if name != "label_names"},
        "digest": digest,
        "studies": len(num_images),
        "images": int(num_images.sum(dtype=np.int64)),
        "one_shade": num_one_shade,
        "splits": {
            split.name.lower(): {
                "patients": len(set(patients[splits == split])),
                "studies": int((splits == split).sum()),
                "images": int(num_images[splits == split].sum(dtype=np.int64)),
            }
            for split in Split
        },
        "images_per_study": {str(num): count for num, count in sorted(Counter(num_images.tolist()).items())},
        "views": {view.name: views[view] for view in View if views[view]},
        "labels": counts_of_label,
    }


def one_shade_digests(size: int) -> set[bytes]:
    """Return the digests of all images of one shade: blank films, which show nothing."""
    return {image_digest(np.full((size, size), shade, np.uint8)) for shade in range(256)}


def share(prevalence: float | None) -> str:
    """Return the share of present among present and absent as text, the same wherever it is shown."""
    return "never assessed" if prevalence is None else f"{prevalence:.1%}"


def print_tables(described: dict[str, Any]) -> None:
    """Print what `describe` returned as tables on standard output."""
    from rich.table import Table

    from cxr_hvd.console import Console

    console = Console(highlight=False)
    console.print(
        f"{described['file']}: site {described['site']}, source {described['source']}, "
        f"{described['studies']:,} studies, {described['images']:,} images of {described['image_size']} px, "
        f"{described['bytes'] / 1e6:,.1f} MB",
        soft_wrap=True,
    )
    console.print(
        f"pixels {described['pixels']}, seed {described['seed']}, created {described['created']}, "
        f"digest {described['digest'][:16]}",
        soft_wrap=True,
    )
    if shades := described.get("shades"):
        console.print(
            f"gray shades of a sample: mean {shades['mean']:.0f}, standard deviation {shades['std']:.0f}, "
            f"5th, 50th and 95th percentile {shades['p5']}, {shades['p50']}, {shades['p95']}, "
            f"{shades['black']:.1%} black, {shades['white']:.1%} white",
            soft_wrap=True,
        )
    if described["one_shade"]:
        console.print(f"films of one shade, which show nothing: {described['one_shade']:,} images")
    splits = Table("split", *[_right(name) for name in ("patients", "studies", "images")])
    for split, counts in described["splits"].items():
        splits.add_row(split, *[f"{count:,}" for count in counts.values()])
    console.print(splits)
    console.print(
        "images per study: " + ", ".join(f"{n}: {c:,}" for n, c in described["images_per_study"].items())
    )
    console.print("views: " + ", ".join(f"{view} {count:,}" for view, count in described["views"].items()))
    labels = Table(
        "label", *[_right(name) for name in ("present", "absent", "uncertain", "blank", "present of assessed")]
    )
    for name, counts in described["labels"].items():
        numbers = [f"{counts[state]:,}" for state in ("present", "absent", "uncertain", "blank")]
        labels.add_row(name, *numbers, share(counts["prevalence"]))
    console.print(labels)


def print_distances(apart: Sequence[dict[str, Any]]) -> None:
    """Print what `distances.site_distances` returned as tables on standard output."""
    from rich.table import Table

    from cxr_hvd.console import Console

    console = Console(highlight=False)
    for pair in apart:
        one, other = pair["files"]
        console.print(f"how far apart: A {one}, B {other}", soft_wrap=True)
        table = Table("label", *[_right(name) for name in ("present in A", "in B", "JS bits", "by chance")])
        for name, label in pair["labels"].items():
            shares = map(share, label["prevalence"])
            table.add_row(name, *shares, f"{label['js_bits']:.4f}", f"{label['chance']:.4f}")
        if pair["labels"]:
            total = pair["labels_total"]
            table.add_section()
            table.add_row("mean", "", "", f"{total['js_bits']:.4f}", f"{total['chance']:.4f}")
        console.print(table)
        if (shades := pair["pixels"]) is None:
            console.print(f"pixels: {not_compared(pair)}", soft_wrap=True)
            continue
        console.print(
            f"pixels: Wasserstein {shades['wasserstein_shades']:.1f} of 256 shades (by chance "
            f"{shades['wasserstein_chance']:.1f}), JS {shades['js_bits']:.4f} bits (by chance "
            f"{shades['js_chance']:.4f})"
        )


def not_compared(pair: dict[str, Any]) -> str:
    """Say why the pixels of two files are not compared."""
    one, other = pair["pipelines"]
    return (
        f"not compared: the pipeline of A is {one}, that of B {other}. A network tells such pixels apart by how "
        "they were made; do not train on both, write them with one --pixels"
    )


def shade_statistics(shades_S: NDArray[np.float64]) -> dict[str, float]:
    """Return mean, standard deviation, percentiles and the shares of black and white of a histogram (256,)."""
    shares = shades_S / shades_S.sum()
    mean = float(shares @ np.arange(len(shares)))
    found = {
        "mean": mean,
        "std": float(np.sqrt(shares @ (np.arange(len(shares)) - mean) ** 2)),
        **{f"p{part}": int(np.searchsorted(np.cumsum(shares), part / 100)) for part in (5, 50, 95)},
        "black": float(shares[0]),
        "white": float(shares[-1]),
    }
    return {name: round(value, 4) for name, value in found.items()}


def _right(name: str) -> Any:
    from rich.table import Column

    return Column(name, justify="right")
