"""What a bench tells: figures, the machine they were taken on, and their place in a document.

Owns the form of a table of figures. Leaves to each bench what is measured.
"""

import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """A row of the table: what was measured, values round by round, and what was asked for, if anything."""

    what: str
    ratios: Sequence[float]
    target: float | None
    note: str
    is_at_most: bool = False

    def row(self) -> str:
        """Return the row in Markdown."""
        median = statistics.median(self.ratios)
        spread = f"{min(self.ratios):.2f} to {max(self.ratios):.2f}" if len(self.ratios) > 1 else ""
        wanted = verdict = ""
        if self.target is not None:
            is_met = median <= self.target if self.is_at_most else median >= self.target
            wanted = f"{'≤' if self.is_at_most else '≥'} {self.target:.3g}"
            verdict = "met" if is_met else f"**missed by {abs(median / self.target - 1):.0%}**"
        digits = 3 if self.is_at_most and self.target is not None and self.target < 10 else 2
        return f"| {self.what} | {median:.{digits}f} | {spread} | {wanted} | {verdict} | {self.note} |"


def table(figures: Iterable[Figure]) -> str:
    """Return the figures as a table in Markdown."""
    head = ["| what | median | least to greatest | wanted | | rates |", "|---|---|---|---|---|---|"]
    return "\n".join([*head, *[figure.row() for figure in figures]])


def ratios(of: Sequence[float], to: Sequence[float]) -> list[float]:
    """Divide round by round."""
    return [one / other for one, other in zip(of, to, strict=True)]


def turns(names: Sequence[str], num_rounds: int) -> Iterator[tuple[str, bool]]:
    """Yield each name once a round, in an order that turns, and whether the round counts: the first does not."""
    for number in range(num_rounds + 1):
        turn = number % len(names)
        for name in [*names[turn:], *names[:turn]]:
            yield name, number > 0


def in_turn(peers: dict[str, Callable[[], None]], num_rounds: int) -> dict[str, list[float]]:
    """Time each peer once a round, in an order that turns; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    for name, is_counted in turns(list(peers), num_rounds):
        started = time.perf_counter()
        peers[name]()
        if is_counted:
            seconds[name].append(time.perf_counter() - started)
    return seconds


def describe_machine(*packages: str) -> str:
    """Return processor, cores, load, system and the versions of these packages in words."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = models[0].partition(":")[2].strip() if models else platform.machine()
    parts = [model, f"{len(os.sched_getaffinity(0))} cores", f"load {os.getloadavg()[0]:.1f}"]
    parts += [f"Python {platform.python_version()}", *[f"{package} {version(package)}" for package in packages]]
    return ", ".join(parts)


def write_report(path: Path, bench: str, report: str) -> None:
    """Put the report between the marks of this bench in the document at `path`; append them if missing."""
    begin, end = f"<!-- {bench} -->\n", "<!-- end -->"
    text = path.read_text(encoding="utf-8")
    if begin not in text:
        text += f"\n{begin}{end}\n"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    beside = path.with_suffix(".part")
    beside.write_text(f"{before}{begin}\n{report}\n\n{end}{after}", encoding="utf-8")
    shutil.move(beside, path)
