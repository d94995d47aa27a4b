"""Run laws on every rank of a real job.

Each rank writes a record for each law (`tests.laws.rank`), so a law that fails, and a rank that hangs in it, are
reported by name.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lab.launch import Hung, launch


def run_laws(
    num_ranks: int, launcher: str, names: Sequence[str], folder: Path, limit_s: float, **more: str
) -> dict[str, str]:
    """Run laws one after the other on all ranks of one job; return for each "kept", or what went wrong."""
    command = [sys.executable, "-m", "tests.laws.rank", str(folder), str(time.time() + limit_s - 5), *names]
    try:
        job = launch(num_ranks, command, launcher, limit_s, **more)
        last_words = job.output[-2000:]
    except Hung as hung:
        last_words = str(hung)[-2000:]
    return {name: _verdict(name, num_ranks, folder, last_words) for name in names}


def _verdict(name: str, num_ranks: int, folder: Path, last_words: str) -> str:
    failures = []
    for rank in range(num_ranks):
        record = folder / f"{name}.{rank}.json"
        stack = folder / f"stack.{rank}.txt"
        if not record.exists():
            where = stack.read_text()[-1500:] if stack.exists() else ""
            failures.append(f"rank {rank} did not finish {name}\n{where}")
        elif error := json.loads(record.read_text()):
            failures.append(f"rank {rank}: {error}")
    return "kept" if not failures else "\n".join([*failures, last_words])
