"""What a step would cost at a size that nobody here has: a model with seven constants, fitted to real jobs.

After Thakur, Rabenseifner and Gropp ("Optimization of collective communication operations in MPICH", 2005): a
message costs a latency and its bytes. Sums of N ranks, R at each of S sites, are priced for two algorithms:

- `halving`, Rabenseifner's: 2 log2 N rounds. Open MPI 4.1 takes it by default for buffers from 256 KiB on, which
  are 98% of our bytes. It pairs neighbours first: where the ranks of a site follow each other and are a power of
  two, they sum within the site, and then send together 2 (S-1)/S times the buffer through their site's uplink.
- `ring`, which Gloo takes: 2 (N-1) rounds. One edge of the ring leaves each site and carries 2 (N-1)/N times the
  buffer; every round waits for it.

The bytes are nearly the same, the rounds are not: with 20 ms a round they make many seconds of a ring. A step
sends one small gather, the pulse, and every `every` steps an exchange: a sum over all ranks for each shared
buffer, one over the site's own for each private buffer. Horovod works them off one by one, after one negotiation.

Assumed: every site has one uplink, equal both ways, and equally many ranks; each rank has a core of its own (what
is measured with more ranks than cores is priced by its crowding); the slowest rank computes `compute_s`.
The constants come from `python -m bench.scale`; docs/performance.md says how well they do. They rest on at most
4 ranks, and on 2 sites: all beyond is extrapolation. Owns the model and its table; measures nothing.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields
from math import ceil, isfinite, log2
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.table import Table
from scipy.optimize import nnls

from cxr_hvd.errors import UsageError
from cxr_hvd.partial.plan import BYTES_OF, Scope, SharingPlan

Algorithm = Literal["halving", "ring"]
ALGORITHMS: tuple[Algorithm, ...] = ("halving", "ring")
FIT = Path(__file__).with_name("cost_fit.json")

PULSE_BYTES = 40
"""What a rank tells all others in every step: five numbers."""

HIDEABLE = 2 / 3
"""The share of computing that is backward, which costs twice what forward does: gradients can hide behind it."""

HIDDEN = 0.87
"""How much of a gradients exchange hides where there is enough to hide behind (bench/averaging.py)."""

MOST_RANKS = 1 << 20


@dataclass(frozen=True)
class Costs:
    """The constants of the model. Times in seconds; none is negative.

    Attributes:
        exchange_s: one batch of collectives, whatever is in it: Horovod's cycle and its negotiation.
        round_s: one round of messages, beside the line's delay.
        copy_s_per_byte: a byte that a rank sends and sums within its site.
        tcp_s_per_byte: a byte on its way out of a site through the network stack, beside the line's rate.
        exchange_delays: one-way delays of the line that the negotiation takes, for each doubling of the sites.
        round_delays: one-way delays that a round between sites takes; at least 1.
        stretch: how many times longer the line is busy than its rate says; at least 1.
    """

    exchange_s: float
    round_s: float
    copy_s_per_byte: float
    tcp_s_per_byte: float
    exchange_delays: float
    round_delays: float
    stretch: float


LEAST = Costs(0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0)
"""What no measurement may undercut: a message cannot arrive before its delay, nor faster than the rate."""


@dataclass(frozen=True)
class Link:
    """A site's way to the others: one-way delay in seconds, and bytes a second each way, infinite for a cable."""

    delay_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Layout:
    """How many sites, and ranks at each; crowding is ranks to cores of a machine, where there are more."""

    num_sites: int
    ranks_per_site: int
    crowding: float = 1.0

    @property
    def num_ranks(self) -> int:
        return self.num_sites * self.ranks_per_site

    def __str__(self) -> str:
        return f"{self.num_sites}x{self.ranks_per_site}"


USUAL_LAYOUTS = (Layout(1, 1), Layout(2, 1), Layout(4, 4), Layout(16, 16), Layout(64, 16))


@dataclass(frozen=True)
class Batch:
    """Collectives that are begun together: bytes of each sum, over all ranks or within a site, and of a gather."""

    shared: tuple[int, ...] = ()
    private: tuple[int, ...] = ()
    row_bytes: int = 0


@dataclass(frozen=True)
class Point:
    """One batch as it was measured, in seconds."""

    batch: Batch
    layout: Layout
    link: Link
    seconds: float


@dataclass(frozen=True)
class StepCost:
    """A step on average, in seconds.

    Attributes:
        compute_s: forward, backward and update.
        shared_s: sums over all sites, with their negotiation, spread over `every` steps.
        private_s: sums within a site, spread likewise.
        pulse_s: what all ranks tell each other in every step.
        hidden_s: how much of the sums hides behind backward.
        step_s: the whole.
    """

    compute_s: float
    shared_s: float
    private_s: float
    pulse_s: float
    hidden_s: float
    step_s: float


@dataclass(frozen=True)
class Fit:
    """What a run of the bench left behind.

    Attributes:
        costs: the constants.
        compute_s: a step without any exchange, as the bench takes it.
        median_error, worst_error: relative errors on points that the constants were not fitted to.
    """

    costs: Costs
    compute_s: float
    median_error: float
    worst_error: float


def loads(batch: Batch, layout: Layout, link: Link, algorithm: Algorithm) -> tuple[float, ...]:
    """Return how often a batch takes each of the constants, in the order of `Costs`; zeros for one rank."""
    sites, ranks, everyone = layout.num_sites, layout.ranks_per_site, layout.num_ranks
    is_begun = batch.shared or batch.row_bytes or (batch.private and ranks > 1)
    if everyone == 1 or not is_begun:
        return (0.0,) * len(fields(Costs))
    doublings, doublings_within = ceil(log2(sites)), ceil(log2(ranks))
    if algorithm == "ring":
        between, within = (everyone - 1, 0) if sites > 1 else (0, everyone - 1)
        within_share = 1 - 1 / everyone if ranks > 1 else 0.0
        uplink_share = 1 - 1 / everyone if sites > 1 else 0.0
        within_private = ranks - 1
        rows = everyone - 1
    else:
        between, within = doublings, doublings_within
        within_share, uplink_share = 1 - 1 / ranks, 1 - 1 / sites
        within_private = doublings_within
        rows = ranks * (everyone - ranks)
    # A sum goes the way of a gather twice: there as partial sums, back as the whole.
    passes = 2 * len(batch.shared) + bool(batch.row_bytes)
    rounds = passes * (between + within) + 2 * len(batch.private) * within_private
    copied = 2 * sum(batch.shared) * within_share + 2 * sum(batch.private) * (1 - 1 / ranks)
    copied += batch.row_bytes * (everyone - 1)
    through = 2 * sum(batch.shared) * uplink_share + (batch.row_bytes * rows if sites > 1 else 0)
    return (
        1.0,
        rounds * layout.crowding,
        copied * layout.crowding,
        through * layout.crowding,
        doublings * link.delay_s,
        passes * between * link.delay_s,
        through / link.bytes_per_s,
    )


def batch_s(costs: Costs, batch: Batch, layout: Layout, link: Link, algorithm: Algorithm = "halving") -> float:
    """Return how long all collectives of a batch take, in seconds."""
    loaded = loads(batch, layout, link, algorithm)
    return float(np.dot(astuple(costs), loaded))


def fit(points: Sequence[Point]) -> Costs:
    """Return the constants with the least squares of relative errors, none below what is possible.

    Args:
        points: measured with the default algorithm; at least as many as there are constants.
    """
    loaded = np.array([loads(point.batch, point.layout, point.link, "halving") for point in points])
    seconds = np.array([point.seconds for point in points])
    least = np.array(astuple(LEAST))
    # Constants differ by ten powers of ten: scaled to equal columns, the solver sees them alike.
    relative = loaded / seconds[:, None]
    scale = np.where((norms := np.linalg.norm(relative, axis=0)) > 0, norms, 1.0)
    excess, _ = nnls(relative / scale, (seconds - loaded @ least) / seconds)
    return Costs(*(float(each) for each in least + excess / scale))


def relative_error(costs: Costs, point: Point) -> float:
    """Return prediction over measurement, less one."""
    return batch_s(costs, point.batch, point.layout, point.link) / point.seconds - 1


def batch_of(plan: SharingPlan) -> Batch:
    """Return what one exchange of a plan begins together.

    Raises:
        UsageError: shared tensors travel in 16 bits, whose swaps the model does not know.
    """
    if BYTES_OF[plan.wire] != BYTES_OF["float32"]:
        raise UsageError(
            f"--scale knows the cost of sharing.wire: float32, found {plan.wire}: add --set sharing.wire=float32"
        )
    sizes = {
        scope: tuple(each.num_bytes for each in plan.buffers() if each.scope is scope)
        for scope in (Scope.SHARED, Scope.PRIVATE)
    }
    return Batch(sizes[Scope.SHARED], sizes[Scope.PRIVATE])


def predict(
    costs: Costs,
    plan: SharingPlan,
    layout: Layout,
    link: Link,
    compute_s: float,
    algorithm: Algorithm = "halving",
) -> StepCost:
    """Predict a step on average, in seconds.

    Args:
        costs: constants of the machines, as fitted.
        plan: what is shared and private, how often, and whether weights or gradients.
        layout: sites and ranks.
        link: every site's way to the others.
        compute_s: a step of the slowest rank without any exchange.
        algorithm: how sums are made.

    Raises:
        UsageError: as `batch_of`.
    """
    exchange = batch_of(plan)
    both_s = batch_s(costs, exchange, layout, link, algorithm) / plan.every
    shared_s = batch_s(costs, Batch(exchange.shared), layout, link, algorithm) / plan.every
    pulse_s = batch_s(costs, Batch(row_bytes=PULSE_BYTES), layout, link, algorithm)
    hidden_s = min(HIDDEN * both_s, HIDEABLE * compute_s) if plan.exchange == "gradients" else 0.0
    return StepCost(
        compute_s=compute_s,
        shared_s=shared_s,
        private_s=both_s - shared_s,
        pulse_s=pulse_s,
        hidden_s=hidden_s,
        step_s=compute_s + both_s + pulse_s - hidden_s,
    )


def read_layout(text: str) -> Layout:
    """Read SITESxRANKS, for example 64x16.

    Raises:
        UsageError: it is not two whole numbers from 1 on, or more ranks than anybody has.
    """
    sites, _, ranks = text.lower().partition("x")
    if not (sites.isascii() and sites.isdigit() and ranks.isascii() and ranks.isdigit()):
        raise UsageError(f"--scale {text}: expected SITESxRANKS, ranks at each site, for example 64x16")
    layout = Layout(int(sites), int(ranks))
    if not 1 <= layout.num_ranks <= MOST_RANKS:
        raise UsageError(
            f"--scale {text}: expected from 1 to {MOST_RANKS:,} ranks in all, found {layout.num_ranks:,}"
        )
    return layout


def read_link(delay_ms: float, rate_mbit: float) -> Link:
    """Return the link of these options: one-way delay in milliseconds, megabits a second each way.

    Raises:
        UsageError: a negative delay, or a rate that is not above zero.
    """
    if not (isfinite(delay_ms) and delay_ms >= 0):
        raise UsageError(f"--link-ms {delay_ms:g}: expected the one-way delay in milliseconds, 0 or more")
    if not rate_mbit > 0:
        raise UsageError(f"--link-mbit {rate_mbit:g}: expected megabits a second, more than 0")
    return Link(delay_ms / 1e3, rate_mbit * 1e6 / 8)


def check_compute_s(compute_s: float) -> float:
    """Return the seconds that a step computes.

    Raises:
        UsageError: negative or not finite.
    """
    if not (isfinite(compute_s) and compute_s >= 0):
        raise UsageError(f"--compute-s {compute_s:g}: expected the seconds of a step without exchange, 0 or more")
    return compute_s


def load_fit(path: Path = FIT) -> Fit:
    """Read the constants that `bench.scale` fitted."""
    held = json.loads(path.read_text(encoding="utf-8"))
    errors = held["errors"]["held out"]
    return Fit(Costs(**held["costs"]), held["compute_s"], errors["median"], errors["worst"])


def scale_rows(
    fitted: Fit, plan: SharingPlan, layouts: Sequence[Layout], link: Link, compute_s: float
) -> list[dict[str, Any]]:
    """Return for each layout the parts of a step in seconds, and the step with either algorithm, as plain values.

    Raises:
        UsageError: as `batch_of`.
    """
    rows = []
    for layout in layouts:
        parts = {name: predict(fitted.costs, plan, layout, link, compute_s, name) for name in ALGORITHMS}
        rows.append(
            {"sites": layout.num_sites, "ranks_per_site": layout.ranks_per_site, "ranks": layout.num_ranks}
            | asdict(parts["halving"])
            | {"step_s_by_ring": parts["ring"].step_s}
        )
    return rows


def scale_table(fitted: Fit, plan: SharingPlan, layouts: Sequence[Layout], link: Link, compute_s: float) -> Table:
    """Build the table of what a step takes at these sizes, and say what it rests on.

    Raises:
        UsageError: as `batch_of`.
    """
    pace = "every step" if plan.every == 1 else f"every {plan.every} steps"
    title = (
        f"Predicted step, seconds: {plan.bytes_per_exchange() / 1e6:,.1f} MB of {plan.exchange} {pace}, "
        f"link {link.delay_s * 1e3:g} ms one way, {link.bytes_per_s * 8 / 1e6:,.0f} Mbit/s"
    )
    caption = (
        "Extrapolated beyond 2 sites and 4 ranks, from jobs on one machine: on points kept back, half the errors "
        f"are below {fitted.median_error:.0%}, the worst is {fitted.worst_error:.0%}. step: as Open MPI sums by "
        "default; by ring: as Gloo does. compute: the slowest rank's."
    )
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for heading in ("sites x ranks", "compute", "shared", "private", "pulse", "hidden", "step", "by ring"):
        table.add_column(heading, justify="right")
    for row in scale_rows(fitted, plan, layouts, link, compute_s):
        names = ("compute_s", "shared_s", "private_s", "pulse_s", "hidden_s", "step_s", "step_s_by_ring")
        table.add_row(f"{row['sites']}x{row['ranks_per_site']}", *(said_s(row[name]) for name in names))
    return table


def said_s(seconds: float) -> str:
    """Say seconds with three digits that count."""
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.3g}"
