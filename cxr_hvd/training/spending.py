"""Where the time of recorded steps went: summed up by part and by operator, and shown as two tables."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.table import Table

PARTS = {
    "data": "data",
    "forward": "forward",
    "backward": "backward",
    "exchange": "averaging",
    "status": "agreeing",
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
    for span in sorted(spans, key=lambda span: (span.start_us, -span.end_us)):
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
    self_us = {operator: operator.gpu_us if spent.has_gpu else operator.cpu_us for operator in spent.operators}
    table = Table()
    table.add_column("operator", no_wrap=True, overflow="ellipsis")
    for heading in ("calls a step", "self ms a step", "share"):
        table.add_column(heading, justify="right")
    for operator in sorted(self_us, key=lambda operator: -self_us[operator])[:NUM_OPERATORS]:
        table.add_row(
            operator.name,
            f"{operator.num_calls / spent.num_steps:,.4g}",
            f"{self_us[operator] / spent.num_steps / 1e3:,.2f}",
            f"{self_us[operator] / spent.total_us:.1%}",
        )
    return table
