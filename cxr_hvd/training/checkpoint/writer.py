"""Checkpoints are written by a thread while training goes on, whole or not at all.

A checkpoint is the folder `checkpoints/step-N`. It takes three moments (`CheckpointWriter`): all ranks copy
their tensors after the same step; a thread of each writes and syncs the copies beside the checkpoint's name;
once all ranks have told that theirs are written, all agree, and the leader of each site renames the folder and
points `latest` at it. So `latest` always loads, and sites can differ by one checkpoint at most, however a run is
killed.
"""

import json
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file

from cxr_hvd.comm.job import Job
from cxr_hvd.comm.step_status import StepStatus, Writing
from cxr_hvd.errors import CxrHvdError
from cxr_hvd.files import finish_folder, folder_beside, point_link, sync
from cxr_hvd.training.checkpoint.record import STATE_FILE, CheckpointRecord
from cxr_hvd.training.checkpoint.snapshot import PRIVATE_FILE, WEIGHT_FILES, Files, Snapshot
from cxr_hvd.training.run_folder import BEST, LATEST, RunFolder, disk_errors


class CheckpointWriter:
    """Writes a rank's part of each checkpoint, and finishes it together with the other ranks.

    Args:
        folder: the site's; its ranks share it.
        job: the ranks that write together.
        keep: how many of the newest checkpoints stay, besides the best.
    """

    def __init__(self, folder: RunFolder, job: Job, keep: int) -> None:
        self._folder = folder
        self._job = job
        self._keep = keep
        self._best_step: int | None = None
        self._seconds = 0.0
        self._began = 0.0
        self._step: int | None = None
        self._thread: threading.Thread | None = None
        self._error: CxrHvdError | None = None

    @property
    def writing(self) -> Writing:
        """How far this rank's part is."""
        if self._thread is None:
            return Writing.IDLE
        if self._thread.is_alive():
            return Writing.BUSY
        return Writing.FAILED if self._error else Writing.WRITTEN

    @property
    def seconds(self) -> float:
        """How long the last checkpoint took from its copy to the disk; 0 before the first."""
        return self._seconds

    def begin(self, snapshot: Snapshot) -> None:
        """Begin to write what all ranks have copied after a step.

        Collective: every rank, after the same step. Blocking only where the checkpoint before is not finished yet.
        """
        self.finish()
        step = snapshot.record.step
        record = snapshot.record if self._job.is_site_leader else None
        self._step, self._error, self._began = step, None, time.monotonic()
        arguments = (self._folder.checkpoint(step), snapshot.files, record)
        self._thread = threading.Thread(target=self._write, args=arguments, name="checkpoint")
        self._thread.start()

    def settle(self, statuses: Sequence[StepStatus]) -> None:
        """Finish the checkpoint where all ranks have told that their part is written, or that it failed.

        Collective: every rank, with the statuses of the same step.
        """
        if self._step is not None and all(status.writing > Writing.BUSY for status in statuses):
            self.finish()

    def finish(self) -> None:
        """Wait until all ranks have written, and name the checkpoint. Collective: every rank. Blocking."""
        if self._step is None or self._thread is None:
            return
        step = self._step
        self._thread.join()
        with self._job.together("saving a checkpoint"):
            if self._error:
                raise self._error
        with self._job.together("finishing a checkpoint"), disk_errors(self._folder.checkpoints):
            if self._job.is_site_leader:
                finish_folder(self._folder.checkpoint(step))
                point_link(self._folder.checkpoints / LATEST, self._folder.checkpoint(step))
                self._link_best()
                self._remove_old()
        self._seconds = time.monotonic() - self._began
        self._step = self._thread = None

    def name_best(self, step: int | None) -> None:
        """Have `best` name the checkpoint of a step, as soon as that is finished; None: there is none."""
        self._best_step = step
        if self._job.is_site_leader:
            self._link_best()

    def _link_best(self) -> None:
        if self._best_step is None:  # a longer run does not judge again what the shorter one judged at its end
            (self._folder.checkpoints / BEST).unlink(missing_ok=True)
        elif self._folder.checkpoint(self._best_step).is_dir():
            point_link(self._folder.checkpoints / BEST, self._folder.checkpoint(self._best_step))

    def _write(self, path: Path, files: Files, record: CheckpointRecord | None) -> None:
        try:
            with disk_errors(path):
                write_files(folder_beside(path), files, record)
        except CxrHvdError as error:
            self._error = error

    def _remove_old(self) -> None:
        for step in self._folder.steps()[self._keep :]:
            if step != self._best_step:
                shutil.rmtree(self._folder.checkpoint(step), ignore_errors=True)


def write_files(beside: Path, files: Files, record: CheckpointRecord | None) -> None:
    """Write and sync one rank's files into the folder that all ranks of the site fill."""
    beside.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, tensors in files.items():
        save_file(tensors, beside / name, _metadata(name, record))
        sync(beside / name)
    if record is not None:
        (beside / STATE_FILE).write_text(json.dumps(record.model_dump(), indent=1), encoding="utf-8")
        sync(beside / STATE_FILE)


def _metadata(name: str, record: CheckpointRecord | None) -> dict[str, str] | None:
    """Return what a file of weights says of its network."""
    if record is None or record.network is None or name not in WEIGHT_FILES:
        return None
    return record.network.metadata(is_of_site=name == PRIVATE_FILE)
