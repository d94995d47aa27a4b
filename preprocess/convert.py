"""Convert one site's folder to one study file, on any number of ranks.

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
from preprocess.balance import Balance
from preprocess.drawn import drawn_path, write_drawn
from preprocess.identifiers import HashId, keep_id, keyed_hash, load_key
from preprocess.image_list import image_list_path, write_image_list
from preprocess.parallel.blocks import fill_block, is_whole
from preprocess.parallel.merge import Merger
from preprocess.parallel.pool import DONE, RESUMED, Pool
from preprocess.parallel.progress import Progress
from preprocess.parallel.ranks import Ranks, broadcast_flag, run_phase, stop_on_signal
from preprocess.parallel.work_folder import WorkFolder, disk_error
from preprocess.pixels.pipelines import load_image
from preprocess.plan import Conversion, ConversionPlan, check_conversion, plan_conversion
from preprocess.quarantine import check_bad, quarantine_path, write_quarantine
from preprocess.records import ImageRecord


@dataclass(frozen=True)
class ConversionResult:
    """What a conversion did.

    Attributes:
        rule: how the splits were made. balance: of the labels.
        num_unlabelled: studies without labels. num_duplicates: rows that repeat others. notes: on the tables.
        num_bad: images that were left out. num_left_out: studies without a good image. num_images: in the file.
        num_resumed: blocks taken over from an earlier run. peak_mib: the leader's most memory so far.
        load_s: seconds of reading images and merging. total_s: with tables, without the start of Python.
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


def convert_site(conversion: Conversion, ranks: Ranks, progress: Progress) -> ConversionResult | None:
    """Read a site's folder, load the chosen studies and write the study file `conversion.out`.

    Collective: every rank, with equal conversions on one shared disk. Blocking: until the file is complete.

    Returns:
        What was done, on the leader; None on other ranks.

    Raises:
        CxrHvdError: what a table, the images, the disk, another job or another rank made impossible, or somebody
            stopped; an earlier file stays, and finished blocks stay for the next run.
    """
    cv2.setNumThreads(1)
    started = time.monotonic()
    is_leader = ranks.is_leader
    with stop_on_signal():
        run_phase(ranks, lambda: _check(conversion) if is_leader else None)
        # Every rank: read the tables, and see that all have read the same. A list of hashes wants the key.
        plan = run_phase(
            ranks,
            lambda: plan_conversion(conversion, _load_hash(conversion) if conversion.drawn else keep_id),
        )
        digests = ranks.allgather_digests(bytes.fromhex(plan.digest))
        run_phase(ranks, lambda: _check_same(digests))
        # Leader only: the key, before hours of work that would want it.
        hash_id = run_phase(ranks, lambda: _load_hash(conversion) if is_leader else keep_id)
        # Leader only: keep other jobs out of the output.
        folder = WorkFolder(conversion.out, plan.digest)
        run_phase(ranks, folder.open if is_leader else lambda: None)
        try:
            is_done = run_phase(ranks, lambda: is_leader and _is_published(conversion, folder))
            if broadcast_flag(ranks, is_done):
                if not is_leader:
                    return None
                folder.remove()
                return _build_result(plan, None, len(plan.blocks), started, started)
            load_started = time.monotonic()
            converter = _Converter(conversion, plan, folder, hash_id, ranks)
            merger, num_resumed = converter.run(progress)
            return _build_result(plan, merger, num_resumed, load_started, started) if merger else None
        except BaseException as error:
            if is_leader and folder.leave() and isinstance(error, CxrHvdError):
                print(f"finished work is kept in {folder.path}; run the same again to go on", file=sys.stderr)
            raise
        finally:
            progress.stop()


class _Converter:
    """Fill the blocks of a plan on all ranks, and merge and publish them on the leader."""

    def __init__(
        self, conversion: Conversion, plan: ConversionPlan, folder: WorkFolder, hash_id: HashId, ranks: Ranks
    ) -> None:
        self._conversion = conversion
        self._plan = plan
        self._folder = folder
        self._hash_id = hash_id
        self._ranks = ranks

    def run(self, progress: Progress) -> tuple[Merger | None, int]:
        """Write and publish the study file; return the leader's merger and how many blocks were there already.

        Collective: every rank.
        """
        plan, ranks = self._plan, self._ranks
        progress.start("reading images", plan.num_images)

        def open_merger() -> Merger | None:
            if not ranks.is_leader:
                return None
            return Merger(self._folder, plan.header, plan.selection, plan.blocks, self._hash_id, progress.advance)

        merger = run_phase(ranks, open_merger)
        with merger or nullcontext():
            pool = ranks.open_pool(len(plan.blocks))
            # Every rank: blocks, one after the other; the leader merges what is finished in between.
            run_phase(ranks, lambda: self._fill(pool, merger))
            # Leader only: the rest.
            run_phase(ranks, lambda: merger.merge_while(lambda block: True) if merger else None)
            num_resumed = sum(pool.state(block) == RESUMED for block in range(len(plan.blocks))) if merger else 0
            pool.close()
            # Leader only: the lists beside the file, and its name.
            run_phase(ranks, lambda: self._publish(merger) if merger else None)
        return merger, num_resumed

    def _fill(self, pool: Pool, merger: Merger | None) -> None:
        """Take blocks until none is left; on the leader, merge between two of them."""
        conversion, plan, ranks = self._conversion, self._plan, self._ranks

        def load(image: ImageRecord) -> NDArray[np.uint8]:
            return load_image(image, conversion.image_size, plan.header.pixels, conversion.refuses_blank)

        page_bytes = conversion.image_size**2
        while (block := pool.take()) is not None:
            studies = [plan.selection.studies[index] for index in plan.blocks[block]]
            path = self._folder.block(block)
            ranks.check_peers()
            if is_whole(path, plan.digest, studies, page_bytes):
                pool.finish(block, RESUMED)
            else:
                try:
                    fill_block(path, plan.digest, studies, load, ranks.check_peers)
                except OSError as error:
                    raise disk_error(conversion.out, error) from error
                pool.finish(block, DONE)
            if merger:
                merger.merge_while(lambda block: pool.state(block) != 0)

    def _publish(self, merger: Merger) -> None:
        conversion, plan = self._conversion, self._plan
        try:
            bad = [*plan.set_aside, *merger.bad]
            write_quarantine(conversion.out, bad)
            write_image_list(conversion.out, plan.names, self._hash_id)
            check_bad(conversion.out, bad, plan.num_images + len(plan.set_aside), conversion.max_bad)
            content_digest = merger.complete(plan.flow(merger.bad, merger.num_left_out))
            write_drawn(conversion.out, plan.selection, self._hash_id)
        except OSError as error:
            raise disk_error(conversion.out, error) from error
        self._folder.publish(content_digest)
        self._folder.remove()


def _check(conversion: Conversion) -> None:
    check_conversion(conversion)
    # One that was killed between the file's name and the end of its work may come back without --overwrite; so may
    # one that has work here, to which the lists beside the file belong.
    check_output(conversion.out, conversion.overwrite or WorkFolder.may_be_published(conversion.out))
    for beside in (drawn_path(conversion.out), quarantine_path(conversion.out), image_list_path(conversion.out)):
        check_output(beside, conversion.overwrite or WorkFolder.is_begun(conversion.out))


def _check_same(digests: list[bytes]) -> None:
    for rank, digest in enumerate(digests):
        if digest != digests[0]:
            raise DataError(
                f"expected the same tables and options on every rank, found others on rank {rank}; "
                "use one shared disk and one command line"
            )


def _is_published(conversion: Conversion, folder: WorkFolder) -> bool:
    """Say whether an earlier run of this very job was killed after its file had got its name."""
    expected = folder.published_digest()
    if conversion.out.exists() and expected is not None:
        try:
            with StudyFile(conversion.out) as file:
                if file.digest == expected:
                    return True
        except StudyFileError:
            pass
    check_output(conversion.out, conversion.overwrite)
    return False


def _build_result(
    plan: ConversionPlan, merger: Merger | None, num_resumed: int, load_started: float, started: float
) -> ConversionResult:
    """Return the result; without a merger the whole file is taken over from an earlier run."""
    return ConversionResult(
        rule=plan.selection.rule,
        balance=plan.balance,
        num_unlabelled=plan.num_unlabelled,
        num_duplicates=plan.num_duplicates,
        notes=plan.notes,
        num_bad=len(merger.bad) + len(plan.set_aside) if merger else 0,
        num_left_out=merger.num_left_out if merger else 0,
        num_images=merger.num_images if merger else plan.num_images,
        num_blocks=len(plan.blocks),
        num_resumed=num_resumed,
        load_s=time.monotonic() - load_started,
        total_s=time.monotonic() - started,
        peak_mib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    )


def _load_hash(conversion: Conversion) -> HashId:
    if conversion.key is None:
        return keep_id
    if not conversion.key.exists() and conversion.drawn is None:
        create_key(conversion.key)
        print(
            f"new secret key for this site's ids: {conversion.key} (keep it: equal ids need it)", file=sys.stderr
        )
    return keyed_hash(load_key(conversion.key))
