"""One site's folder to one study file, on any number of ranks.

Every rank reads the tables: they are small beside the images, and no record has to travel. Then whoever is free
takes the next block of studies and loads its images, and the leader merges what is finished. The file has the
same bytes for any number of ranks, and however often the job was killed and started again.
"""

import resource
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_hvd.errors import CxrHvdError, DataError, StudyFileError
from cxr_hvd.files import check_output
from cxr_hvd.secret import create_key
from cxr_hvd.study.study_file import StudyFile
from preprocess import identifiers
from preprocess.balance import Balance
from preprocess.drawn import drawn_path, write_drawn
from preprocess.parallel.blocks import fill_block, is_whole
from preprocess.parallel.merge import Merger
from preprocess.parallel.pool import DONE, RESUMED, Pool
from preprocess.parallel.progress import Progress
from preprocess.parallel.ranks import Ranks, leader_says, stopping_on_request, together
from preprocess.parallel.work import WorkFolder, not_written
from preprocess.pixels import load as pixels
from preprocess.plan import Hashed, Job, Plan, build_plan, check_job
from preprocess.quarantine import check_bad, quarantine_path, write_quarantine
from preprocess.records import ImageRecord


@dataclass(frozen=True)
class Outcome:
    """What was done.

    Attributes:
        rule: how the splits were come by. balance: of the labels.
        num_unlabelled: studies without labels. num_duplicates: rows that repeat others. notes: on the tables.
        num_bad: images that were left out. num_left_out: studies without a good image. num_images: in the file.
        num_resumed: blocks taken over from an earlier run.
        load_s: seconds of reading images and merging. total_s: with tables, without the start of Python.
        peak_mib: the leader's most memory so far.
    """

    rule: str
    balance: Balance
    num_unlabelled: int
    num_duplicates: int
    notes: tuple[str, ...]
    num_bad: int
    num_left_out: int
    num_images: int
    num_blocks: int
    num_resumed: int
    load_s: float
    total_s: float
    peak_mib: float


def preprocess(job: Job, ranks: Ranks, progress: Progress) -> Outcome | None:
    """Read a site's folder, load the chosen studies and write the study file `job.out`.

    Collective: every rank, with equal jobs on one shared disk. Blocking: until the file is complete.

    Returns:
        What was done, on the leader; None on other ranks.

    Raises:
        CxrHvdError: what a table, the images, the disk, another job or another rank made impossible, or somebody
            stopped; an earlier file stays, and finished blocks stay for the next run.
    """
    cv2.setNumThreads(1)
    started = time.monotonic()
    is_leader = ranks.rank == 0
    with stopping_on_request():
        together(ranks, lambda: _check(job) if is_leader else None)
        # Every rank: read the tables, and see that all have read the same. A list of hashes wants the key.
        plan = together(ranks, lambda: build_plan(job, _hash_of(job) if job.drawn else identifiers.kept))
        digests = ranks.digests(bytes.fromhex(plan.digest))
        together(ranks, lambda: _check_same(digests))
        # Leader only: the key, before hours of work that would want it.
        hashed = together(ranks, lambda: _hash_of(job) if is_leader else identifiers.kept)
        # Leader only: keep other jobs out of the output.
        folder = WorkFolder(job.out, plan.digest)
        together(ranks, folder.open if is_leader else lambda: None)
        try:
            is_done = together(ranks, lambda: is_leader and _is_published(job, folder))
            if leader_says(ranks, is_done):
                if not is_leader:
                    return None
                folder.remove()
                return _outcome(plan, None, 0, started, started)
            return _read_and_merge(job, plan, folder, hashed, ranks, progress, started)
        except BaseException as error:
            if is_leader and folder.leave() and isinstance(error, CxrHvdError):
                print(f"finished work is kept in {folder.path}; run the same again to go on", file=sys.stderr)
            raise
        finally:
            progress.stop()


def _read_and_merge(
    job: Job, plan: Plan, folder: WorkFolder, hashed: Hashed, ranks: Ranks, progress: Progress, started: float
) -> Outcome | None:
    load_started = time.monotonic()
    progress.start("reading images", plan.num_images)

    def open_merger() -> Merger | None:
        if ranks.rank != 0:
            return None
        return Merger(folder, plan.header, plan.selection, plan.blocks, hashed, progress.advance)

    merger = together(ranks, open_merger)
    with merger or nullcontext():
        pool = ranks.open_pool(len(plan.blocks))
        # Every rank: blocks, one after the other; the leader merges what is finished in between.
        together(ranks, lambda: _fill(job, plan, folder, pool, ranks, merger))
        # Leader only: the rest.
        together(ranks, lambda: merger.merge_while(lambda block: True) if merger else None)
        num_resumed = sum(pool.state(block) == RESUMED for block in range(len(plan.blocks))) if merger else 0
        pool.close()
        # Leader only: the lists beside the file, and its name.
        together(ranks, lambda: _publish(job, plan, folder, merger, hashed) if merger else None)
    return _outcome(plan, merger, num_resumed, load_started, started) if merger else None


def _fill(job: Job, plan: Plan, folder: WorkFolder, pool: Pool, ranks: Ranks, merger: Merger | None) -> None:
    """Take blocks until none is left; on the leader, merge between two of them."""

    def load_image(image: ImageRecord) -> NDArray[np.uint8]:
        return pixels.load_image(image, job.image_size, job.pipeline)

    page_bytes = job.image_size**2
    while (block := pool.take()) is not None:
        studies = [plan.selection.studies[index] for index in plan.blocks[block]]
        path = folder.block(block)
        ranks.check_peers()
        if is_whole(path, plan.digest, studies, page_bytes):
            pool.finish(block, RESUMED)
        else:
            try:
                fill_block(path, plan.digest, studies, load_image, ranks.check_peers)
            except OSError as error:
                raise not_written(job.out, error) from error
            pool.finish(block, DONE)
        if merger:
            merger.merge_while(lambda block: pool.state(block) != 0)


def _publish(job: Job, plan: Plan, folder: WorkFolder, merger: Merger, hashed: Hashed) -> None:
    try:
        write_quarantine(job.out, merger.bad)
        check_bad(job.out, merger.bad, plan.num_images, job.max_bad)
        content_digest = merger.complete()
        write_drawn(job.out, plan.selection, hashed)
    except OSError as error:
        raise not_written(job.out, error) from error
    folder.publish(content_digest)
    folder.remove()


def _check(job: Job) -> None:
    check_job(job)
    # One that was killed between the file's name and the end of its work may come back without --overwrite; so may
    # one that has work here, to which the lists beside the file belong.
    check_output(job.out, job.overwrite or WorkFolder.may_be_published(job.out))
    for beside in (drawn_path(job.out), quarantine_path(job.out)):
        check_output(beside, job.overwrite or WorkFolder.is_begun(job.out))


def _check_same(digests: list[bytes]) -> None:
    for rank, digest in enumerate(digests):
        if digest != digests[0]:
            raise DataError(
                f"expected the same tables and options on every rank, found others on rank {rank}; "
                "use one shared disk and one command line"
            )


def _is_published(job: Job, folder: WorkFolder) -> bool:
    """Say whether an earlier run of this very job was killed after its file had got its name."""
    expected = folder.published_digest()
    if job.out.exists() and expected is not None:
        try:
            with StudyFile(job.out) as file:
                if file.digest == expected:
                    return True
        except StudyFileError:
            pass
    check_output(job.out, job.overwrite)
    return False


def _outcome(plan: Plan, merger: Merger | None, num_resumed: int, load_started: float, started: float) -> Outcome:
    now = time.monotonic()
    return Outcome(
        rule=plan.selection.rule,
        balance=plan.balance,
        num_unlabelled=plan.num_unlabelled,
        num_duplicates=plan.num_duplicates,
        notes=plan.notes,
        num_bad=len(merger.bad) if merger else 0,
        num_left_out=merger.num_left_out if merger else 0,
        num_images=merger.num_images if merger else plan.num_images,
        num_blocks=len(plan.blocks),
        num_resumed=num_resumed if merger else len(plan.blocks),
        load_s=now - load_started,
        total_s=now - started,
        peak_mib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    )


def _hash_of(job: Job) -> Hashed:
    if job.key is None:
        return identifiers.kept
    if not job.key.exists() and job.drawn is None:
        create_key(job.key)
        print(f"new secret key for this site's ids: {job.key} (keep it: equal ids need it)", file=sys.stderr)
    return identifiers.keyed_hash(identifiers.load_key(job.key))
