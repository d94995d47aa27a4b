"""The ledger: what this rank handed to others, written down in a hash chain.

Owns the file `ledger.jsonl` (`ledger-rank1.jsonl`, ... for a site's further ranks), one JSON object a line. Events
are `opened`, `sent`, `heads`, `cut`, `resumed`, `closed`. A kind of thing that was never sent before is on file
before it leaves; repetitions are counted and written every five minutes, at checkpoints and at the end. So after
a kill the file names every kind, and its counts lack at most five minutes.

It holds names and sizes, never values, identifiers or paths. Leaves to others: how lines are chained (`chain`),
what may be sent at all (`allowed`), when to note (`comm`), and to judge what is written here (`audit`).
"""

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cxr_hvd import __version__
from cxr_hvd.errors import CheckpointError
from cxr_hvd.files import read_plain, sync
from cxr_hvd.ledger.allowed import Group, How, check_traffic
from cxr_hvd.ledger.chain import NO_HEAD, canonical, hash_of, whole_part
from cxr_hvd.ledger.events import (
    BEFORE_TRAINING,
    SCHEMA,
    Closing,
    Cut,
    Entry,
    Event,
    EventKind,
    Heads,
    Opening,
    Sent,
    Total,
)

FLUSH_EVERY_S = 300.0
MAX_LEDGER_BYTES = 1 << 28


@dataclass(slots=True)
class _Tally:
    """How often one kind was sent: since the last line about it, and since the process started."""

    kind: EventKind
    count: int = 0
    first_step: int = BEFORE_TRAINING
    last_step: int = BEFORE_TRAINING
    total: int = 0

    def entry(self) -> Entry:
        """Return what is not written yet."""
        return Entry(
            **self.kind.model_dump(), count=self.count, first_step=self.first_step, last_step=self.last_step
        )


class Ledger:
    """What one rank handed to others since its process started; on disk from `open` on.

    Not for several threads: collectives are called from one.

    Args:
        flush_every_s: the longest that counts stay in memory while things are sent, in seconds.
    """

    def __init__(self, flush_every_s: float = FLUSH_EVERY_S) -> None:
        self._step = BEFORE_TRAINING
        self._flush_every_s = flush_every_s
        self._due_s = time.monotonic() + flush_every_s
        self._tallies: dict[tuple[object, ...], _Tally] = {}
        self._path = Path()
        self._descriptor: int | None = None
        self._seq = 0
        self._head = NO_HEAD

    @property
    def step(self) -> int:
        """The step that training is in, from 0; -1 before it."""
        return self._step

    def begin_step(self, step: int) -> None:
        """Count what is sent from now on to a step."""
        self._step = step

    def note(
        self,
        purpose: str,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        num_bytes: int,
        group: Group,
        group_size: int,
        how: How,
    ) -> None:
        """Count one tensor that is about to be handed over. Call it before the collective.

        A kind that is new is checked against the traffic table and written at once. A group of one is nobody
        else, and is not noted.

        Args:
            purpose: a root of the traffic table, or `root.detail`.
            name: which tensor, for example a block of the model.
            shape, dtype, num_bytes: what this rank hands over.
            group, group_size: to whom, and how many ranks that is, this one among them.
            how: what the collective does with it.

        Raises:
            ContractError: the table does not allow so much, or not to all.
            CheckpointError: it cannot be written down, so it must not leave.
        """
        if group_size < 2:
            return
        key = (purpose, name, shape, dtype, num_bytes, group, group_size, how)
        tally = self._tallies.get(key)
        is_new = tally is None
        if tally is None:
            check_traffic(purpose, num_bytes, group)
            kind = EventKind(
                purpose=purpose,
                name=name,
                shape=list(shape),
                dtype=dtype,
                bytes=num_bytes,
                group=group,
                group_size=group_size,
                how=how,
            )
            tally = self._tallies[key] = _Tally(kind)
        if not tally.count:
            tally.first_step = self._step
        tally.count += 1
        tally.total += 1
        tally.last_step = self._step
        if is_new or time.monotonic() >= self._due_s:
            self.flush()

    def open(self, path: Path, opening: Opening) -> None:
        """Write to `path` from now on, beginning with what was noted before; go on with a chain that is there.

        A last line that a crash tore is cut off, and the cut written down.

        Args:
            path: the file; made with mode 0600.
            opening: what `opening` says of this rank and run.

        Raises:
            CheckpointError: the file cannot be written, or its end is damaged by more than a torn line.
        """
        with _disk_errors(path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(path, flags, 0o600)
            content = read_plain(path, MAX_LEDGER_BYTES)
            os.fchmod(descriptor, 0o600)
            num_whole, last = whole_part(content, path)
            os.ftruncate(descriptor, num_whole)
            self._path, self._descriptor = path, descriptor
            if last is not None:
                self._seq, self._head = int(last["seq"]) + 1, str(last["hash"])
            self._append("opened" if last is None else "resumed", opening)
            if num_whole < len(content):
                self._append("cut", Cut(bytes=len(content) - num_whole))
            self.flush(is_durable=True)
            sync(path.parent)

    def flush(self, is_durable: bool = False) -> None:
        """Write what was counted since the last line; where `is_durable`, wait until it is on the disk."""
        if self._descriptor is None:
            return
        pending = [tally for tally in self._tallies.values() if tally.count]
        if pending:
            self._append("sent", Sent(entries=[tally.entry() for tally in pending]))
            for tally in pending:
                tally.count = 0
        self._due_s = time.monotonic() + self._flush_every_s
        if is_durable:
            with _disk_errors(self._path):
                os.fsync(self._descriptor)

    def head(self) -> str:
        """Write what is counted, and return the hash of the last line: it vouches for all lines before it."""
        self.flush()
        return self._head

    def record_heads(self, heads: Mapping[str, str]) -> None:
        """Write down the heads of all ranks' ledgers, so that this one is witness to the others.

        Args:
            heads: from `head_name` of each rank to its `head`, this rank's own among them.
        """
        self.flush()
        if self._descriptor is not None:
            self._append("heads", Heads(heads=dict(heads)))
            self.flush(is_durable=True)

    def close(self) -> None:
        """Write the totals of this process and close the file; later notes are counted, not written."""
        self.flush()
        if self._descriptor is None:
            return
        totals: dict[str, Total] = {}
        for tally in self._tallies.values():
            root = tally.kind.root
            totals[root] = totals.get(root, Total()).plus(tally.total, tally.kind.bytes)
        self._append("closed", Closing(totals=totals, sent_bytes=round(self.sent_bytes())))
        self.flush(is_durable=True)
        os.close(self._descriptor)
        self._descriptor = None

    def sent_bytes(self) -> float:
        """Estimate what left this rank since its process started, as a ring sends it."""
        return sum(tally.total * tally.kind.sent_bytes_per_call for tally in self._tallies.values())

    def _append(self, event: str, content: Event) -> None:
        assert self._descriptor is not None
        line = content.model_dump() | {"seq": self._seq, "previous": self._head, "event": event, "time": _now()}
        line["hash"] = hash_of(line)
        written = canonical(line) + b"\n"
        try:
            with _disk_errors(self._path):
                if os.write(self._descriptor, written) < len(written):
                    raise OSError("the disk took only a part of a line")
        except CheckpointError:
            os.close(self._descriptor)  # nothing may follow a torn line
            self._descriptor = None
            raise
        self._seq, self._head = self._seq + 1, line["hash"]


def opening(
    site: str,
    rank: int,
    num_ranks: int,
    rank_in_site: int,
    num_ranks_of_site: int,
    plan: Path,
    step: int,
) -> Opening:
    """Return whose ledger this is, under which plan, and from which step on.

    Args:
        plan: the path of `plan.json`.
        step: how many steps are done.
    """
    with _disk_errors(plan):
        digest = hashlib.sha256(plan.read_bytes()).hexdigest()
    return Opening(
        ledger_schema=SCHEMA,
        site=site,
        rank=rank,
        num_ranks=num_ranks,
        rank_in_site=rank_in_site,
        num_ranks_of_site=num_ranks_of_site,
        plan_sha256=digest,
        step=step,
        version=__version__,
    )


def ledger_name(rank_in_site: int) -> str:
    """Return the name of a rank's ledger in its site's run folder."""
    return f"ledger-rank{rank_in_site}.jsonl" if rank_in_site else "ledger.jsonl"


def head_name(site: str, rank_in_site: int) -> str:
    """Return how `heads` events call a rank's ledger."""
    return f"{site}/{ledger_name(rank_in_site)}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turn an error of the disk into one line."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot write or read the ledger ({error.strerror or error}); "
            "nothing more is sent: mend it, then use --resume auto"
        ) from error
