"""Estimate how long a step takes at a size that nobody here has: bytes over rate, plus rounds times delay.

A sum of n bytes over S sites sends 2 (S-1)/S n bytes through each site's link. It takes rounds of messages, each
of which waits for the link's delay: 2 log2 S by halving (Open MPI's default for large buffers), 2 (N-1) by a ring
of N ranks (Gloo). All shared tensors lie in one buffer, and so pay for these rounds once. In every step all ranks
also gather their status; where weights travel it is read one step late, and hides behind the next step.

Assumed: equal sites with one link each, messages within a site cost nothing, every rank computes as long as the
slowest. It is a lower bound: over a slow link measured exchanges took 1.12 times as long (Open MPI, send only),
1.26 times (Gloo) or 1.6 times (Open MPI as it comes); see docs/slow-line.md.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import ceil, isfinite, log2

from rich.table import Table

from cxr_hvd.errors import UsageError
from cxr_hvd.partial.plan import SharingPlan

COMPUTE_S = 0.26
"""A step without any exchange, as two cores take it in the bench: DenseNet121, 8 studies."""

BACKWARD = 2 / 3
"""The share of computing that is backward: gradients can travel meanwhile."""

SLOW_LINE_FACTOR = 1.25
"""An exchange over a slow line to its lower bound, with the launch setting for slow lines, or by Gloo."""

STATUS_BYTES = 40
MAX_RANKS = 1 << 20


@dataclass(frozen=True)
class Link:
    """A site's way to the others: one-way delay in seconds, and bytes a second each way."""

    delay_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Layout:
    """How many sites, and ranks at each."""

    num_sites: int
    ranks_per_site: int

    @property
    def num_ranks(self) -> int:
        return self.num_sites * self.ranks_per_site


USUAL_LAYOUTS = (Layout(1, 1), Layout(2, 1), Layout(4, 4), Layout(16, 16), Layout(64, 16))


@dataclass(frozen=True)
class StepCost:
    """A step on average, in seconds.

    Attributes:
        compute_s: forward, backward and update.
        exchange_s: sums over all sites, spread over `every` steps.
        status_s: what all ranks tell each other in every step.
        hidden_s: how much of these hides: gradients behind backward, averages in the background and the status of
            weights behind the next steps.
        step_s: the whole.
        step_s_by_ring: the whole, where sums go round a ring.
    """

    compute_s: float
    exchange_s: float
    status_s: float
    hidden_s: float
    step_s: float
    step_s_by_ring: float


def sum_s(buffer_bytes: Iterable[int], layout: Layout, link: Link, is_ring: bool = False) -> float:
    """Return how long all ranks take to sum these buffers one after the other, in seconds."""
    if layout.num_sites == 1:
        return 0.0
    rounds = layout.num_ranks - 1 if is_ring else ceil(log2(layout.num_sites))
    members = layout.num_ranks if is_ring else layout.num_sites
    share = 2 * (members - 1) / members
    return sum(2 * rounds * link.delay_s + share * num_bytes / link.bytes_per_s for num_bytes in buffer_bytes)


def status_s(layout: Layout, link: Link, is_ring: bool = False) -> float:
    """Return how long all ranks take to gather their status, in seconds."""
    if layout.num_sites == 1:
        return 0.0
    rounds = layout.num_ranks - 1 if is_ring else ceil(log2(layout.num_sites))
    sent_bytes = STATUS_BYTES * (layout.num_ranks - 1) * (1 if is_ring else layout.ranks_per_site)
    return rounds * link.delay_s + sent_bytes / link.bytes_per_s


def overlapped_s(num_bytes: int, every: int, layout: Layout, link: Link, is_ring: bool = False) -> float:
    """Return how long the fragments of one overlapped average take on the line, in seconds.

    A step on average takes the larger of computing and this over `every`.
    """
    count = SharingPlan((), every=every, overlap=True).num_fragments
    return sum_s([ceil(num_bytes / count)] * count, layout, link, is_ring)


def predict(plan: SharingPlan, layout: Layout, link: Link, compute_s: float = COMPUTE_S) -> StepCost:
    """Estimate a step on average.

    Args:
        plan: what is shared, how often, and whether weights or gradients.
        link: every site's way to the others.
        compute_s: a step of the slowest rank without any exchange.
    """
    num_bytes = plan.bytes_per_exchange()
    step_s = {}
    for is_ring in (True, False):
        whole_s = sum_s([num_bytes], layout, link, is_ring)
        if plan.overlap:
            whole_s = overlapped_s(num_bytes, plan.every, layout, link, is_ring)
        exchange_s, status = whole_s / plan.every, status_s(layout, link, is_ring)
        if plan.exchange == "gradients":
            hidden_s = min(exchange_s, BACKWARD * compute_s)
        else:
            hidden_s = min(status, compute_s) + (min(exchange_s, compute_s) if plan.overlap else 0.0)
        step_s[is_ring] = compute_s + exchange_s + status - hidden_s
    return StepCost(compute_s, exchange_s, status, hidden_s, step_s[False], step_s_by_ring=step_s[True])


def scale_rows(
    plan: SharingPlan, layouts: Sequence[Layout], link: Link, compute_s: float = COMPUTE_S
) -> list[dict[str, float]]:
    """Return an estimate for each layout as plain values, times in seconds."""
    return [
        {"sites": layout.num_sites, "ranks_per_site": layout.ranks_per_site, "ranks": layout.num_ranks}
        | asdict(predict(plan, layout, link, compute_s))
        for layout in layouts
    ]


def scale_table(plan: SharingPlan, layouts: Sequence[Layout], link: Link, compute_s: float = COMPUTE_S) -> Table:
    """Build the table of what a step takes at these sizes, with two digits."""
    pace = "every step" if plan.every == 1 else f"every {plan.every} steps"
    pace += " in the background" if plan.overlap else ""
    title = (
        f"Estimated step, seconds: {plan.bytes_per_exchange() / 1e6:,.1f} MB of {plan.exchange} {pace}, "
        f"link {link.delay_s * 1e3:g} ms one way, {link.bytes_per_s * 8 / 1e6:,.0f} Mbit/s"
    )
    caption = (
        "Bytes over the link's rate, plus rounds of messages times its delay; nothing else is counted. Over a "
        "slow link, measured exchanges took 1.12 to 1.6 times as long (docs/slow-line.md). step: sums by halving, "
        "as Open MPI does; by ring: as Gloo does. compute: the slowest rank's."
    )
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for heading in ("sites x ranks", "compute", "exchange", "status", "hidden", "step", "by ring"):
        table.add_column(heading, justify="right")
    for layout in layouts:
        cost = predict(plan, layout, link, compute_s)
        seconds = (two_digits(part_s) for part_s in asdict(cost).values())
        table.add_row(f"{layout.num_sites}x{layout.ranks_per_site}", *seconds)
    return table


def two_digits(seconds: float) -> str:
    """Return seconds with two digits that count."""
    return f"{float(f'{seconds:.2g}'):,.0f}" if seconds >= 10 else f"{seconds:.2g}"


def read_layout(text: str) -> Layout:
    """Read SITESxRANKS, for example 64x16.

    Raises:
        UsageError: it is not two whole numbers from 1 on, or more ranks than anybody has.
    """
    sites, _, ranks = text.lower().partition("x")
    if not (sites.isascii() and sites.isdigit() and ranks.isascii() and ranks.isdigit()):
        raise UsageError(f"--scale {text}: expected SITESxRANKS, ranks at each site, for example 64x16")
    layout = Layout(int(sites), int(ranks))
    if not 1 <= layout.num_ranks <= MAX_RANKS:
        raise UsageError(
            f"--scale {text}: expected from 1 to {MAX_RANKS:,} ranks in all, found {layout.num_ranks:,}"
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
