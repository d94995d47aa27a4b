"""The events of a ledger: one record each, by which the writer writes and the reader reads.

A line of the file holds an event's fields beside what chains it (`chain`): `seq`, `previous`, `event`, `hash`.
Schema 2 calls collectives as MPI does. Schema 1, whose openings say no schema, had other words: `as_written_now`.
"""

from collections.abc import Mapping
from math import prod
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field

from cxr_hvd.ledger.allowed import Group, How, root_of
from cxr_hvd.record import MAX_COUNT, MAX_RANKS, Count, Name, Ranks, Record, Shape

SCHEMA: Final = 2
BEFORE_TRAINING = -1

Step = Annotated[int, Field(ge=BEFORE_TRAINING, le=MAX_COUNT)]


class EventKind(Record):
    """One kind of thing that a rank hands to a collective.

    Attributes:
        purpose: a root of the traffic table, or `root.detail`.
        name: which tensor, for example a block of the model.
        shape, dtype, bytes: what this rank hands over.
        group, group_size: to whom, and how many ranks that is, this one among them.
        how: what the collective does with it.
    """

    model_config = ConfigDict(extra="forbid")
    purpose: Name
    name: Name
    shape: Shape
    dtype: Name
    bytes: Count
    group: Group
    group_size: Annotated[int, Field(ge=2, le=MAX_RANKS)]
    how: How

    @property
    def root(self) -> str:
        return root_of(self.purpose)

    @property
    def num_elements(self) -> int:
        return prod(self.shape)

    @property
    def sent_bytes_per_call(self) -> float:
        """What leaves the rank in one call, where each algorithm is a ring."""
        return sent_bytes_of(self.how, self.bytes, self.group_size)


class Entry(EventKind):
    """A kind, how often it was sent since the last line about it, and in which steps."""

    count: Annotated[int, Field(ge=1, le=MAX_COUNT)]
    first_step: Step
    last_step: Step


class Opening(Record):
    """Whose ledger it is, under which plan (the SHA-256 of `plan.json`), and from which step on."""

    ledger_schema: Literal[1, 2] = 1
    site: Name
    rank: Ranks
    num_ranks: Ranks
    rank_in_site: Ranks
    num_ranks_of_site: Ranks
    plan_sha256: Name
    step: Count
    version: Name
    time: Name = ""


class Sent(Record):
    """What was sent since the last such line."""

    entries: list[Entry]


class Heads(Record):
    """The hash of the last line of every rank's ledger, by `head_name`."""

    heads: dict[Name, Name]


class Cut(Record):
    """How many bytes of a torn last line were cut off."""

    bytes: Count


class Total(Record):
    """Calls and bytes handed over, of one root of purposes."""

    model_config = ConfigDict(extra="forbid")
    calls: Count = 0
    bytes: Count = 0

    def plus(self, calls: int, num_bytes: int) -> "Total":
        """Return the total with more calls of so many bytes each."""
        return Total(calls=self.calls + calls, bytes=self.bytes + calls * num_bytes)


class Closing(Record):
    """Totals by root of purpose, and what a ring would have sent in all."""

    totals: dict[Name, Total]
    sent_bytes: Count = 0


Event = Opening | Sent | Heads | Cut | Closing


def sent_bytes_of(how: How, num_bytes: int, group_size: int) -> float:
    """Estimate what leaves a rank that hands `num_bytes` to a collective, where each algorithm is a ring."""
    others = group_size - 1
    if how == "allgather":
        return float(others * num_bytes)
    return (2.0 if how == "allreduce" else 1.0) * others / group_size * num_bytes


EARLIER_HOW = {"sum": "allreduce", "gather": "allgather", "swap": "alltoall"}
EARLIER_ROOTS = {"pulse": "status"}


def as_written_now(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of schema 1 in the words of today. What has not its form stays as it is."""
    line = dict(line)
    if isinstance(line.get("entries"), list):
        line["entries"] = [
            entry
            | {"how": EARLIER_HOW.get(str(entry.get("how")), entry.get("how"))}
            | {"purpose": EARLIER_ROOTS.get(str(entry.get("purpose")), entry.get("purpose"))}
            if isinstance(entry, dict)
            else entry
            for entry in line["entries"]
        ]
    if isinstance(line.get("totals"), dict):
        line["totals"] = {EARLIER_ROOTS.get(root, root): total for root, total in line["totals"].items()}
    return line
