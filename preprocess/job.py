"""One site's folder to one study file, on any number of ranks.

Every rank reads the tables: they are small beside the images, and no record has to travel. Then each rank
loads the images of its own studies, and the leader merges. The file has the same bytes for any number of ranks.
"""

import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2

from cxr_hvd import __version__
from cxr_hvd.errors import DataError, UsageError
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.study_file import Split, StudyFileHeader
from preprocess import identifiers, pixels, write
from preprocess.progress import Progress
from preprocess.run import Ranks, together
from preprocess.selection import Selection, select
from preprocess.sources import SOURCES

IMAGE_SIZE = 256


@dataclass(frozen=True)
class Job:
    """What the command line asked for.

    Attributes:
        source: a name in `SOURCES`. root: the folder it reads.
        out: the study file to write, in an existing folder; replaced only with `overwrite`.
        site: the institution's name.
        seed: of the selection. counts: studies for each split, or None for all.
        key: file of the site's secret for ids, made where it is missing; None keeps ids as they are.
        image_size: height and width of the stored images, in pixels.
    """

    source: str
    root: Path
    out: Path
    site: str
    seed: int
    counts: dict[Split, int] | None
    key: Path | None
    overwrite: bool
    image_size: int = IMAGE_SIZE


@dataclass(frozen=True)
class Outcome:
    """What was done: how the splits were come by, studies left out, images and seconds (without the merge)."""

    rule: str
    num_unlabelled: int
    num_images: int
    load_s: float
    total_s: float


def preprocess(job: Job, ranks: Ranks, progress: Progress) -> Outcome:
    """Read a site's folder, load the chosen studies and write the study file `job.out`.

    Collective: every rank, with equal jobs on one shared disk. Blocking: until the file is complete.

    Raises:
        CxrHvdError: what a table, an image, the disk or another rank made impossible; an earlier file stays.
    """
    # A terminated job removes its shards like an interrupted one.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    cv2.setNumThreads(1)
    started = time.monotonic()
    is_leader = ranks.rank == 0

    def plan() -> tuple[Selection, StudyFileHeader, int]:
        _check_job(job)
        listing = SOURCES[job.source](job.root)
        selection = select(listing.studies, job.seed, job.counts)
        header = StudyFileHeader(
            site=job.site,
            source=job.source,
            label_names=LABELS,
            image_size=job.image_size,
            seed=job.seed,
            pixels=pixels.PIXELS,
            source_sha256=listing.sha256,
            created=write.created_now(),
            tool=f"cxr-preprocess {__version__}",
        )
        return selection, header, listing.num_unlabelled

    # Every rank: read the tables, and see that all have read the same.
    selection, header, num_unlabelled = together(ranks, plan)
    digests = ranks.digests(bytes.fromhex(header.source_sha256))
    together(ranks, lambda: _check_same(digests))
    # Leader only: the key, before hours of work that would want it.
    hashed = together(ranks, lambda: _hash_of(job) if is_leader else identifiers.kept)

    num_images = [len(study.images) for study in selection.studies]
    owners = write.partition(num_images, ranks.num_ranks)
    mine = [study for study, owner in zip(selection.studies, owners, strict=True) if owner == ranks.rank]

    def fill_shard() -> None:
        progress.start("reading images", sum(len(study.images) for study in mine), ranks.num_ranks)
        with write.ShardWriter(job.out, ranks.rank) as shard:
            for study in mine:
                ranks.check_peers()
                shard.add(pixels.load(study, job.image_size))
                progress.advance(len(study.images))

    def merge() -> None:
        progress.start("writing the study file", sum(num_images))
        write.merge(job.out, header, write.build_rows(selection, hashed), owners, progress.advance)

    try:
        # Every rank: its own studies, to its own shard.
        together(ranks, fill_shard)
        load_s = time.monotonic() - started
        # Leader only: all shards to one file.
        together(ranks, merge if is_leader else lambda: None)
    finally:
        write.shard_path(job.out, ranks.rank).unlink(missing_ok=True)
        progress.stop()
        signal.signal(signal.SIGTERM, before)
    return Outcome(selection.rule, num_unlabelled, sum(num_images), load_s, time.monotonic() - started)


def _check_job(job: Job) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", job.site):
        raise UsageError("--site: expected letters, digits, '_', '.' and '-', found something else")
    if not job.out.parent.is_dir():
        raise UsageError(f"{job.out}: expected an existing folder to write into, found none; make it first")
    if job.out.exists() and not job.overwrite:
        raise UsageError(f"{job.out}: expected a new file, found one; choose another --out or add --overwrite")


def _check_same(digests: list[bytes]) -> None:
    for rank, digest in enumerate(digests):
        if digest != digests[0]:
            raise DataError(
                f"expected the same tables on every rank, found others on rank {rank}; use one shared disk"
            )


def _hash_of(job: Job) -> Callable[[str, str], str]:
    if job.key is None:
        return identifiers.kept
    if not job.key.exists():
        identifiers.create_key(job.key)
        print(f"new secret key for this site's ids: {job.key} (keep it: equal ids need it)", file=sys.stderr)
    return identifiers.keyed_hash(identifiers.load_key(job.key))
