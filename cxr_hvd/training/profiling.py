"""A few steps recorded by torch's profiler, as a trace and as two tables.

Owns what is recorded of a rank. Whoever takes the steps marks their parts by `torch.profiler.record_function`
with the names in `spending.PARTS`. Horovod's own timeline is the communicator's matter.
"""

import gzip
import io
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

import torch
from rich.console import Group
from rich.text import Text
from torch.profiler import ProfilerActivity, profile, schedule

from cxr_hvd.comm.job import Job
from cxr_hvd.console import WIDTH, Console
from cxr_hvd.errors import CheckpointError
from cxr_hvd.files import replaced_file, write_text
from cxr_hvd.training.run_folder import RunFolder, disk_errors
from cxr_hvd.training.spending import Spending, operator_table, part_table, sum_up

TIMELINE_REMARK = (
    "Horovod's timeline runs beside it, and has NCCL wait for the processor at every exchange: without --profile "
    "these take less"
)


class Profile:
    """Records a few steps of this rank: a context that is told of each step's end, and free once they are over.

    The first steps are left alone: in them a machine chooses its algorithms and fills its caches. An error that
    leaves the context ends the recording, and nothing is written.
    """

    def __init__(self, folder: Path, rank: int, first_step: int, num_steps: int = 10, wait: int = 3) -> None:
        """Plan what to record.

        Args:
            folder: where `trace-rank{rank}.json.gz` and `profile-rank{rank}.txt` go; made where it is missing.
            first_step: the step that the run starts with, from 0.
            num_steps: how many steps are recorded, at least 1.
            wait: how many before them are not, at least 1.
        """
        self.trace = folder / f"trace-rank{rank}.json.gz"
        self.spending: Spending | None = None
        self._folder = folder
        self._rank = rank
        self._first_recorded = first_step + wait
        self._num_steps = num_steps
        self._wait = wait
        self._num_done = 0
        self._profiler: profile | None = None

    def __enter__(self) -> Self:
        # Its library prints how far it got; what it cannot write is found out below.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        when = schedule(wait=self._wait - 1, warmup=1, active=self._num_steps, repeat=1)
        self._profiler = profile(activities=activities, schedule=when)
        self._profiler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        elif self._profiler is not None:
            self._profiler.stop()
            self._profiler = None

    def step(self) -> None:
        """Take note that a step is over. After the last one to be recorded, stop and write.

        Raises:
            CheckpointError: the trace or the table cannot be written.
        """
        if self._profiler is None:
            return
        self._num_done += 1
        self._profiler.step()
        if self._num_done == self._wait + self._num_steps:
            self._finish()

    def summary(self) -> Group:
        """Return where the recorded steps went, as tables, and the most memory that was in use so far."""
        if self.spending is None:
            return Group(Text(f"profile: the run ended before step {self._first_recorded + 1} was over: none"))
        spent = self.spending
        last = self._first_recorded + spent.num_steps
        title = f"Where steps {self._first_recorded + 1} to {last} of rank {self._rank} went"
        if spent.has_gpu:  # it works on its own, and only who waits for it spends time
            title += "; the GPU's time is in the part that waited for it"
        remarks = [Text(TIMELINE_REMARK)] if spent.has_gpu else []
        return Group(
            Text(title),
            *remarks,
            part_table(spent),
            Text(f"Operators, by time of their own on the {'GPU' if spent.has_gpu else 'CPU'}"),
            operator_table(spent),
            Text(f"memory at most: {_peak_memory()}"),
        )

    def _finish(self) -> None:
        """Stop recording, and write what there is of it."""
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        num_steps = self._num_done - self._wait
        if num_steps < 1:
            return
        self.spending = sum_up(profiler.events(), num_steps)  # type: ignore[no-untyped-call]
        if self.spending is None:
            return
        text = io.StringIO()
        Console(file=text, width=WIDTH).print(self.summary())
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            _write_trace(profiler, self.trace)
            write_text(self._folder / f"profile-rank{self._rank}.txt", text.getvalue())
        except OSError as error:
            raise CheckpointError(
                f"{self._folder}: cannot write the profile of rank {self._rank} ({error.strerror}); "
                "make room, or train without --profile"
            ) from error


def _peak_memory() -> str:
    """Say the most memory that this process has used so far, and that its tensors have on the GPU."""
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.2f} GB"
    if torch.cuda.is_available():
        peak += f", {torch.cuda.max_memory_allocated() / 1e9:.2f} GB on the GPU"
    return peak


def _write_trace(profiler: profile, path: Path) -> None:
    """Write a Chrome trace, packed, for chrome://tracing or ui.perfetto.dev."""
    with replaced_file(path) as beside, TemporaryDirectory(dir=path.parent) as scratch:
        plain = Path(scratch) / "trace.json"
        profiler.export_chrome_trace(str(plain))
        with plain.open("rb") as content, gzip.open(beside, "wb", compresslevel=6) as packed:
            shutil.copyfileobj(content, packed)


@contextmanager
def profiled(folder: RunFolder, job: Job, first_step: int, console: Console) -> Iterator[Callable[[], None]]:
    """Record some steps of the body in `profile/`, with Horovod's timeline; the leader shows what came of it.

    Collective: every rank; so is what it gives, to be called after each step.
    """
    path = folder.path / "profile"
    with job.together("making a folder for the profile"), disk_errors(path):
        path.mkdir(mode=0o700, exist_ok=True)
    job.comm.start_timeline(str(path / "horovod-timeline.json"))
    has_timeline = True

    def note_step() -> None:
        nonlocal has_timeline
        recording.step()
        if has_timeline and recording.spending:
            job.comm.stop_timeline()
            has_timeline = False
            if job.is_leader:
                console.print(recording.summary())
                console.print(f"traces: {path} (chrome://tracing or ui.perfetto.dev)", highlight=False)

    with Profile(path, job.rank, first_step) as recording:
        yield note_step
