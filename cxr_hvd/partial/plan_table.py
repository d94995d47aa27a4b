"""The sharing plan as tables and as plain values: what leaves a rank, block by block, and all else that may."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

from rich.console import Group
from rich.table import Table
from rich.text import Text

from cxr_hvd.ledger.allowed import TRAFFIC
from cxr_hvd.partial.plan import Scope, SharingPlan
from cxr_hvd.partial.record import plan_record

Reach = Literal["nobody", "site", "all"]
"""To whom a rank's shared tensors go: to nobody where it is alone, to its own site's ranks, or to all sites."""


def reach_of(ranks_per_site: Sequence[int]) -> Reach:
    """Return to whom the ranks of a job hand anything."""
    if sum(ranks_per_site) == 1:
        return "nobody"
    return "all" if len(ranks_per_site) > 1 else "site"


def plan_table(plan: SharingPlan, num_steps: int | None = None, reach: Reach = "all") -> Group:
    """Build the table of what leaves a rank: block, tensors, parameters, bytes a step, shared or private.

    Args:
        num_steps: steps of the run, for its total; None where they are not known.
        reach: to whom it goes.
    """
    rows = plan.summary()
    megabytes = plan.bytes_per_exchange() / 1e6
    title = f"Sharing plan: each rank hands over {megabytes:,.1f} MB of {plan.exchange} {plan.pace}"
    if num_steps is not None:
        run_bytes = plan.bytes_per_exchange() * plan.num_exchanges(num_steps)
        title += f", {run_bytes / 1e9:,.2f} GB in a run of {num_steps:,} steps"
    if reach == "site":
        title += "; to ranks of its own site, the only one: nothing leaves it"
    if reach == "nobody":
        title = "Sharing plan: one rank alone; nothing travels, whatever is shared or private below"
    table = Table()
    for heading in ("block", "scope"):
        table.add_column(heading)
    for heading in ("tensors", "parameters", "bytes a step"):
        table.add_column(heading, justify="right")
    for row in rows:
        style = "green" if row.scope is Scope.PRIVATE else ""
        table.add_row(
            row.block,
            str(row.scope),
            f"{row.num_tensors}",
            f"{row.num_parameters:,}",
            "0" if reach == "nobody" else f"{row.bytes_per_step:,.0f}",
            style=style,
        )
    return Group(Text(title), table)


def traffic_table() -> Table:
    """Build the table of all else that may leave a rank."""
    table = Table(title="What else may leave a rank, all of it", title_justify="left")
    for heading in ("name", "what", "when"):
        table.add_column(heading)
    table.add_column("bytes at most", justify="right")
    for name, traffic in TRAFFIC.items():
        if traffic.max_bytes is not None:
            where = "; stays at its site" if traffic.is_site_only else ""
            table.add_row(name, traffic.what + where, traffic.when, f"{traffic.max_bytes:,}")
    return table


def complete_plan(plan: SharingPlan, num_steps: int | None, reach: Reach = "all") -> dict[str, Any]:
    """Return the plan, its bytes and all other traffic as plain values, for `cxr-hvd plan --json`.

    `reach` says to whom anything goes; of a rank alone all bytes are 0.
    """
    exchanges = None if num_steps is None else plan.num_exchanges(num_steps)
    is_alone = reach == "nobody"
    num_bytes = 0 if is_alone else plan.bytes_per_exchange()
    other = {name: asdict(traffic) for name, traffic in TRAFFIC.items() if traffic.max_bytes is not None}
    return {
        **plan_record(plan).model_dump(),
        "reach": reach,
        "blocks": [asdict(row) | ({"bytes_per_step": 0.0} if is_alone else {}) for row in plan.summary()],
        "bytes_per_exchange": num_bytes,
        "bytes_per_step": num_bytes / plan.every,
        "num_steps": num_steps,
        "bytes_per_run": None if exchanges is None else num_bytes * exchanges,
        "other": {} if is_alone else other,
    }
