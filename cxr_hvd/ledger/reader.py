"""Read ledgers and sharing plans back, and believe nothing of them, whoever may have written them.

Owns what is wrong with a file taken by itself: its chain, its order, its form (`events`, `plan_record`). Leaves to
`audit` what a ledger says against its plan and the others.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cxr_hvd.errors import CheckpointError
from cxr_hvd.files import read_plain
from cxr_hvd.ledger.chain import NO_HEAD, whole_line
from cxr_hvd.ledger.events import Closing, Cut, Entry, Heads, Opening, Sent, as_written_now
from cxr_hvd.ledger.plan_record import PlanRecord
from cxr_hvd.record import first_problem
from cxr_hvd.terminal import shown

LEDGERS = "ledger*.jsonl"
MAX_PLAN_BYTES = 1 << 24
MAX_BYTES = 1 << 30  # of all ledgers together; a rank writes some 2 MB a day
MAX_FILES = 4096
MAX_SHOWN = 400
MAX_FAULTS = 100  # of one ledger by itself; what stands after them is not looked at


@dataclass(frozen=True)
class Fault:
    """Something that does not hold; `line` counts from 1."""

    file: str
    line: int | None
    what: str

    def __str__(self) -> str:
        return shown(f"{self.file}{f', line {self.line}' if self.line else ''}: {self.what}", MAX_SHOWN)


@dataclass
class LedgerStart:
    """What a ledger says from one start of the program to its end, or to the next start; each with its line."""

    line: int
    opening: Opening
    entries: list[tuple[int, Entry]] = field(default_factory=list)
    heads: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    num_cut_bytes: int = 0
    closing: tuple[int, Closing] | None = None


@dataclass
class RankLedger:
    """One ledger, read.

    Attributes:
        file: what it is called: SITE/NAME.
        hashes: of its whole lines, in order.
        starts: what it says.
        faults: what is wrong with it, taken by itself.
    """

    file: str
    hashes: list[str] = field(default_factory=list)
    starts: list[LedgerStart] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


@dataclass(frozen=True)
class SiteFolder:
    """What one site's run folder holds: its plan, and its ledgers by name."""

    site: str
    plan: bytes | None
    ledgers: dict[str, bytes]


def read_ledger(content: bytes, file: str) -> RankLedger:
    """Recompute a ledger's chain and read what it says, as far as its lines are whole."""
    record = RankLedger(file)
    previous, number, start = NO_HEAD, 0, 0
    while (end := content.find(b"\n", start)) >= 0:
        raw, start, number = content[start:end], end + 1, number + 1
        if len(record.faults) >= MAX_FAULTS:
            record.faults.append(Fault(file, number, "is not read: too much before it does not hold"))
            return record
        line = whole_line(raw)
        if line is None:
            record.faults.append(Fault(file, number, "not as it was written: its hash does not hold"))
            previous = _stated_hash(raw)
            continue
        if line.get("seq") != number - 1:
            what = (
                f"expected seq {number - 1}, found {line.get('seq')}: lines are missing, doubled or out of order"
            )
            record.faults.append(Fault(file, number, what))
        elif line.get("previous") != previous:
            record.faults.append(Fault(file, number, "does not follow the line before it: that one was changed"))
        previous = line["hash"]
        record.hashes.append(previous)
        _read_event(record, number, line)
    if num_torn := len(content) - start:
        record.faults.append(Fault(file, number + 1, f"torn: its end is missing, {num_torn} bytes are there"))
    if not number:
        record.faults.append(Fault(file, None, "holds no line"))
    return record


def _read_event(record: RankLedger, number: int, line: dict[str, Any]) -> None:
    event = line.get("event")
    content = {key: value for key, value in line.items() if key not in ("seq", "previous", "hash", "event")}
    try:
        if event in ("opened", "resumed"):
            if (event == "opened") != (number == 1):
                record.faults.append(
                    Fault(record.file, number, f"a ledger begins with 'opened', here is '{event}'")
                )
            record.starts.append(LedgerStart(number, Opening.model_validate(content)))
            return
        if not record.starts or record.starts[-1].closing:
            record.faults.append(
                Fault(record.file, number, f"'{event}' stands outside of any start of the program")
            )
            return
        start = record.starts[-1]
        if start.opening.ledger_schema == 1:
            content = as_written_now(content)
        if event == "sent":
            start.entries += [(number, entry) for entry in Sent.model_validate(content).entries]
        elif event == "heads":
            start.heads.append((number, Heads.model_validate(content).heads))
        elif event == "cut":
            start.num_cut_bytes += Cut.model_validate(content).bytes
        elif event == "closed":
            start.closing = number, Closing.model_validate(content)
        else:
            record.faults.append(Fault(record.file, number, f"unknown event '{event}'"))
    except ValidationError as error:
        record.faults.append(Fault(record.file, number, f"'{event}' has not its form: {first_problem(error)}"))


def _stated_hash(raw: bytes) -> str:
    """Return what a damaged line says its hash is, so that one damage is told once."""
    try:
        return str(json.loads(raw)["hash"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def read_plan(content: bytes, file: str) -> PlanRecord | Fault:
    """Read `plan.json`."""
    try:
        return PlanRecord.model_validate(json.loads(content))
    except ValidationError as error:
        return Fault(file, None, f"is no sharing plan: {first_problem(error)}")
    except (ValueError, RecursionError):
        return Fault(file, None, "is no sharing plan: it is not JSON")


def digest_of(content: bytes) -> str:
    """Return the SHA-256 that a ledger's opening names a plan by."""
    return hashlib.sha256(content).hexdigest()


def load_folders(run: Path) -> list[SiteFolder]:
    """Read plans and ledgers below a run folder, or in one site's folder.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    try:
        if any(run.glob(LEDGERS)):
            paths = [run.resolve()]
        else:
            paths = sorted({path.parent for name in (LEDGERS, "plan.json") for path in run.glob(f"*/{name}")})
        ledgers = {path: sorted(path.glob(LEDGERS)) for path in paths[:MAX_FILES]}
        if not any(ledgers.values()):
            raise CheckpointError(
                f"{run}: no ledger here; expected one folder for each site, or one site's folder"
            )
        left_bytes, folders = MAX_BYTES, []
        for path, files in ledgers.items():
            contents: dict[str, bytes] = {}
            for file in files[:MAX_FILES]:
                contents[shown(file.name)] = read_plain(file, left_bytes)
                left_bytes -= len(contents[shown(file.name)])
            folders.append(SiteFolder(shown(path.name), _plan_in(path), contents))
        return folders
    except OSError as error:
        raise CheckpointError(f"{error.filename or run}: cannot read it ({error.strerror})") from error


def _plan_in(folder: Path) -> bytes | None:
    try:
        return read_plain(folder / "plan.json", MAX_PLAN_BYTES)
    except FileNotFoundError:
        return None
