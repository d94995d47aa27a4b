"""What left a site, in words and numbers for those who must answer for it: the summary of `ledger verify`.

Adds up what `audit` has read and judged. Owns the wording; judges nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from cxr_hvd.ledger.allowed import TRAFFIC
from cxr_hvd.ledger.audit import Audit, SiteAudit
from cxr_hvd.ledger.events import Entry
from cxr_hvd.ledger.reader import LedgerStart, RankLedger
from cxr_hvd.ledger.writer import FLUSH_EVERY_S


@dataclass(frozen=True)
class SummaryRow:
    """One thing that was handed over: a block of the network, or a small thing.

    Attributes:
        purpose: its root in the traffic table.
        name: the block; empty for small things.
        reach: "all" where it left the site, "site" where it stayed among the site's ranks.
        calls: how often, over all ranks of the site.
        bytes: how much in all, as handed over.
    """

    purpose: str
    name: str
    reach: str
    calls: int
    bytes: int


@dataclass(frozen=True)
class Account:
    """What one site handed over, over all its ranks and starts, as far as its ledgers hold.

    Attributes:
        is_whole: whether every line of its ledgers could be read. Else what stayed at the site is not known.
        has_plan: whether the plan that the ledgers name was read; without it nothing is known of private blocks.
    """

    site: str
    num_ranks: int
    num_starts: int
    last_step: int
    rows: list[SummaryRow]
    sent_bytes: int
    is_whole: bool
    has_plan: bool
    private_blocks: list[str]
    num_private_elements: int
    notes: list[str]


def account_of(site: SiteAudit, others: Iterable[RankLedger]) -> Account:
    """Add up one site's ledgers.

    Args:
        site: the site, as audited.
        others: the ledgers of the other sites that are here.
    """
    starts = [start for record in site.records for start in record.starts]
    entries = [entry for start in starts for _, entry in start.entries]
    private = [t for t in site.plan.tensors if t.scope == "private"] if site.plan else []
    return Account(
        site=site.site,
        num_ranks=len(site.records),
        num_starts=max((len(record.starts) for record in site.records), default=0),
        last_step=max((entry.last_step for entry in entries), default=-1),
        rows=rows_of(entries),
        sent_bytes=round(sum(entry.count * entry.sent_bytes_per_call for entry in entries)),
        is_whole=not any(record.faults for record in site.records),
        has_plan=site.plan is not None,
        private_blocks=list(dict.fromkeys(tensor.block for tensor in private)),
        num_private_elements=sum(tensor.num_elements for tensor in private),
        notes=[note for record in site.records for note in notes_of(record)]
        + witness_notes(site, {record.file for record in others}),
    )


def rows_of(entries: Sequence[Entry]) -> list[SummaryRow]:
    """Add entries up by purpose, block and reach, in the traffic table's order and then the network's."""
    sums: dict[tuple[str, str, str], list[int]] = {}
    for entry in entries:
        is_model = entry.root in TRAFFIC and TRAFFIC[entry.root].max_bytes is None
        row = sums.setdefault((entry.root, entry.name if is_model else "", entry.group), [0, 0])
        # A short wire takes two collectives for one average: count the first.
        row[0] += entry.count if not is_model or entry.how != "allgather" else 0
        row[1] += entry.count * entry.bytes
    order = list(TRAFFIC)
    keys = sorted(sums, key=lambda key: order.index(key[0]) if key[0] in order else len(order))
    return [SummaryRow(*key, *sums[key]) for key in keys]


def notes_of(record: RankLedger) -> list[str]:
    """Say what a ledger cannot tell."""
    notes = []
    for start, following in zip(record.starts, [*record.starts[1:], None], strict=False):
        if not start.closing:
            ended = "was stopped or is still running" if following is None else "was stopped before it ended"
            notes.append(
                f"{record.file}: the program that started {time_of(start)} {ended}. Every kind of thing that "
                f"was sent is named, but the counts may lack the last {FLUSH_EVERY_S / 60:.0f} minutes."
            )
        if start.num_cut_bytes:
            notes.append(
                f"{record.file}: {start.num_cut_bytes} bytes of a line that a crash tore were cut off "
                f"{time_of(start)}."
            )
    return notes


def witness_notes(site: SiteAudit, others: set[str]) -> list[str]:
    """Say who can vouch for a site's ledgers beside the site itself."""
    heads = [names for record in site.records for start in record.starts for _, names in start.heads]
    witnessed = {name for names in heads for name in names} - {record.file for record in site.records}
    if not witnessed:
        return [f"{site.site}: its ledger holds no other site's head. It is this site's word alone."]
    here, absent = sorted(witnessed & others), sorted(witnessed - others)
    notes = [f"{site.site}: its ledger is witness to {', '.join(here)}, held against it here."] if here else []
    if absent:
        notes.append(
            f"{site.site}: its ledger is witness to {', '.join(absent)}, not here: put a copy at that place in "
            "the run folder to hold them against each other."
        )
    return notes


def time_of(start: LedgerStart) -> str:
    """Return when a program started, in words."""
    return "at " + start.opening.time.replace("T", " ").replace("+00:00", " UTC")


def to_json(audit: Audit, accounts: Sequence[Account]) -> dict[str, Any]:
    """Return the result for machines."""
    return {
        "holds": not audit.faults,
        "faults": [asdict(fault) for fault in audit.faults],
        "sites": [asdict(account) for account in accounts],
    }


def accounts_of(audit: Audit) -> list[Account]:
    """Add up all sites' ledgers."""
    return [
        account_of(site, (record for other in audit.sites if other is not site for record in other.records))
        for site in audit.sites
    ]


def render(account: Account) -> RenderableType:
    """Return the summary of one site: what of the network left it, what stayed, every small thing, notes."""
    if not account.num_starts:
        return Text.assemble((account.site, "bold"), ": no ledger that can be read: what left it is not known\n")
    left = [row for row in account.rows if row.name and row.reach == "all"]
    stayed = [row for row in account.rows if row.name and row.reach == "site"]
    small = [row for row in account.rows if not row.name]
    head = Text.assemble(
        (account.site, "bold"),
        f": {account.num_ranks} rank(s), {account.num_starts} start(s), {account.last_step + 1:,} steps; "
        f"about {account.sent_bytes / 1e6:,.1f} MB handed to the network",
    )
    parts: list[RenderableType] = [head]
    if left:
        table = _table(
            "The network's blocks that left the site", ("what", "block"), ("times", "bytes handed over")
        )
        for row in left:
            table.add_row(row.purpose, row.name, f"{row.calls:,}", f"{row.bytes:,}")
        table.add_section()
        table.add_row("all", "", "", f"{sum(row.bytes for row in left):,}", style="bold")
        parts.append(table)
    else:
        unknown = "" if account.is_whole else " as far as its lines could be read; see the faults"
        parts.append(f"Nothing of the network left the site{unknown}.")
    parts.append(_describe_private(account, stayed))
    table = _table("Everything else that was said", ("what",), ("times", "bytes handed over"))
    for row in small:
        what = TRAFFIC[row.purpose].what if row.purpose in TRAFFIC else f"{row.purpose}: not declared"
        among = " (among the site's own ranks)" if row.reach == "site" else ""
        table.add_row(what + among, f"{row.calls:,}", f"{row.bytes:,}")
    if small:
        parts.append(table)
    return Stack(*parts, *(Text.assemble(("Note ", "yellow"), note) for note in account.notes), "")


def _describe_private(account: Account, stayed: Sequence[SummaryRow]) -> str:
    if not account.has_plan:
        return "The plan that its ledger names is not here: which blocks it keeps private is not known."
    if not account.private_blocks:
        return "The plan keeps no block private."
    blocks = ", ".join(account.private_blocks)
    promise = f"Private by plan: {blocks} ({account.num_private_elements:,} numbers). "
    if num_times := sum(row.calls for row in account.rows if row.purpose == "network"):
        return promise + (
            f"Private tensors left the site {num_times:,} time(s), to be judged at other sites "
            "(sharing.evaluate_private)."
        )
    if not account.is_whole or any(
        row.reach == "all" and row.name in account.private_blocks for row in account.rows
    ):
        return promise + "See what left the site, and the faults."
    if stayed:
        return promise + f"None left the site; its own ranks shared {sum(row.bytes for row in stayed):,} bytes."
    return promise + "None entered any exchange."


def _table(title: str, texts: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in texts:
        table.add_column(heading)
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table
