"""A rank writes its own status while it trains, and reads those of others when it waits too long for them."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cxr_hvd.comm.job import Job
from cxr_hvd.comm.sites import Topology
from cxr_hvd.comm.watchdog import Doing
from cxr_hvd.errors import CxrHvdError, Stopped
from cxr_hvd.launch.rank_status import FAILED, FINISHED, STOPPED, RankStatus, read_status, status_path
from cxr_hvd.terminal import shown
from cxr_hvd.training.run_folder import RunFolder

MAX_NAMED = 4
MAX_DOING = 80


@contextmanager
def status_kept(folder: RunFolder, job: Job, num_steps: int) -> Iterator[None]:
    """Keep this rank's status file while the body runs, and write how it ended; name those who may hang."""
    status = StatusFile(folder.path, job.topology, num_steps)
    job.watchdog.report_to(status)
    try:
        yield
    except Stopped as stopped:
        status.end(STOPPED, stopped.exit_code)
        raise
    except BaseException as error:
        line = str(error) if isinstance(error, CxrHvdError) else type(error).__name__
        status.end(f"{FAILED}: {line}", error.exit_code if isinstance(error, CxrHvdError) else 1)
        raise
    else:
        status.end(FINISHED, 0)


class StatusFile:
    """This rank's status file, kept by its watchdog's thread until the run has ended.

    Args:
        folder: its site's run folder.
        num_steps: steps of the whole run.
    """

    def __init__(self, folder: Path, topology: Topology, num_steps: int) -> None:
        self._path = status_path(folder, topology.rank_in_site)
        self._site, self._rank, self._num_steps = topology.site, topology.rank, num_steps
        self._run, self._topology = folder.parent, topology
        self._step: int | None = None
        self._has_ended = False

    def tick(self, doing: Doing) -> None:
        """Write what the rank does. A disk that cannot take it must not end a job: then nothing is written."""
        if self._has_ended:
            return
        self._step = doing.step
        self._write(doing.what, doing.since)

    def fail(self, line: str) -> None:
        """Write that the rank is ended by its watchdog, and why."""
        self.end(f"{FAILED}: {line}", 1)

    def suspects(self) -> str:
        """Say which ranks may be the ones that are waited for."""
        return suspects(self._run, self._topology)

    def end(self, what: str, exit_code: int) -> None:
        """Write how the rank ended: `FINISHED`, `STOPPED` or `FAILED: one line`, and the exit code."""
        self._has_ended = True
        self._write(what, time.time(), exit_code)

    def _write(self, what: str, since: float, exit_code: int | None = None) -> None:
        status = RankStatus(
            site=self._site,
            rank=self._rank,
            num_steps=self._num_steps,
            step=self._step,
            doing=what,
            since=since,
            exit_code=exit_code,
            time=time.time(),
        )
        beside = self._path.with_name(f".{self._path.name}.part")
        try:
            # Not synced: it is of the moment. After a crash of the machine the rank is gone, too.
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(beside, flags, 0o600), "w", encoding="utf-8") as file:
                file.write(json.dumps(status.model_dump()) + "\n")
            beside.replace(self._path)
        except OSError:
            return


def suspects(run: Path, topology: Topology) -> str:
    """Say which ranks may be the ones that are waited for, as far as their statuses can be read from here.

    With two ranks it is the other one. Otherwise those that are silent or do not wait for others themselves.
    """
    now = time.time()
    others = [rank for rank in range(topology.num_ranks) if rank != topology.rank]
    statuses = {rank: _status_of(run, topology, rank) for rank in others}
    suspected = [rank for rank, status in statuses.items() if status and not _is_waiting(status, now)]
    unread = [rank for rank, status in statuses.items() if status is None]
    named = suspected or unread or others
    line = ", ".join(topology.name_of(rank) + _last_words(statuses[rank], now) for rank in named[:MAX_NAMED])
    more = f" or one of {len(named) - MAX_NAMED} more" if len(named) > MAX_NAMED else ""
    return f"{line}{more} hangs, is frozen or is cut off"


def _status_of(run: Path, topology: Topology, rank: int) -> RankStatus | None:
    site = topology.site_of_rank[rank]
    try:
        return read_status(status_path(run / topology.site_names[site], topology.ranks_at(site).index(rank)))
    except (OSError, ValueError):
        return None


def _is_waiting(status: RankStatus, now: float) -> bool:
    return not status.is_silent(now) and status.doing.startswith("waiting")


def _last_words(status: RankStatus | None, now: float) -> str:
    if status is None:
        return ""
    ago = f", {now - status.time:.0f} s ago" if status.is_silent(now) else ""
    return f" (last word: {shown(status.doing, MAX_DOING)}, step {status.step}{ago})"
