"""Plan a conversion: what the command line asks for, and what follows from it and the tables.

No image is read yet. Every rank makes the plan for itself, and all plans are equal: the digest shows it, and names
the work on the disk. Whatever changes the study file's bytes enters the digest, the time of writing excepted.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cxr_hvd import __version__
from cxr_hvd.errors import DataError, UsageError
from cxr_hvd.study.flow import Flow, StudyCounts
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import Split, StudyFileHeader
from preprocess.balance import Balance, label_balance
from preprocess.drawn import repeat_drawn
from preprocess.identifiers import HashId
from preprocess.parallel.blocks import plan_blocks
from preprocess.pixels.pipelines import RASTER
from preprocess.quarantine import BadImage, count_reasons
from preprocess.records import ImageName, SourceOptions, StudyRecord
from preprocess.selection import Selection, select
from preprocess.sources import SOURCES

IMAGE_SIZE = 256
MAX_BAD = 0.01


@dataclass(frozen=True)
class Conversion:
    """One site's folder to be converted to a study file, as the command line asks for it.

    Attributes:
        source: a name in `SOURCES`. root: what it reads. options: the user's choices about it.
        out: the study file to write, in an existing folder; replaced only with `overwrite`.
        site: the institution's name.
        seed: of the selection. counts: studies for each split, or None for all. way: of the splits, or None.
        drawn: a list of studies to take instead, or None.
        key: file of the site's secret for ids, made where it is missing; None keeps ids as they are.
        pipeline: a name in `PIPELINES`, where the source does not say it.
        max_bad: the share of images that may be bad.
        refuses_blank: whether an image of one shade is bad.
        image_size: height and width of the stored images, in pixels.
    """

    source: str
    root: Path
    out: Path
    site: str
    seed: int = 0
    counts: dict[Split, int] | None = None
    way: str | None = None
    drawn: Path | None = None
    key: Path | None = None
    overwrite: bool = False
    options: SourceOptions = field(default_factory=SourceOptions)
    pipeline: str = RASTER
    max_bad: float = MAX_BAD
    refuses_blank: bool = False
    image_size: int = IMAGE_SIZE


@dataclass(frozen=True)
class ConversionPlan:
    """The chosen studies, in blocks, and what is true of the whole file; equal on all ranks, as `digest` shows."""

    selection: Selection
    header: StudyFileHeader
    blocks: list[range]
    digest: str
    balance: Balance
    num_images: int
    num_unlabelled: int
    num_duplicates: int
    notes: tuple[str, ...]
    labelled: StudyCounts
    names: tuple[ImageName, ...] = ()
    set_aside: tuple[BadImage, ...] = ()

    def flow(self, bad: Sequence[BadImage], num_left_out: int) -> Flow | None:
        """Return what was left out on the way to the file; None for images that nobody has labelled.

        Args:
            bad: images that could not be used. num_left_out: studies without any other.
        """
        if self.names:
            return None
        return Flow(
            unlabelled_studies=self.num_unlabelled,
            labelled=self.labelled,
            drawn=_count(self.selection.studies),
            unusable_images=count_reasons(bad),
            emptied_studies=num_left_out,
        )


def plan_conversion(conversion: Conversion, hash_id: HashId) -> ConversionPlan:
    """Read the source's tables and choose the studies; no image is opened.

    Raises:
        CxrHvdError: a table is not as published, or the choice cannot be met.
    """
    listing = SOURCES[conversion.source](conversion.root, conversion.options)
    if not listing.studies:
        raise DataError(
            f"{conversion.root}: expected rows of images below the header, found none; check the tables"
        )
    if conversion.drawn is not None:
        selection = repeat_drawn(conversion.drawn, listing.studies, hash_id)
    else:
        selection = select(listing.studies, conversion.seed, conversion.counts, conversion.way)
    header = StudyFileHeader(
        site=conversion.site,
        source=conversion.source,
        label_names=LABELS,
        image_size=conversion.image_size,
        seed=conversion.seed,
        pixels=listing.pixels or conversion.pipeline,
        source_sha256=listing.sha256,
        created=created_now(),
        tool=f"cxr-preprocess {__version__}",
    )
    num_images = [len(study.images) for study in selection.studies]
    return ConversionPlan(
        selection=selection,
        header=header,
        blocks=plan_blocks(num_images),
        digest=_digest(conversion, header, selection),
        balance=label_balance(listing.studies, selection),
        num_images=sum(num_images),
        num_unlabelled=listing.num_unlabelled,
        num_duplicates=listing.num_duplicates,
        notes=listing.notes,
        names=listing.names,
        set_aside=listing.set_aside,
        labelled=_count(listing.studies),
    )


def check_conversion(conversion: Conversion) -> None:
    """Raise `UsageError` where the command line asks for what cannot be."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", conversion.site):
        raise UsageError("--site: expected letters, digits, '_', '.' and '-', found something else")
    if not conversion.out.parent.is_dir():
        raise UsageError(f"{conversion.out}: expected an existing folder to write into, found none; make it first")
    if conversion.drawn is not None and (conversion.counts is not None or conversion.way is not None):
        raise UsageError("--drawn: expected it without --train, --validate, --test and --split, found both")
    if conversion.out.is_dir():
        raise UsageError(f"{conversion.out}: expected a file's name, found a folder; name a file in it")


def created_now() -> str:
    """Return the time of writing in UTC, ISO 8601, or that of SOURCE_DATE_EPOCH (reproducible-builds.org)."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        now = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError("SOURCE_DATE_EPOCH: expected seconds since 1970, found something else") from error
    return now.isoformat(timespec="seconds")


def _count(studies: Sequence[StudyRecord]) -> StudyCounts:
    return StudyCounts(
        patients=len({study.patient_id for study in studies}),
        studies=len(studies),
        images=sum(len(study.images) for study in studies),
    )


def _digest(conversion: Conversion, header: StudyFileHeader, selection: Selection) -> str:
    """SHA-256 over folder, header, studies and splits, in hexadecimal.

    An image's row stands for its path, for the tables' bytes are in the header: a quarter of a million paths
    as text would cost each rank 30 MB.
    """
    inputs = {name: value for name, value in vars(header).items() if name != "created"}
    inputs |= {"root": str(conversion.root.resolve()), "options": repr(conversion.options)}
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode())
    for study, split in zip(selection.studies, selection.splits, strict=True):
        of_patient = tuple(map(int, study.demographics))
        digest.update(f"{study.patient_id}\n{study.study_id}\n{int(split)}\n{study.labels}\n".encode())
        digest.update(f"{of_patient}\n".encode())
        for image in study.images:
            digest.update(f"{image.where}\n{int(image.view)}\n".encode())
    return digest.hexdigest()
