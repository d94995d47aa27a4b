"""What a job asks for, and what follows from it and the tables before any image is read.

Every rank makes the plan for itself and finds the same one: its digest says so, and names the job's work on the
disk. Whatever changes the study file's bytes enters the digest, the time of writing excepted.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cxr_hvd import __version__
from cxr_hvd.errors import DataError, UsageError
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import Split, StudyFileHeader
from preprocess.balance import Balance, label_balance
from preprocess.drawn import repeat_drawn
from preprocess.parallel import merge as write
from preprocess.parallel.blocks import plan_blocks
from preprocess.pixels import load as pixels
from preprocess.records import SourceOptions
from preprocess.selection import Selection, select
from preprocess.sources import SOURCES

IMAGE_SIZE = 256
MAX_BAD = 0.01

Hashed = Callable[[str, str], str]


@dataclass(frozen=True)
class Job:
    """What the command line asked for.

    Attributes:
        source: a name in `SOURCES`. root: what it reads. options: the user's choices about it.
        out: the study file to write, in an existing folder; replaced only with `overwrite`.
        site: the institution's name.
        seed: of the selection. counts: studies for each split, or None for all. way: of the splits, or None.
        drawn: a list of studies to take instead, or None.
        key: file of the site's secret for ids, made where it is missing; None keeps ids as they are.
        pipeline: a name in `PIPELINES`.
        max_bad: the share of images that may be bad.
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
    pipeline: str = pixels.PIXELS
    max_bad: float = MAX_BAD
    image_size: int = IMAGE_SIZE


@dataclass(frozen=True)
class Plan:
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


def build_plan(job: Job, hashed: Hashed) -> Plan:
    """Read the source's tables and choose the studies; no image is opened.

    Raises:
        CxrHvdError: a table is not as published, or the choice cannot be met.
    """
    listing = SOURCES[job.source](job.root, job.options)
    if not listing.studies:
        raise DataError(f"{job.root}: expected rows of images below the header, found none; check the tables")
    if job.drawn is not None:
        selection = repeat_drawn(job.drawn, listing.studies, hashed)
    else:
        selection = select(listing.studies, job.seed, job.counts, job.way)
    header = StudyFileHeader(
        site=job.site,
        source=job.source,
        label_names=LABELS,
        image_size=job.image_size,
        seed=job.seed,
        pixels=job.pipeline,
        source_sha256=listing.sha256,
        created=write.created_now(),
        tool=f"cxr-preprocess {__version__}",
    )
    num_images = [len(study.images) for study in selection.studies]
    return Plan(
        selection=selection,
        header=header,
        blocks=plan_blocks(num_images),
        digest=_digest(job, header, selection),
        balance=label_balance(listing.studies, selection),
        num_images=sum(num_images),
        num_unlabelled=listing.num_unlabelled,
        num_duplicates=listing.num_duplicates,
        notes=listing.notes,
    )


def check_job(job: Job) -> None:
    """Raise `UsageError` where the command line asks for what cannot be."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", job.site):
        raise UsageError("--site: expected letters, digits, '_', '.' and '-', found something else")
    if not job.out.parent.is_dir():
        raise UsageError(f"{job.out}: expected an existing folder to write into, found none; make it first")
    if job.drawn is not None and (job.counts is not None or job.way is not None):
        raise UsageError("--drawn: expected it without --train, --validate, --test and --split, found both")
    if job.out.is_dir():
        raise UsageError(f"{job.out}: expected a file's name, found a folder; name a file in it")


def _digest(job: Job, header: StudyFileHeader, selection: Selection) -> str:
    """SHA-256 over folder, header, studies and splits, in hexadecimal.

    An image's row stands for its path, for the tables' bytes are in the header: a quarter of a million paths
    as text would cost each rank 30 MB.
    """
    said = {name: value for name, value in vars(header).items() if name != "created"}
    said |= {"root": str(job.root.resolve()), "options": repr(job.options)}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for study, split in zip(selection.studies, selection.splits, strict=True):
        digest.update(f"{study.patient_id}\n{study.study_id}\n{int(split)}\n{study.labels}\n".encode())
        for image in study.images:
            digest.update(f"{image.where}\n{int(image.view)}\n".encode())
    return digest.hexdigest()
