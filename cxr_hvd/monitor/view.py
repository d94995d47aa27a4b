"""A run at one moment: which ranks live, how far they are, how fast, what was validated, where `--resume` goes on.

Owns what the files of a run say together and how that is judged. Pure. Leaves to others: the files (`run_files`),
which of them there are (`run_snapshot`), showing it (`run_table`, `curves`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from cxr_hvd.ledger.reader import Fault
from cxr_hvd.monitor.files import Metrics, Status, Validation
from cxr_hvd.monitor.results_file import ResultsSummary

SILENT_AFTER_S = 15.0
PACE_ROWS = 100
ENDS = ("finished", "stopped on request")
FAILED = "failed: "
MAX_LOSS = 1e9

State = Literal["working", "ended", "failed", "silent", "unknown"]
WORST_FIRST: tuple[State, ...] = ("failed", "silent", "working", "unknown", "ended")

Values = NDArray[np.float64]
Told = TypeVar("Told", Metrics, Validation)


@dataclass(frozen=True)
class RankView:
    """One rank.

    Attributes:
        rank_in_site: its number in its site, from 0.
        rank: its number among all ranks, where it has said so.
        state: `working`, `ended`, `failed`, `silent` (no sign of life, and no end) or `unknown`.
        doing: what it does, in its own words, or did when it fell silent.
        for_s: seconds since it began that; of a silent rank, since its last sign of life.
        step: the step that it named.
        num_steps: steps of the whole run, as it said.
    """

    rank_in_site: int
    rank: int | None
    state: State
    doing: str
    for_s: float | None
    step: int | None
    num_steps: int | None


@dataclass(frozen=True)
class Rows:
    """Steps of one site as arrays of one length, steps ascending; NaN where a value was null or not finite.

    Of a step that was taken again after a resume, the last time counts.
    """

    steps: NDArray[np.int64]
    loss_of_site: dict[str, Values]
    learning_rate: Values
    data_s: Values
    compute_s: Values
    averaging_s: Values
    studies_per_s: Values


@dataclass(frozen=True)
class Pace:
    """What a site's last steps came to.

    Attributes:
        loss_of_site: mean loss by site; None where none was finite.
        learning_rate: of the last step.
        studies_per_s: of all ranks of the run, mean.
        data, compute, averaging: shares of the time, 0 to 1.
        step_s: seconds a step, mean.
    """

    loss_of_site: dict[str, float | None]
    learning_rate: float | None
    studies_per_s: float | None
    data: float
    compute: float
    averaging: float
    step_s: float


@dataclass(frozen=True)
class Checkpoints:
    """What a site's `checkpoints` holds, by number of steps.

    Attributes:
        whole: can be gone on from; ascending.
        unfinished: being written, or left behind when a rank ended in the middle.
        latest, best: where the links of that name point.
    """

    whole: tuple[int, ...] = ()
    unfinished: tuple[int, ...] = ()
    latest: int | None = None
    best: int | None = None


@dataclass(frozen=True)
class SiteView:
    """One site.

    Attributes:
        name: its name.
        problem: why nothing of it can be shown; None where its folder was read.
        num_skipped: steps without an update, because a loss or gradient was not finite; None where not counted.
        is_sampled: `rows` are from all over a longer file.
        checkpoints: None where they cannot be read.
        faults: what in its folder is not as it should be.
    """

    name: str
    problem: str | None = None
    ranks: tuple[RankView, ...] = ()
    rows: Rows | None = None
    num_skipped: int | None = None
    is_sampled: bool = False
    validations: tuple[Validation, ...] = ()
    checkpoints: Checkpoints | None = None
    results: ResultsSummary | None = None
    faults: tuple[Fault, ...] = ()

    @property
    def num_done(self) -> int | None:
        """Steps done: those of its metrics, or, before the first, what its ranks say."""
        if self.rows is not None:
            return int(self.rows.steps[-1]) + 1
        return max((rank.step for rank in self.ranks if rank.step is not None), default=None)


@dataclass(frozen=True)
class RunView:
    """A run at one moment.

    Attributes:
        run: its folder, as it was named.
        time: the moment, in Unix seconds.
        experiment: of its config; None where no config can be read.
        num_steps, steps_per_epoch: its length; None where nothing tells.
        sites: in the config's order.
        faults: what is not as it should be in what all sites have alike.
    """

    run: Path
    time: float
    experiment: str | None
    num_steps: int | None
    steps_per_epoch: int | None
    sites: tuple[SiteView, ...]
    faults: tuple[Fault, ...] = ()

    @property
    def read_sites(self) -> list[SiteView]:
        """The sites whose folders were read."""
        return [site for site in self.sites if site.problem is None]

    @property
    def state(self) -> State:
        """The worst that a rank is in."""
        return min(
            (rank.state for site in self.sites for rank in site.ranks), key=WORST_FIRST.index, default="unknown"
        )

    @property
    def num_done(self) -> int | None:
        """Steps done by all sites that were read."""
        return min((site.num_done for site in self.read_sites if site.num_done is not None), default=None)

    @property
    def furthest(self) -> SiteView | None:
        """The site whose metrics reach furthest: they hold the losses of all sites."""
        told = [site for site in self.sites if site.rows is not None]
        return max(told, key=lambda site: site.num_done or 0, default=None)

    @property
    def left_s(self) -> float | None:
        """Seconds to the last step; None where the run stands still or nothing tells."""
        if self.state != "working" or self.num_steps is None:
            return None
        told = [time_left_s(site, self.num_steps) for site in self.read_sites]
        return max((left_s for left_s in told if left_s is not None), default=None)

    @property
    def best_step(self) -> int | None:
        """Steps done at the validation that was last called the best."""
        return max((row.step for site in self.sites for row in site.validations if row.is_best), default=None)

    @property
    def newest_common_step(self) -> int | None:
        """The newest step of which all sites whose checkpoints were read hold a whole one."""
        return newest_common(site.checkpoints.whole for site in self.sites if site.checkpoints is not None)


def judge_rank(rank_in_site: int, status: Status | None, now: float) -> RankView:
    """Judge a rank by its status; None where it has none that can be read.

    Args:
        now: Unix seconds.
    """
    if status is None:
        return RankView(rank_in_site, None, "unknown", "no status", None, None, None)
    state: State = "working"
    since = status.since
    if status.doing.startswith(FAILED):
        state = "failed"
    elif status.doing in ENDS:
        state = "ended"
    elif now - status.time > SILENT_AFTER_S:
        state, since = "silent", status.time
    for_s = max(0.0, now - since)
    return RankView(rank_in_site, status.rank, state, status.doing, for_s, status.step, status.num_steps)


def without_undone(rows: Sequence[Told]) -> list[Told]:
    """Leave out lines that a resume has undone: it went on from an earlier step."""
    lasting: list[Told] = []
    for row in rows:
        while lasting and lasting[-1].step >= row.step:
            lasting.pop()
        lasting.append(row)
    return lasting


def rows_of(metrics: Sequence[Metrics], sites: Sequence[str]) -> Rows | None:
    """Put lines of metrics side by side; None where there are none.

    Args:
        sites: whose losses to take.
    """
    lasting = without_undone(metrics)
    if not lasting:
        return None
    return Rows(
        steps=np.array([row.step for row in lasting], dtype=np.int64),
        loss_of_site={site: _values([row.loss_of_site.get(site) for row in lasting]) for site in sites},
        learning_rate=_values([row.learning_rate for row in lasting]),
        data_s=_values([row.data_s for row in lasting]),
        compute_s=_values([row.compute_s for row in lasting]),
        averaging_s=_values([row.averaging_s for row in lasting]),
        studies_per_s=_values([row.studies_per_s for row in lasting]),
    )


def _values(found: Sequence[float | None]) -> Values:
    values = np.array([np.nan if value is None else value for value in found], dtype=np.float64)
    values[~(np.abs(values) <= MAX_LOSS)] = np.nan
    return values


def rows_at(rows: Rows, where: slice | NDArray[np.int64]) -> Rows:
    """Return some of the rows, by their index."""
    return Rows(
        steps=rows.steps[where],
        loss_of_site={site: values[where] for site, values in rows.loss_of_site.items()},
        learning_rate=rows.learning_rate[where],
        data_s=rows.data_s[where],
        compute_s=rows.compute_s[where],
        averaging_s=rows.averaging_s[where],
        studies_per_s=rows.studies_per_s[where],
    )


def pace_of(rows: Rows) -> Pace:
    """Return means over the last rows."""
    last = rows_at(rows, slice(-PACE_ROWS, None))
    spent_s = [float(part.mean()) for part in (last.data_s, last.compute_s, last.averaging_s)]
    data, compute, averaging = (part / (sum(spent_s) or 1.0) for part in spent_s)
    rate = float(last.learning_rate[-1])
    return Pace(
        loss_of_site={site: _mean(values) for site, values in last.loss_of_site.items()},
        learning_rate=rate if np.isfinite(rate) else None,
        studies_per_s=_mean(last.studies_per_s),
        data=data,
        compute=compute,
        averaging=averaging,
        step_s=sum(spent_s),
    )


def _mean(values: Values) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None


def time_left_s(site: SiteView, num_steps: int) -> float | None:
    """Return the seconds to the last step, at the pace of a site's last steps and validations."""
    if site.rows is None or site.num_done is None:
        return None
    step_s = pace_of(site.rows).step_s
    if site.validations:
        last = site.validations[-1]
        before = site.validations[-2].step if len(site.validations) > 1 else 0
        step_s += last.seconds / max(1, last.step - before)
    return step_s * max(0, num_steps - site.num_done)


def newest_common(steps_of_sites: Iterable[Iterable[int]]) -> int | None:
    """Return the largest number that all hold; None where there is none."""
    held = [set(steps) for steps in steps_of_sites]
    return max(set.intersection(*held), default=None) if held else None


def advice_on(view: RunView) -> list[str]:
    """Say what to do about ranks that failed or fell silent: one line for all to which the same happened."""
    happened: dict[tuple[State, str], dict[str, list[RankView]]] = {}
    for site in view.sites:
        for rank in site.ranks:
            if rank.state in ("failed", "silent"):
                happened.setdefault((rank.state, rank.doing), {}).setdefault(site.name, []).append(rank)
    newest = view.newest_common_step
    resume = (
        "start anew with --resume auto" if newest is None else f"go on from step {newest:,} with --resume auto"
    )
    lines = []
    for (state, doing), ranks_of_site in happened.items():
        who = _say_who(view, ranks_of_site)
        if state == "failed":
            lines.append(f"{who} {doing}; mend that, then {resume}")
        else:
            silent_s = min(rank.for_s or 0.0 for ranks in ranks_of_site.values() for rank in ranks)
            lines.append(
                f"{who} silent for {say_time(silent_s)}, last {doing}: killed, frozen or cut off; look at the "
                f"last line of its output, see that the job has ended, then {resume}"
            )
    return lines


def _say_who(view: RunView, ranks_of_site: Mapping[str, Sequence[RankView]]) -> str:
    num_ranks = sum(len(ranks) for ranks in ranks_of_site.values())
    if 1 < num_ranks == sum(len(site.ranks) for site in view.sites):
        return "all ranks"
    return " and ".join(
        f"{site} {say_ranks(rank.rank_in_site for rank in ranks)}" for site, ranks in ranks_of_site.items()
    )


def say_ranks(ranks: Iterable[int]) -> str:
    """Return `rank 0`, or `ranks 0-3, 5`."""
    numbers = sorted(ranks)
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    said = ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in spans)
    return f"{'rank' if len(numbers) == 1 else 'ranks'} {said}"


def say_time(seconds: float) -> str:
    """Return a length of time in its two largest units, such as `3 h 20 min`."""
    minutes, hours = seconds / 60, seconds / 3600
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes:.0f} min"
    if hours < 48:
        return f"{int(hours)} h {int(minutes) % 60} min"
    return f"{int(hours / 24)} d {int(hours) % 24} h"
