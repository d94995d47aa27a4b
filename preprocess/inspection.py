"""What is in a study file: counts and prevalences, never a study or a patient; and whether it is undamaged."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cxr_hvd.study.study_file import Split, StudyFile, View


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
    counts_of_label = {
        name: {
            "present": int((labels_NL[:, column] == 1).sum()),
            "absent": int((labels_NL[:, column] == 0).sum()),
            "uncertain": int((labels_NL[:, column] == -1).sum()),
            "blank": int(np.isnan(labels_NL[:, column]).sum()),
        }
        for column, name in enumerate(header.label_names)
    }
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        **{name: value for name, value in vars(header).items() if name != "label_names"},
        "digest": digest,
        "studies": len(num_images),
        "images": int(num_images.sum(dtype=np.int64)),
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


def print_tables(described: dict[str, Any]) -> None:
    """Print what `describe` returned as tables on standard output."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(
        f"[bold]{described['file']}[/bold]: site {described['site']}, source {described['source']}, "
        f"{described['studies']:,} studies, {described['images']:,} images of {described['image_size']} px, "
        f"{described['bytes'] / 1e6:,.1f} MB",
        soft_wrap=True,
    )
    console.print(
        f"pixels {described['pixels']}, seed {described['seed']}, created {described['created']}, "
        f"digest {described['digest'][:16]}",
        soft_wrap=True,
    )
    splits = Table("split", *[_right(name) for name in ("patients", "studies", "images")])
    for split, counts in described["splits"].items():
        splits.add_row(split, *[f"{count:,}" for count in counts.values()])
    console.print(splits)
    console.print(
        "images per study: " + ", ".join(f"{n}: {c:,}" for n, c in described["images_per_study"].items())
    )
    console.print("views: " + ", ".join(f"{view} {count:,}" for view, count in described["views"].items()))
    labels = Table(
        "label", *[_right(name) for name in ("present", "absent", "uncertain", "blank", "present of all")]
    )
    for name, counts in described["labels"].items():
        share = counts["present"] / described["studies"]
        labels.add_row(name, *[f"{count:,}" for count in counts.values()], f"{share:.1%}")
    console.print(labels)


def verify(path: Path, advance: Callable[[int], None]) -> tuple[int, int]:
    """Read every image of a study file and compare it with its digest.

    Args:
        path: the study file; opening it checks its tables.
        advance: called with the number of images of each study that was found whole.

    Returns:
        Numbers of studies and of images.

    Raises:
        StudyFileError: the file is refused, or an image is damaged; the message names the study by its index.
    """
    with StudyFile(path) as file:
        for index in range(len(file)):
            file.check_images(index, file.images(index))
            advance(int(file.num_images[index]))
        return len(file), int(file.num_images.sum(dtype=np.int64))


def _right(name: str) -> Any:
    from rich.table import Column

    return Column(name, justify="right")
