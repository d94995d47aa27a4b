"""Lines that vouch for the lines before them: the form of the ledger, pure functions.

A line is one JSON object in canonical form. `seq` counts from 0, `previous` is the `hash` of the line before, and
`hash` is the SHA-256 of the line without it. A line that is changed, dropped, swapped or doubled anywhere but at
the end breaks the chain. Who can write the file can also write a new chain: against that, others keep its head.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cxr_hvd.errors import CheckpointError

NO_HEAD = "0" * 64


def canonical(line: Mapping[str, Any]) -> bytes:
    """Return the one way to write a line: ASCII, keys sorted, no blanks."""
    return json.dumps(line, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def hash_of(line: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a line without its `hash`, in hex."""
    return hashlib.sha256(canonical({key: line[key] for key in line if key != "hash"})).hexdigest()


def whole_line(raw: bytes) -> dict[str, Any] | None:
    """Return what a line says, or None where one byte of it is not as it was written."""
    try:
        line = json.loads(raw)
        is_whole = isinstance(line, dict) and canonical(line) == raw and line.get("hash") == hash_of(line)
    except (ValueError, RecursionError):
        return None
    return line if is_whole else None


def whole_part(content: bytes, path: Path) -> tuple[int, dict[str, Any] | None]:
    """Return how many bytes are left of a ledger without a torn last line, and its last whole line, if any."""
    end = content.rfind(b"\n") + 1
    last = _line_before(content, end)
    if end == len(content) and last is None:
        end = content.rfind(b"\n", 0, max(0, end - 1)) + 1
        last = _line_before(content, end)
    if end and (last is None or not isinstance(last.get("seq"), int)):
        raise CheckpointError(
            f"{path}: more than its last line is damaged; keep it elsewhere, then use --resume auto"
        )
    return end, last


def _line_before(content: bytes, end: int) -> dict[str, Any] | None:
    return whole_line(content[content.rfind(b"\n", 0, max(0, end - 1)) + 1 : max(0, end - 1)])
