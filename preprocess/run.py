"""The ranks that turn one site's folder into one study file, and how they fail together.

Every rank reads the tables: they are small beside the images, and no record has to travel. Then each rank
loads the images of its own studies, and the leader merges. Two promises hold for any number of ranks: the file
has the same bytes, and one rank's error ends all ranks within the time of one study.

Messages are numbers in upper-case mpi4py calls, never objects: an object is unpickled, and whoever sends it
runs code here.
"""

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import cv2
import numpy as np

from cxr_hvd import __version__
from cxr_hvd.errors import CxrHvdError, DataError, PeerError, UsageError, leave
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.study_file import Split, StudyFileHeader
from preprocess import identifiers, pixels, write
from preprocess.progress import Progress
from preprocess.selection import Selection, select
from preprocess.sources import SOURCES

# Set by Open MPI, by MPICH and Intel MPI, and by Slurm with PMIx.
LAUNCHER_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK")
IMAGE_SIZE = 256
_FAILED_TAG = 7
_LAST_WORDS_S = 5.0

Result = TypeVar("Result")


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


class Ranks(Protocol):
    """The processes of this job, as far as this program needs to know of them."""

    rank: int
    num_ranks: int

    def tell_failure(self) -> None:
        """Let the other ranks know, without waiting, that this one has failed."""

    def check_peers(self) -> None:
        """Raise `PeerError` where another rank has told of its failure; does not wait."""

    def first_failure(self, failed: bool) -> int | None:
        """Return the lowest rank that failed. Collective: every rank. Blocking: until every rank calls it."""

    def digests(self, digest: bytes) -> list[bytes]:
        """Return the 32-byte digest of each rank. Collective: every rank. Blocking: until every rank calls it."""


class OneRank:
    """This process alone."""

    rank, num_ranks = 0, 1

    def tell_failure(self) -> None:
        pass

    def check_peers(self) -> None:
        pass

    def first_failure(self, failed: bool) -> int | None:
        return 0 if failed else None

    def digests(self, digest: bytes) -> list[bytes]:
        return [digest]


class MpiRanks:
    """The ranks that mpirun started."""

    def __init__(self) -> None:
        from mpi4py import MPI

        self._mpi: Any = MPI
        self._comm: Any = MPI.COMM_WORLD
        self.rank: int = self._comm.Get_rank()
        self.num_ranks: int = self._comm.Get_size()
        self._sent: list[Any] = []

    def tell_failure(self) -> None:
        word = np.array([self.rank], dtype=np.int32)
        others = (rank for rank in range(self.num_ranks) if rank != self.rank)
        # Kept, with its buffer, until the process ends: nobody has to receive it.
        self._sent += [(word, self._comm.Isend(word, dest=rank, tag=_FAILED_TAG)) for rank in others]

    def check_peers(self) -> None:
        status = self._mpi.Status()
        if self._comm.Iprobe(source=self._mpi.ANY_SOURCE, tag=_FAILED_TAG, status=status):
            raise PeerError(f"rank {status.Get_source()} failed")

    def first_failure(self, failed: bool) -> int | None:
        mine = np.array([self.rank if failed else self.num_ranks], dtype=np.int32)
        lowest = np.empty_like(mine)
        self._comm.Allreduce(mine, lowest, op=self._mpi.MIN)
        return int(lowest[0]) if lowest[0] < self.num_ranks else None

    def digests(self, digest: bytes) -> list[bytes]:
        everybody = np.empty((self.num_ranks, 32), dtype=np.uint8)
        self._comm.Allgather(np.frombuffer(digest, dtype=np.uint8), everybody)
        return [row.tobytes() for row in everybody]

    def say_last_words(self, program: str, error: CxrHvdError) -> None:
        """Print the error and end this process, once every rank has had the time to print its own."""
        print(f"{program}: error: {error}", file=sys.stderr, flush=True)
        everybody = self._comm.Ibarrier()
        deadline = time.monotonic() + _LAST_WORDS_S
        while not everybody.Test() and time.monotonic() < deadline:
            time.sleep(0.01)
        leave(error.exit_code)


def is_under_launcher() -> bool:
    """Say whether an MPI launcher started this process; MPI itself is not touched."""
    return any(variable in os.environ for variable in LAUNCHER_VARIABLES)


@contextmanager
def opened_ranks(program: str) -> Iterator[Ranks]:
    """Give the ranks of this job. Under a launcher an error inside ends every rank, each with its own line."""
    if not is_under_launcher():
        yield OneRank()
        return
    ranks = MpiRanks()
    try:
        yield ranks
    except CxrHvdError as error:
        ranks.say_last_words(program, error)


def together(ranks: Ranks, work: Callable[[], Result]) -> Result:
    """Run this rank's part of a phase; raise on every rank where one of them failed.

    Collective: every rank. Blocking: until every rank has ended its part or noticed that another failed.

    Raises:
        CxrHvdError: on the lowest rank that failed, its own error; on all others `PeerError`.
    """
    error: Exception | None = None
    result: Result | None = None
    try:
        result = work()
    except PeerError:
        pass
    except Exception as caught:
        error = caught
        ranks.tell_failure()
    first = ranks.first_failure(error is not None)
    if error is not None and (first == ranks.rank or not isinstance(error, CxrHvdError)):
        raise error
    if first is not None:
        raise PeerError(f"rank {first} failed and said why; rank {ranks.rank} stopped with it")
    return result  # type: ignore[return-value]


def preprocess(job: Job, ranks: Ranks, progress: Progress) -> Outcome:
    """Read a site's folder, load the chosen studies and write the study file `job.out`.

    Collective: every rank, with equal jobs on one shared disk. Blocking: until the file is complete.

    Raises:
        CxrHvdError: what a table, an image, the disk or another rank made impossible; an earlier file stays.
    """
    # A terminated job removes its shards like an interrupted one.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
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
