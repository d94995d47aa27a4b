"""Find images that occur twice, within a study file and across files: most often one patient at two institutions.

Two images are the same where their pixels are, to the last bit, in the study file: the SHA-256 that stands in
each file is compared, no pixel is read and no identifier is needed. So files must come from one pixel pipeline.
A copy that was scaled or compressed once more on its way between the institutions is not found. Images of one
shade (blank films) tell nobody apart and are passed over.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
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


class Overlap(NamedTuple):
    """How many images, studies and patients of one file another file has too."""

    images: int
    studies: int
    patients: int


@dataclass(frozen=True)
class Duplicates:
    """Images that occur more than once in study files.

    Attributes:
        files: the study files. num_images: of each.
        places: for each image that occurs more than once all its places; by first place.
        num_blank: images of one shade, passed over.
        overlaps: for each pair of files (i <= j) what of i is in j too; for i = j: what occurs more than once.
        num_leaks: images of a training split that a validation or test split holds, too.
    """

    files: tuple[str, ...]
    num_images: tuple[int, ...]
    places: tuple[tuple[Place, ...], ...]
    num_blank: int
    overlaps: dict[tuple[int, int], Overlap]
    num_leaks: int

    def as_json(self) -> dict[str, Any]:
        """Return plain values, as `compare --json` prints them."""
        return {
            "files": list(self.files),
            "images": list(self.num_images),
            "blank": self.num_blank,
            "leaks": self.num_leaks,
            "overlaps": [{"files": list(pair), **overlap._asdict()} for pair, overlap in self.overlaps.items()],
            "duplicates": [
                [{**place._asdict(), "split": place.split.name.lower()} for place in places]
                for places in self.places
            ],
        }


def find_duplicates(paths: Sequence[Path]) -> Duplicates:
    """Compare the image digests of study files with each other, and within each file.

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
    duplicates = tuple(sorted(tuple(repeated) for repeated in places.values() if len(repeated) > 1))
    return Duplicates(
        files=tuple(map(str, paths)),
        num_images=tuple(num_images),
        places=duplicates,
        num_blank=num_blank,
        overlaps=_overlaps(duplicates, patients),
        num_leaks=sum(len({place.split is Split.TRAIN for place in repeated}) == 2 for repeated in duplicates),
    )


def _overlaps(
    duplicates: Sequence[Sequence[Place]], patients: Sequence[Sequence[str]]
) -> dict[tuple[int, int], Overlap]:
    shared: dict[tuple[int, int], set[Place]] = defaultdict(set)
    for repeated in duplicates:
        for place, other in permutations(repeated, 2):
            if place.file <= other.file:
                shared[place.file, other.file].add(place)
    return {
        (file, other): Overlap(
            images=len(places),
            studies=len({place.study for place in places}),
            patients=len({patients[file][place.study] for place in places}),
        )
        for (file, other), places in sorted(shared.items())
    }


def print_duplicates(duplicates: Duplicates) -> None:
    """Print duplicates as tables on standard output: files and indices, never an identifier."""
    from rich.table import Column, Table

    from cxr_hvd.console import Console

    console = Console(highlight=False)
    names = [chr(ord("A") + number % 26) for number in range(len(duplicates.files))]
    for name, file, num in zip(names, duplicates.files, duplicates.num_images, strict=True):
        console.print(f"{name}: {file}: {num:,} images", soft_wrap=True)
    if duplicates.num_blank:
        console.print(f"passed over: {duplicates.num_blank:,} images of one shade")
    if not duplicates.places:
        console.print("no image occurs twice")
        return
    table = Table("where", *[Column(field, justify="right") for field in Overlap._fields])
    for (one, other), overlap in duplicates.overlaps.items():
        where = f"twice in {names[one]}" if one == other else f"in {names[one]} and {names[other]}"
        table.add_row(where, *[f"{count:,}" for count in overlap])
    console.print(table)
    console.print(f"{duplicates.num_leaks:,} images are in a training split and in a validation or test split")
    for places in duplicates.places[:_MAX_ROWS]:
        texts = (f"{names[p.file]} study {p.study} image {p.image} ({p.split.name.lower()})" for p in places)
        console.print("  " + " = ".join(texts), soft_wrap=True)
    if len(duplicates.places) > _MAX_ROWS:
        console.print(f"  ... and {len(duplicates.places) - _MAX_ROWS:,} more; --json prints all")
