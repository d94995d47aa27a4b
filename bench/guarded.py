"""Parts of a measurement one after the other in a process of their own, each with a time limit: none stops others.

A module hands its parts to `run_parts`, which starts the same module as a worker (`work`). The worker writes a
record for each part. Where a part hangs or takes the worker down with it, the rest goes to a new worker.
"""

import contextlib
import faulthandler
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Figures = dict[str, Any]
Record = dict[str, Any]
"""A part's `verdict` (pass, fail or skipped), `reason`, `seconds` and `figures`."""

MIN_S = 3.0
GRACE_S = 10.0
MAX_REASON = 400


class Skipped(Exception):
    """A part does not apply here; the text says why."""


@dataclass(frozen=True)
class Part:
    """One measurement or check.

    Attributes:
        name: of the part, also a file name.
        take: measures; raises `Skipped` where it does not apply, and any other error where it fails.
        limit_s: the longest that it may take.
    """

    name: str
    take: Callable[[], Figures]
    limit_s: float = 60.0


def run_parts(
    module: str,
    limits: Mapping[str, float],
    words: Sequence[str],
    folder: Path,
    deadline: float,
    on_record: Callable[[str, Record], None],
) -> dict[str, Record]:
    """Take all parts in workers, until the deadline; return each part's record. Blocking.

    Args:
        module: that calls `work` where it is started with `--worker FOLDER --parts NAMES --deadline SECONDS`.
        limits: the names of the parts, in order, and the seconds that each may take.
        words: further words for the worker.
        folder: for records and the workers' output.
        deadline: by `time.monotonic()`.
        on_record: called once for each part, in order of their ends.
    """
    records: dict[str, Record] = {}

    def note(name: str, record: Record) -> None:
        records[name] = record
        on_record(name, record)

    while left := [name for name in limits if name not in records]:
        if deadline - time.monotonic() < MIN_S:
            for name in left:
                note(name, {"verdict": "skipped", "reason": "no time was left in this stage", "seconds": 0.0})
            break
        output = folder / f"worker-{len(records)}.txt"
        options = ["--worker", str(folder), "--parts", ",".join(left), "--deadline", str(deadline)]
        with output.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-u", "-m", module, *options, *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                _follow(process, left, folder, deadline, note)
            finally:
                _end(process)
        for name in left:
            if (folder / f"{name}.begun").exists() and name not in records:
                ended = f"its process ended with status {process.returncode}"
                note(name, _failed(f"{ended}: {_last_line(output)}", output, limits[name]))
        if not any(name in records for name in left):  # it could not even start: nor could the next
            for name in left:
                note(name, _failed(f"the worker did not start: {_last_line(output)}", output, 0.0))
    return records


def work(parts: Mapping[str, Part], names: Sequence[str], folder: Path, deadline: float, is_fragile: bool) -> None:
    """Take parts one after the other, and write their records. Blocking.

    Args:
        parts: by name.
        is_fragile: whether a failed part may spoil what comes after it, as an error of CUDA does: then the process
            ends with it.
    """
    for name in names:
        left_s = deadline - time.monotonic()
        if left_s < MIN_S:
            return
        limit_s = min(parts[name].limit_s, left_s)
        (folder / f"{name}.begun").touch()
        faulthandler.dump_traceback_later(limit_s, exit=True)
        began = time.monotonic()
        record: Record = {"verdict": "pass", "reason": ""}
        try:
            record["figures"] = parts[name].take()
        except Skipped as reason:
            record |= {"verdict": "skipped", "reason": str(reason)}
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            record |= {"verdict": "fail", "reason": text[:MAX_REASON], "output": traceback.format_exc()[-3000:]}
            traceback.print_exc()
        faulthandler.cancel_dump_traceback_later()
        record["seconds"] = round(time.monotonic() - began, 2)
        write_json(folder / f"{name}.json", record)
        if is_fragile and record["verdict"] == "fail":
            return


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file so that a reader sees the whole of it or nothing."""
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(content, indent=1))
    beside.rename(path)


def _follow(
    process: "subprocess.Popen[bytes]",
    names: Sequence[str],
    folder: Path,
    deadline: float,
    note: Callable[[str, Record], None],
) -> None:
    """Note records as they come, until the worker ends or is long past the deadline."""
    waiting = list(names)
    while True:
        has_ended = process.poll() is not None
        for name in list(waiting):
            path = folder / f"{name}.json"
            if path.exists():
                note(name, json.loads(path.read_text()))
                waiting.remove(name)
        if has_ended or time.monotonic() > deadline + GRACE_S:
            return
        time.sleep(0.1)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the worker and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _failed(reason: str, output: Path, seconds: float) -> Record:
    text = output.read_text(errors="replace")[-3000:]
    return {"verdict": "fail", "reason": reason[:MAX_REASON], "seconds": seconds, "output": text}


def _last_line(output: Path) -> str:
    lines = output.read_text(errors="replace").split("\n")
    hung = [line.strip() for line in lines if line.startswith("Timeout (")]
    return (hung or [line.strip() for line in lines if line.strip()] or ["it said nothing"])[-1]
