"""What a rank does at the moment, in a small file for those who look on: `status-RANK.json` in its site's folder.

Replaced about once a second while the rank lives, by the watchdog's thread, and once at the end. Who sees an old
one whose last word is not an end knows that the rank was killed, frozen or cut off.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cxr_hvd.comm.communicator import Communicator
from cxr_hvd.comm.sites import Topology
from cxr_hvd.comm.watchdog import Doing
from cxr_hvd.errors import CxrHvdError, Stopped
from cxr_hvd.files import read_plain
from cxr_hvd.terminal import shown
from cxr_hvd.training.run_folder import RunFolder

SILENT_AFTER_S = 5.0
MAX_BYTES = 4096
FINISHED, STOPPED, FAILED = "finished", "stopped on request", "failed"


@contextmanager
def status_kept(folder: RunFolder, comm: Communicator, topology: Topology, num_steps: int) -> Iterator[None]:
    """Keep this rank's status file while the body runs, and write how it ended; name those who may hang."""
    status = StatusFile(folder.path, topology, num_steps)
    comm.watchdog.on_tick = status.tick
    comm.watchdog.on_end = lambda said: status.end(f"{FAILED}: {said}", 1)
    comm.watchdog.suspects = lambda: suspects(folder.run, topology)
    try:
        yield
    except Stopped as stopped:
        status.end(STOPPED, stopped.exit_code)
        raise
    except BaseException as error:
        said = str(error) if isinstance(error, CxrHvdError) else type(error).__name__
        status.end(f"{FAILED}: {said}", error.exit_code if isinstance(error, CxrHvdError) else 1)
        raise
    else:
        status.end(FINISHED, 0)
    finally:
        comm.watchdog.on_tick = lambda doing: None


class StatusFile:
    """This rank's status file.

    Args:
        folder: its site's run folder.
        num_steps: steps of the whole run.
    """

    def __init__(self, folder: Path, topology: Topology, num_steps: int) -> None:
        self._path = folder / f"status-{topology.rank_in_site}.json"
        self._said = {"site": topology.site, "rank": topology.rank, "num_steps": num_steps}
        self._step: int | None = None

    def tick(self, doing: Doing) -> None:
        """Write what the rank does. A disk that cannot take it must not end a job: then nothing is written."""
        self._step = doing.step
        self._write({"step": doing.step, "doing": doing.what, "since": doing.since})

    def end(self, what: str, exit_code: int) -> None:
        """Write how it ended: `FINISHED`, `STOPPED` or `FAILED: one line`, and the exit code."""
        now = time.time()
        self._write({"step": self._step, "doing": what[:1024], "since": now, "exit_code": exit_code})

    def _write(self, said: dict[str, Any]) -> None:
        beside = self._path.with_name(f".{self._path.name}.part")
        try:
            # Not synced: it is of the moment. After a crash of the machine the rank is gone, too.
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(beside, flags, 0o600), "w", encoding="utf-8") as file:
                file.write(json.dumps(self._said | said | {"time": time.time()}) + "\n")
            beside.replace(self._path)
        except OSError:
            return


def suspects(run: Path, topology: Topology) -> str:
    """Say which ranks may be the ones that are waited for, as far as their files can be read from here.

    With two ranks it is the other one. Otherwise those whose status is silent or who are at work of their own.
    """
    others = [rank for rank in range(topology.num_ranks) if rank != topology.rank]
    told = {rank: _last_word(run, topology, rank) for rank in others}
    suspected = [rank for rank in others if (said := told[rank]) and not _is_waiting(said)]
    silent_sites = [rank for rank in others if told[rank] is None]
    named = suspected or silent_sites or others
    shown = ", ".join(topology.name_of(rank) + _said_of(told[rank]) for rank in named[:4])
    more = f" or one of {len(named) - 4} more" if len(named) > 4 else ""
    return f"{shown}{more} hangs, is frozen or is cut off"


def _last_word(run: Path, topology: Topology, rank: int) -> dict[str, Any] | None:
    site = topology.site_of_rank[rank]
    name = f"status-{topology.ranks_at(site).index(rank)}.json"
    try:
        said = json.loads(read_plain(run / topology.site_names[site] / name, MAX_BYTES))
        return {"doing": shown(said["doing"], 80), "step": shown(said["step"], 20), "time": float(said["time"])}
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _is_waiting(said: dict[str, Any]) -> bool:
    is_silent = time.time() - said["time"] > SILENT_AFTER_S
    return not is_silent and str(said["doing"]).startswith("waiting")


def _said_of(said: dict[str, Any] | None) -> str:
    if said is None:
        return ""
    ago = f", {time.time() - said['time']:.0f} s ago" if time.time() - said["time"] > SILENT_AFTER_S else ""
    return f" (last word: {said['doing']}, step {said['step']}{ago})"
