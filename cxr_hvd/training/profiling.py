"""Where the time of a step goes: a few steps recorded by torch's profiler, as a trace and as two tables.

Owns what is recorded of a rank and how it is summed up. Whoever takes the steps marks their parts by
`torch.profiler.record_function` with the names in `PARTS`. Everything here is local to the rank; Horovod's own
timeline is the communicator's matter.
"""

import gzip
import io
import os
import resource
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch.profiler import ProfilerActivity, profile, schedule

from cxr_hvd.console import WIDTH, Console
from cxr_hvd.errors import CheckpointError
from cxr_hvd.files import replaced_file, write_text

PARTS = {
    "data": "data",
    "forward": "forward",
    "backward": "backward",
    "exchange": "averaging",
    "pulse": "agreeing",
    "update": "optimizer",
    "checkpoint": "checkpoint",
}
"""The parts of a step: what the trace calls each, and what the table does."""

OTHER = "other"
STEP = "ProfilerStep"
NUM_OPERATORS = 10


@dataclass(frozen=True)
class Span:
    """A named stretch of time on one rank, in microseconds since the recording began."""

    name: str
    start_us: float
    end_us: float


@dataclass(frozen=True)
class Operator:
    """One of torch's operators over all recorded steps, without those that it called.

    Attributes:
        num_calls: how often it was called.
        cpu_us: microseconds on the CPU, waiting included.
        gpu_us: microseconds of its kernels on the GPU.
    """

    name: str
    num_calls: int
    cpu_us: float
    gpu_us: float


@dataclass(frozen=True)
class Spending:
    """What was recorded.

    Attributes:
        num_steps: how many whole steps.
        total_us: their wall-clock time in microseconds.
        part_us: the same, split over the names in `PARTS` and `OTHER`; the values add up to `total_us`.
        operators: all operators that were called in these steps.
    """

    num_steps: int
    total_us: float
    part_us: dict[str, float]
    operators: list[Operator]

    @property
    def has_gpu(self) -> bool:
        """Whether a GPU did any of the work."""
        return any(operator.gpu_us for operator in self.operators)


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
        return Group(
            Text(title),
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


def sum_up(events: Iterable[Any], num_steps: int) -> Spending | None:
    """Sum up the first `num_steps` steps of a recording; what came after the last whole step does not count.

    A recording that its library gave up, for want of memory, may have fewer steps, or none: then there is no sum.

    Args:
        events: torch's `FunctionEvent`s of one recording, in any order.
        num_steps: how many whole steps were taken while it ran, at least 1.
    """
    # Kernels and their copies of our marks come as events of the GPU: operators tell their time already.
    on_cpu = [event for event in events if event.device_type.name == "CPU"]
    spans = [span_of(event) for event in on_cpu if event.name.startswith(STEP)]
    steps = sorted(spans, key=lambda step: step.start_us)[:num_steps]
    if not steps:
        return None
    start_us, end_us = steps[0].start_us, steps[-1].end_us
    inside = [e for e in on_cpu if e.time_range.start >= start_us and e.time_range.end <= end_us]
    total_us = sum(step.end_us - step.start_us for step in steps)
    part_us = split(span_of(event) for event in inside if event.name in PARTS)
    part_us[OTHER] = total_us - sum(part_us.values())
    rows: defaultdict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    for event in inside:
        if event.name not in PARTS and not event.name.startswith(STEP):
            row = rows[event.name]
            row[0] += 1
            row[1] += event.self_cpu_time_total
            row[2] += event.self_device_time_total
    operators = [Operator(name, int(calls), cpu_us, gpu_us) for name, (calls, cpu_us, gpu_us) in rows.items()]
    return Spending(len(steps), total_us, part_us, operators)


def split(spans: Iterable[Span]) -> dict[str, float]:
    """Charge each moment to one part, the innermost that it lies in: microseconds for each name in `PARTS`.

    An exchange that begins during backward, on whatever thread, counts as averaging and not twice.
    """
    part_us = dict.fromkeys(PARTS, 0.0)
    around: list[Span] = []
    for span in sorted(spans, key=lambda each: (each.start_us, -each.end_us)):
        while around and around[-1].end_us <= span.start_us:
            around.pop()
        if around:
            part_us[around[-1].name] -= min(span.end_us, around[-1].end_us) - span.start_us
        part_us[span.name] += span.end_us - span.start_us
        around.append(span)
    return part_us


def span_of(event: Any) -> Span:
    """Return name, start and end of one of torch's `FunctionEvent`s."""
    return Span(event.name, event.time_range.start, event.time_range.end)


def part_table(spent: Spending) -> Table:
    """Build the table of the parts of a step."""
    table = Table()
    table.add_column("part")
    for heading in ("ms a step", "share"):
        table.add_column(heading, justify="right")
    for name, part_us in spent.part_us.items():
        table.add_row(
            PARTS.get(name, name), f"{part_us / spent.num_steps / 1e3:,.2f}", f"{part_us / spent.total_us:.1%}"
        )
    table.add_row("step", f"{spent.total_us / spent.num_steps / 1e3:,.2f}", f"{1:.1%}")
    return table


def operator_table(spent: Spending) -> Table:
    """Build the table of the ten operators that took most, on the GPU where there was one, else on the CPU.

    Their shares are of the steps' wall-clock time.
    """
    own_us = {each: each.gpu_us if spent.has_gpu else each.cpu_us for each in spent.operators}
    table = Table()
    table.add_column("operator", no_wrap=True, overflow="ellipsis")
    for heading in ("calls a step", "self ms a step", "share"):
        table.add_column(heading, justify="right")
    for each in sorted(own_us, key=lambda operator: -own_us[operator])[:NUM_OPERATORS]:
        table.add_row(
            each.name,
            f"{each.num_calls / spent.num_steps:,.4g}",
            f"{own_us[each] / spent.num_steps / 1e3:,.2f}",
            f"{own_us[each] / spent.total_us:.1%}",
        )
    return table


def _peak_memory() -> str:
    """Say the most memory that this process has used so far, and that its tensors have on the GPU."""
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    said = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.2f} GB"
    if torch.cuda.is_available():
        said += f", {torch.cuda.max_memory_allocated() / 1e9:.2f} GB on the GPU"
    return said


def _write_trace(profiler: profile, path: Path) -> None:
    """Write a Chrome trace, packed, for chrome://tracing or ui.perfetto.dev."""
    with replaced_file(path) as beside, TemporaryDirectory(dir=path.parent) as scratch:
        plain = Path(scratch) / "trace.json"
        profiler.export_chrome_trace(str(plain))
        with plain.open("rb") as content, gzip.open(beside, "wb", compresslevel=6) as packed:
            shutil.copyfileobj(content, packed)
