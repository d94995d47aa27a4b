"""A run at one moment: which ranks live, how far they are, how fast, what was validated, where `--resume` goes on.

Owns what the records of a run say together. Pure. Leaves to others: reading them (`snapshot`), what to do
(`advice`), showing it (`table`, `curves`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from cxr_hvd.launch.rank_status import RankStatus
from cxr_hvd.ledger.reader import Fault
from cxr_hvd.monitor.results_file import ResultsSummary
from cxr_hvd.training.records import StepRow, Verdict

PACE_ROWS = 100
MAX_LOSS = 1e9

State = Literal["working", "ended", "failed", "silent", "unknown"]
WORST_FIRST: tuple[State, ...] = ("failed", "silent", "working", "unknown", "ended")

Values = NDArray[np.float64]
Row = TypeVar("Row", StepRow, Verdict)


@dataclass(frozen=True)
class RankView:
    """One rank.

    Attributes:
        rank_in_site: its number in its site, from 0.
        rank: its number among all ranks; None where it has no status.
        state: `working`, `ended`, `failed`, `silent` (no sign of life, and no end) or `unknown`.
        doing: what it does, in its own words, or did when it fell silent.
        for_s: seconds since it began that; of a silent rank, since its last sign of life.
        step: the step that it named.
        num_steps: steps of the whole run, by its status.
    """

    rank_in_site: int
    rank: int | None = None
    state: State = "unknown"
    doing: str = "no status"
    for_s: float | None = None
    step: int | None = None
    num_steps: int | None = None


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
    """Means over a site's last steps.

    Attributes:
        loss_of_site: mean loss by site; None where none was finite.
        learning_rate: of the last step.
        studies_per_s: of all ranks of the run.
        data, compute, averaging: shares of the time, 0 to 1.
        step_s: seconds a step.
    """

    loss_of_site: dict[str, float | None]
    learning_rate: float | None
    studies_per_s: float | None
    data: float
    compute: float
    averaging: float
    step_s: float


@dataclass(frozen=True)
class CheckpointsHeld:
    """The checkpoints of a site, by number of steps.

    Attributes:
        whole: a run can go on from these; ascending.
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
        num_skipped: steps without an update, because a loss or gradient was not finite.
        checkpoints: None where they cannot be read.
        faults: what in its folder is not as it should be.
    """

    name: str
    problem: str | None = None
    ranks: tuple[RankView, ...] = ()
    rows: Rows | None = None
    num_skipped: int = 0
    validations: tuple[Verdict, ...] = ()
    checkpoints: CheckpointsHeld | None = None
    results: ResultsSummary | None = None
    faults: tuple[Fault, ...] = ()

    @property
    def num_done(self) -> int | None:
        """Steps done: those of its metrics, or, before the first, those of its ranks' statuses."""
        if self.rows is not None:
            return int(self.rows.steps[-1]) + 1
        return max((rank.step for rank in self.ranks if rank.step is not None), default=None)


@dataclass(frozen=True)
class RunView:
    """A run at one moment.

    Attributes:
        run: its folder, as the user named it.
        time: the moment, in Unix seconds.
        experiment: of its config; None where no config can be read.
        num_steps, steps_per_epoch: its length; None where no record says it.
        sites: in the config's order.
        faults: what is not as it should be in the records that all sites have alike.
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
        """The worst state of a rank."""
        states = (rank.state for site in self.sites for rank in site.ranks)
        return min(states, key=WORST_FIRST.index, default="unknown")

    @property
    def num_done(self) -> int | None:
        """Steps done by all sites that were read."""
        return min((site.num_done for site in self.read_sites if site.num_done is not None), default=None)

    @property
    def furthest(self) -> SiteView | None:
        """The site whose metrics reach furthest: they hold the losses of all sites."""
        with_rows = [site for site in self.sites if site.rows is not None]
        return max(with_rows, key=lambda site: site.num_done or 0, default=None)

    @property
    def left_s(self) -> float | None:
        """Seconds to the last step; None where the run stands still or its length is not known."""
        if self.state != "working" or self.num_steps is None:
            return None
        times = [time_left_s(site, self.num_steps) for site in self.read_sites]
        return max((left_s for left_s in times if left_s is not None), default=None)

    @property
    def best_step(self) -> int | None:
        """Steps done at the validation that was last called the best."""
        return max((row.step for site in self.sites for row in site.validations if row.is_best), default=None)

    @property
    def newest_common_step(self) -> int | None:
        """The newest step of which all sites whose checkpoints were read hold a whole one."""
        return newest_common(site.checkpoints.whole for site in self.sites if site.checkpoints is not None)


def judge_rank(rank_in_site: int, status: RankStatus, now: float) -> RankView:
    """Judge a rank by its status.

    Args:
        now: Unix seconds.
    """
    state: State = "working"
    since = status.since
    if status.has_failed:
        state = "failed"
    elif status.has_ended:
        state = "ended"
    elif status.is_silent(now):
        state, since = "silent", status.time
    for_s = max(0.0, now - since)
    return RankView(rank_in_site, status.rank, state, status.doing, for_s, status.step, status.num_steps)


def without_undone(rows: Sequence[Row]) -> list[Row]:
    """Leave out rows that a resume has undone: it went on from an earlier step."""
    lasting: list[Row] = []
    for row in rows:
        while lasting and lasting[-1].step >= row.step:
            lasting.pop()
        lasting.append(row)
    return lasting


def rows_of(metrics: Sequence[StepRow], sites: Sequence[str]) -> Rows | None:
    """Put the rows of steps side by side; None where there are none.

    Args:
        sites: whose losses to take.
    """
    lasting = without_undone(metrics)
    if not lasting:
        return None
    return Rows(
        steps=np.array([row.step for row in lasting], dtype=np.int64),
        loss_of_site={site: _array(row.loss_of_site.get(site) for row in lasting) for site in sites},
        learning_rate=_array(row.learning_rate for row in lasting),
        data_s=_array(row.data_s for row in lasting),
        compute_s=_array(row.compute_s for row in lasting),
        averaging_s=_array(row.averaging_s for row in lasting),
        studies_per_s=_array(row.studies_per_s for row in lasting),
    )


def _array(values: Iterable[float | None]) -> Values:
    array = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    array[~(np.abs(array) <= MAX_LOSS)] = np.nan
    return array


def pace_of(rows: Rows) -> Pace:
    """Return means over the last rows."""
    times_s = [float(part[-PACE_ROWS:].mean()) for part in (rows.data_s, rows.compute_s, rows.averaging_s)]
    data, compute, averaging = (part_s / (sum(times_s) or 1.0) for part_s in times_s)
    return Pace(
        loss_of_site={site: _mean(values[-PACE_ROWS:]) for site, values in rows.loss_of_site.items()},
        learning_rate=_mean(rows.learning_rate[-1:]),
        studies_per_s=_mean(rows.studies_per_s[-PACE_ROWS:]),
        data=data,
        compute=compute,
        averaging=averaging,
        step_s=sum(times_s),
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
    steps = [set(held) for held in steps_of_sites]
    return max(set.intersection(*steps), default=None) if steps else None
