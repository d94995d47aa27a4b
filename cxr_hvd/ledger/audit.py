"""Judge ledgers: does each chain hold, does each entry fit the plan and the traffic table, do the sites' fit?

Pure functions from what was read (`reader`) to faults, one for each thing that does not hold. What is not
foreseen is a fault. Leaves to `summary` what to say where all holds.

What this cannot find: a site that runs another program than this one, or that writes its ledger anew before any
other site has its head.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cxr_hvd.errors import ContractError
from cxr_hvd.ledger.allowed import MODEL_ROOTS, TRAFFIC, check_traffic
from cxr_hvd.ledger.events import Entry, Opening, Total
from cxr_hvd.ledger.plan_record import PADDING, SCALES, PlanRecord, row_lengths
from cxr_hvd.ledger.reader import (
    Fault,
    LedgerStart,
    RankLedger,
    SiteFolder,
    digest_of,
    read_ledger,
    read_plan,
)
from cxr_hvd.ledger.writer import ledger_name

BYTES_OF_DTYPE = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "uint8": 1}
BYTES_OF_DTYPE |= {"int8": 1}


@dataclass(frozen=True)
class SiteAudit:
    """One site's ledgers and the plan that they name, if it was found."""

    site: str
    plan: PlanRecord | None
    records: list[RankLedger]


@dataclass(frozen=True)
class Audit:
    """All that was read, and all that does not hold."""

    sites: list[SiteAudit]
    faults: list[Fault]


def audit(folders: Sequence[SiteFolder]) -> Audit:
    """Judge the ledgers of one or several sites."""
    faults: list[Fault] = []
    plans = {digest_of(folder.plan): folder for folder in reversed(folders) if folder.plan is not None}
    sites = []
    for folder in folders:
        records = [read_ledger(content, f"{folder.site}/{name}") for name, content in folder.ledgers.items()]
        faults += [fault for record in records for fault in record.faults]
        plan = None
        named = [start.opening.plan_sha256 for record in records for start in record.starts]
        if not records:
            faults.append(Fault(folder.site, None, "holds no ledger"))
        elif named and named[0] in plans and folder.plan in (None, plans[named[0]].plan):
            answer = read_plan(plans[named[0]].plan or b"", f"{folder.site}/plan.json")
            if isinstance(answer, PlanRecord):
                plan = answer
                faults += plan_faults(plan, f"{folder.site}/plan.json")
            else:
                faults.append(answer)
        elif named:
            faults.append(
                Fault(f"{folder.site}/plan.json", None, "is not the plan that the ledger was opened with")
            )
        faults += rank_faults(folder.site, records)
        for record in records:
            faults += [fault for start in record.starts for fault in start_faults(record.file, start, plan)]
        sites.append(SiteAudit(folder.site, plan, records))
    faults += site_faults(sites)
    faults += head_faults([record for site in sites for record in site.records])
    return Audit(sites, faults)


def plan_faults(plan: PlanRecord, file: str) -> Iterable[Fault]:
    """Hold a plan's buffers against its tensors: nothing private may stand in what is shared."""
    for buffer in plan.buffers:
        scope = "private" if buffer.purpose == "private" else "shared"
        block = buffer.of_block or _without_moment(buffer.block, plan)
        num_in_block = sum(t.num_elements for t in plan.tensors if t.block == block and t.scope == scope)
        name = f"buffer {buffer.purpose} {buffer.block}"
        if buffer.purpose not in (*MODEL_ROOTS, "private") or buffer.scope != scope:
            yield Fault(file, None, f"{name}: purpose and scope '{buffer.scope}' do not fit")
        elif buffer.num_elements > num_in_block:
            yield Fault(
                file, None, f"{name}: {buffer.num_elements} elements, the block has {num_in_block} {scope} ones"
            )


def rank_faults(site: str, records: Sequence[RankLedger]) -> Iterable[Fault]:
    """Hold each ledger's opening against its place, and the ledgers of a site against each other."""
    openings = [(record, start) for record in records for start in record.starts]
    for record, start in openings:
        opening, first = start.opening, openings[0][1].opening
        if f"{opening.site}/{ledger_name(opening.rank_in_site)}" != record.file:
            what = f"is of site {opening.site}, rank {opening.rank_in_site} within it: it is in another's place"
            yield Fault(record.file, start.line, what)
        if opening.plan_sha256 != first.plan_sha256 or opening.num_ranks_of_site != first.num_ranks_of_site:
            yield Fault(
                record.file, start.line, "was opened with another plan, or other ranks, than its site's first"
            )
    if openings:
        there = {record.file for record in records}
        wanted = [f"{site}/{ledger_name(rank)}" for rank in range(openings[0][1].opening.num_ranks_of_site)]
        missing = [name for name in wanted if name not in there]
        if missing:
            more = f", as {len(missing) - 1:,} more of its ranks" if len(missing) > 1 else ""
            yield Fault(missing[0], None, f"is missing{more}")


def site_faults(sites: Sequence[SiteAudit]) -> Iterable[Fault]:
    """Hold the plans that the sites' ledgers name against each other."""
    firsts = [(record.file, record.starts[0]) for site in sites for record in site.records[:1] if record.starts]
    for file, start in firsts[1:]:
        if start.opening.plan_sha256 != firsts[0][1].opening.plan_sha256:
            yield Fault(file, start.line, f"was opened with another plan than {firsts[0][0]}")


def start_faults(file: str, start: LedgerStart, plan: PlanRecord | None) -> Iterable[Fault]:
    """Judge what was sent from one start of the program to its end."""
    for line, entry in start.entries:
        what = entry_fault(entry, start.opening, plan)
        if what:
            yield Fault(file, line, f"{entry.purpose} {entry.name}: {what}")
    entries = [entry for _, entry in start.entries]
    last_line = start.entries[-1][0] if entries else start.line
    for what in count_faults(entries, plan):
        yield Fault(file, last_line, what)
    if start.closing and start.closing[1].totals != totals_of(entries):
        yield Fault(file, start.closing[0], "its totals are not the sum of what stands above")


def entry_fault(entry: Entry, opening: Opening, plan: PlanRecord | None) -> str | None:
    """Return what is wrong with one entry, or None."""
    if entry.root not in TRAFFIC:
        return "is not declared: nothing of that name may leave a rank"
    if entry.dtype not in BYTES_OF_DTYPE or entry.bytes != entry.num_elements * BYTES_OF_DTYPE[entry.dtype]:
        return f"{entry.bytes} bytes are not {entry.shape} of {entry.dtype}"
    try:
        check_traffic(entry.root, entry.bytes, entry.group)
    except ContractError as error:
        return str(error).partition(": ")[2].replace("was to go", "went").replace("were to leave", "left")
    ranks = opening.num_ranks if entry.group == "all" else opening.num_ranks_of_site
    if entry.group_size != ranks:
        return f"went to a group of {entry.group_size} ranks, expected {ranks}"
    if entry.first_step > entry.last_step:
        return f"from step {entry.first_step} to step {entry.last_step}"
    if plan and TRAFFIC[entry.root].max_bytes is None:
        is_of_rounding = entry.name.startswith((PADDING, SCALES))
        return rounding_fault(entry, plan) if is_of_rounding else buffer_fault(entry, plan)
    return None


def buffer_fault(entry: Entry, plan: PlanRecord) -> str | None:
    """Return in what a model's tensor is not as the plan says, or None."""
    scope = "private" if entry.root == "private" else "shared"
    block = _without_moment(entry.name, plan)
    buffers = [
        b for b in plan.buffers if b.purpose == entry.root and b.scope == scope and b.block in (entry.name, block)
    ]
    if not buffers:
        is_kept = scope == "shared" and any(t.block == block and t.scope == "private" for t in plan.tensors)
        return "the plan keeps this block private" if is_kept else "is no buffer of the plan"
    wanted = {buffer.num_elements for buffer in buffers}
    if block != entry.name:  # a moment has the parameters' elements, where the buffer holds statistics, too
        kept = [t for t in plan.tensors if t.block == block and t.scope == scope and t.kind == "parameter"]
        wanted.add(sum(tensor.num_elements for tensor in kept))
    short = {buffer.dtype for buffer in buffers} | {plan.wire}
    if entry.how == "allreduce" and entry.dtype == "float32":
        is_as_planned = entry.num_elements in wanted
    elif entry.how != "allreduce" and entry.dtype != "float32" and entry.dtype in short:
        # Of more than two ranks each gathers its part of the flat buffer, wherever that cuts a block.
        is_whole = entry.how == "alltoall" or entry.group_size == 2
        is_as_planned = entry.num_elements in wanted if is_whole else entry.num_elements <= max(wanted)
    else:
        return f"an {entry.how} of {entry.dtype}, the plan's wire is {plan.wire}"
    return None if is_as_planned else f"{entry.num_elements} elements, the plan says {sorted(wanted)}"


def rounding_fault(entry: Entry, plan: PlanRecord) -> str | None:
    """Return in what the scales of a short wire, or what fills a row up, are more than it needs, or None."""
    if plan.wire == "float32" or entry.how == "allreduce" or entry.dtype != plan.wire:
        return f"an {entry.how} of {entry.dtype}, the plan's wire is {plan.wire}"
    # A rank's part of a flat buffer may cut a row in two, and end in one that fills it up.
    num_rows = sum(len(row_lengths(tensor.shape)) for tensor in plan.tensors) + 2 * entry.group_size
    max_scales = 4 * num_rows if plan.wire == "int8" else 0
    # What fills up: less than a number a rank, and where a rank's part has fewer scales than another's.
    max_elements = entry.group_size * (1 + max_scales) if entry.name.startswith(PADDING) else max_scales
    return None if entry.num_elements <= max_elements else f"{entry.num_elements} elements, at most {max_elements}"


def count_faults(entries: Sequence[Entry], plan: PlanRecord | None) -> Iterable[str]:
    """Hold how often things were sent against how often the table and the plan allow it."""
    of_root: dict[str, list[Entry]] = defaultdict(list)
    of_tensor: dict[tuple[str, str, str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.root in TRAFFIC:
            of_root[entry.root].append(entry)
            of_tensor[entry.root, entry.name, entry.group, entry.how].append(entry)
    for root, members in of_root.items():
        count, max_calls = sum(entry.count for entry in members), TRAFFIC[root].calls_per_start
        if max_calls is not None and count > max_calls:
            yield f"{root}: sent {count} times since the program's start, at most {max_calls} may be"
    for (root, name, _, how), members in of_tensor.items():
        first, last = min(e.first_step for e in members), max(e.last_step for e in members)
        count, max_calls = sum(entry.count for entry in members), TRAFFIC[root].calls_per_step
        if max_calls is None:
            continue
        times = last - first + 1
        if plan and TRAFFIC[root].max_bytes is None and plan.overlap:
            # Once a round, once more before each validation, and at the end.
            times = (last - first) // plan.every + 2 + sum(entry.count for entry in of_root["auroc"])
        elif plan and TRAFFIC[root].max_bytes is None and plan.exchange != "gradients":
            times = min(times, averages_between(first, last, plan.every))
        if count > max_calls * times:
            steps = f"steps {first} to {last}"
            yield f"{root} {name} ({how}): sent {count} times in {steps}, at most {max_calls * times}"


def averages_between(first: int, last: int, every: int) -> int:
    """Return the most averages in the steps first to last: after each `every`-th, and after the very last."""
    regular = (last + 1) // every - max(first, 0) // every
    return regular + (1 if (last + 1) % every else 0)


def totals_of(entries: Iterable[Entry]) -> dict[str, Total]:
    """Return calls and bytes by root, as a ledger's `closed` states them."""
    totals: dict[str, Total] = {}
    for entry in entries:
        totals[entry.root] = totals.get(entry.root, Total()).plus(entry.count, entry.bytes)
    return totals


def head_faults(records: Sequence[RankLedger]) -> Iterable[Fault]:
    """Hold the heads that ledgers witnessed against the ledgers that are here."""
    hashes_of = {record.file: set(record.hashes) for record in records}
    for record in records:
        for line, heads in ((line, heads) for start in record.starts for line, heads in start.heads):
            for name, head in heads.items():
                if name in hashes_of and head not in hashes_of[name]:
                    what = f"is witness that {name} had a line with hash {head[:16]}..., which it has not"
                    yield Fault(record.file, line, f"{what}: one of the two was written anew")


def _without_moment(name: str, plan: PlanRecord) -> str:
    """Return the block of a buffer that may be named moment.block or statistics.block."""
    moment, _, block = name.partition(".")
    return block if block and moment in (*plan.moments, "statistics") else name
