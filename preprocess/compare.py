"""Images that occur twice, within a study file and across files: one patient at two institutions, most often.

Two images are the same where their pixels are, to the last bit, in the study file: the SHA-256 that stands in
each file is compared, no pixel is read and no identifier is needed. So files must come from one pixel pipeline.
A copy that was scaled or compressed once more on its way between the institutions is not found. Images of one
shade (blank films) tell nobody apart and are passed over.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cxr_hvd.errors import DataError
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile
from preprocess.inspect.summary import one_shade_digests

_MAX_ROWS = 40


class Place(NamedTuple):
    """Where an image stands: number of the file, index of the study, position in the study, split."""

    file: int
    study: int
    image: int
    split: Split


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        files: the study files. num_images: of each.
        duplicates: for each image that occurs more than once all its places; by first place.
        num_blank: images of one shade, passed over.
        overlaps: for each pair of files (i <= j) the images, the studies of i and the patients of i that j has
            too; for i = j: that occur more than once.
        num_leaks: images of a training split that a validation or test split holds, too.
    """

    files: tuple[str, ...]
    num_images: tuple[int, ...]
    duplicates: tuple[tuple[Place, ...], ...]
    num_blank: int
    overlaps: dict[tuple[int, int], tuple[int, int, int]]
    num_leaks: int


def compare(paths: Sequence[Path]) -> Comparison:
    """Compare the image digests of study files with each other, and of each file within itself.

    Raises:
        DataError: the files were made by different pixel pipelines, so that equal images differ.
        StudyFileError: a file is refused.
    """
    places: dict[bytes, list[Place]] = defaultdict(list)
    patients: list[list[str]] = []
    num_images: list[int] = []
    pipelines: set[tuple[str, int]] = set()
    blank: set[bytes] = set()
    num_blank = 0
    for number, path in enumerate(paths):
        with StudyFile(path) as file:
            pipelines.add((file.header.pixels, file.header.image_size))
            if len(pipelines) > 1:
                raise DataError(
                    f"{path}: expected the pixel pipeline of {paths[0]}, found another "
                    f"({' and '.join(f'{name} at {size} px' for name, size in sorted(pipelines))}); "
                    "write both with one --pixels"
                )
            blank = blank or one_shade_digests(file.header.image_size)
            patients.append(file.patient_ids.tolist())
            num_images.append(int(file.num_images.sum(dtype=np.int64)))
            digests = iter(file.digests)
            for study, num in enumerate(file.num_images.tolist()):
                split = Split(int(file.splits[study]))
                for image in range(num):
                    digest = next(digests).tobytes()
                    if digest in blank:
                        num_blank += 1
                    else:
                        places[digest].append(Place(number, study, image, split))
    duplicates = tuple(sorted(tuple(found) for found in places.values() if len(found) > 1))
    return Comparison(
        files=tuple(map(str, paths)),
        num_images=tuple(num_images),
        duplicates=duplicates,
        num_blank=num_blank,
        overlaps=_overlaps(duplicates, patients),
        num_leaks=sum(
            any(place.split is Split.TRAIN for place in found)
            and any(place.split is not Split.TRAIN for place in found)
            for found in duplicates
        ),
    )


def _overlaps(
    duplicates: Sequence[Sequence[Place]], patients: Sequence[Sequence[str]]
) -> dict[tuple[int, int], tuple[int, int, int]]:
    shared: dict[tuple[int, int], set[Place]] = defaultdict(set)
    for found in duplicates:
        for place in found:
            for other in found:
                if place != other and place.file <= other.file:
                    shared[place.file, other.file].add(place)
    return {
        pair: (
            len(held),
            len({place.study for place in held}),
            len({patients[pair[0]][place.study] for place in held}),
        )
        for pair, held in sorted(shared.items())
    }


def as_values(found: Comparison) -> dict[str, Any]:
    """Return a comparison as plain values, for JSON."""
    return {
        "files": list(found.files),
        "images": list(found.num_images),
        "blank": found.num_blank,
        "leaks": found.num_leaks,
        "overlaps": [
            {"files": list(pair), "images": images, "studies": studies, "patients": patients}
            for pair, (images, studies, patients) in found.overlaps.items()
        ],
        "duplicates": [
            [{"file": p.file, "study": p.study, "image": p.image, "split": p.split.name.lower()} for p in places]
            for places in found.duplicates
        ],
    }


def print_comparison(found: Comparison) -> None:
    """Print what was found as tables on standard output: files and indices, never an identifier."""
    from rich.table import Column, Table

    from cxr_hvd.console import Console

    console = Console(highlight=False)
    names = [chr(ord("A") + number % 26) for number in range(len(found.files))]
    for name, file, num in zip(names, found.files, found.num_images, strict=True):
        console.print(f"{name}: {file}: {num:,} images", soft_wrap=True)
    if found.num_blank:
        console.print(f"passed over: {found.num_blank:,} images of one shade")
    if not found.duplicates:
        console.print("no image occurs twice")
        return
    table = Table("where", *[Column(what, justify="right") for what in ("images", "studies", "patients")])
    for (one, other), counts in found.overlaps.items():
        where = f"twice in {names[one]}" if one == other else f"in {names[one]} and {names[other]}"
        table.add_row(where, *[f"{count:,}" for count in counts])
    console.print(table)
    console.print(f"{found.num_leaks:,} images are in a training split and in a validation or test split")
    for places in found.duplicates[:_MAX_ROWS]:
        said = (f"{names[p.file]} study {p.study} image {p.image} ({p.split.name.lower()})" for p in places)
        console.print("  " + " = ".join(said), soft_wrap=True)
    if len(found.duplicates) > _MAX_ROWS:
        console.print(f"  ... and {len(found.duplicates) - _MAX_ROWS:,} more; --json prints all")
