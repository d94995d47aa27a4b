"""Run one job on one or several ranks, which fail together.

One process without MPI, or the processes that mpirun started: the rest of the program sees a `Ranks` and does
not care. One rank's error ends all ranks, each with a line of its own, within the time of one study.

Messages are numbers in upper-case mpi4py calls, never objects: an object is unpickled, and whoever sends it
runs code here.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import numpy as np

from cxr_hvd.environment import MPI_SIZES, count_in, is_parallel
from cxr_hvd.errors import CxrHvdError, PeerError, UsageError, leave, print_error
from preprocess.parallel.pool import MpiPool, OnePool, Pool

_FAILED_TAG = 7
_MAX_WAIT_S = 5.0

Result = TypeVar("Result")


class Ranks(Protocol):
    """The processes of this job, as far as this program needs to know of them."""

    rank: int
    num_ranks: int
    is_leader: bool

    def announce_failure(self) -> None:
        """Let the other ranks know, without waiting, that this one has failed."""

    def check_peers(self) -> None:
        """Raise `PeerError` where another rank has announced its failure; does not wait."""

    def first_failure(self, exit_code: int) -> tuple[int, int] | None:
        """Return the lowest rank with an exit code other than 0, and the code.

        Collective: every rank. Blocking: until every rank calls it.
        """

    def allgather_digests(self, digest: bytes) -> list[bytes]:
        """Return the 32-byte digest of each rank. Collective: every rank. Blocking: until every rank calls it."""

    def open_pool(self, num_tasks: int) -> Pool:
        """Share out the tasks 0 to `num_tasks` - 1. Collective: every rank, with equal numbers."""


class OneRank:
    """This process alone."""

    rank, num_ranks, is_leader = 0, 1, True

    def announce_failure(self) -> None:
        pass

    def check_peers(self) -> None:
        pass

    def first_failure(self, exit_code: int) -> tuple[int, int] | None:
        return (0, exit_code) if exit_code else None

    def allgather_digests(self, digest: bytes) -> list[bytes]:
        return [digest]

    def open_pool(self, num_tasks: int) -> Pool:
        return OnePool(num_tasks)


def _start_mpi() -> Any:
    """Load MPI and start it, so that ranks on several machines can have a window in common (`MpiPool`).

    Open MPI 4 offers one over plain sockets by one of its components alone (osc/pt2pt), and prefers another
    (osc/rdma), which then fails. The first wants MPI to be called by one thread, as it is here.
    """
    import mpi4py

    mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
    from mpi4py import MPI

    vendor, version = MPI.get_vendor()
    if vendor == "Open MPI" and version < (5, 0, 0):
        os.environ.setdefault("OMPI_MCA_osc", "^rdma")
    if not MPI.Is_initialized():
        MPI.Init_thread(MPI.THREAD_FUNNELED)
    return MPI


class MpiRanks:
    """The ranks that mpirun started."""

    def __init__(self) -> None:
        try:
            MPI = _start_mpi()
        except (ImportError, RuntimeError) as error:
            raise UsageError(
                "started by an MPI launcher, but mpi4py does not load; install it for this MPI"
            ) from error
        self._mpi: Any = MPI
        self._comm: Any = MPI.COMM_WORLD
        self.rank: int = self._comm.Get_rank()
        self.num_ranks: int = self._comm.Get_size()
        self.is_leader = self.rank == 0
        self._sent: list[Any] = []
        if self.num_ranks != (started := count_in(os.environ, "OMPI_COMM_WORLD_SIZE") or self.num_ranks):
            # Each process would take itself for the leader, and write the same file.
            raise UsageError(
                f"mpirun started {started} ranks, but mpi4py sees {self.num_ranks}: it was built for another MPI"
            )

    def announce_failure(self) -> None:
        message = np.array([self.rank], dtype=np.int32)
        others = (rank for rank in range(self.num_ranks) if rank != self.rank)
        # Kept, with its buffer, until the process ends: nobody has to receive it.
        self._sent += [(message, self._comm.Isend(message, dest=rank, tag=_FAILED_TAG)) for rank in others]

    def check_peers(self) -> None:
        status = self._mpi.Status()
        if self._comm.Iprobe(source=self._mpi.ANY_SOURCE, tag=_FAILED_TAG, status=status):
            raise PeerError(f"rank {status.Get_source()} failed")

    def first_failure(self, exit_code: int) -> tuple[int, int] | None:
        # Rank and code in one number, so that the least is the lowest rank's.
        mine = np.array([256 * (self.rank if exit_code else self.num_ranks) + exit_code], dtype=np.int64)
        lowest = np.empty_like(mine)
        self._comm.Allreduce(mine, lowest, op=self._mpi.MIN)
        rank, code = divmod(int(lowest[0]), 256)
        return (rank, code) if code else None

    def allgather_digests(self, digest: bytes) -> list[bytes]:
        everybody = np.empty((self.num_ranks, 32), dtype=np.uint8)
        self._comm.Allgather(np.frombuffer(digest, dtype=np.uint8), everybody)
        return [row.tobytes() for row in everybody]

    def open_pool(self, num_tasks: int) -> Pool:
        return MpiPool(self._mpi, self._comm, num_tasks)

    def print_error_and_leave(self, program: str, error: CxrHvdError) -> None:
        """Print the error and end this process, once every rank has had the time to print its own."""
        print_error(program, error)
        everybody = self._comm.Ibarrier()
        deadline = time.monotonic() + _MAX_WAIT_S
        while not everybody.Test() and time.monotonic() < deadline:
            time.sleep(0.01)
        leave(error.exit_code)


def is_under_launcher() -> bool:
    """Return whether an MPI launcher started this process and others; MPI itself is not touched.

    Raises:
        UsageError: a launcher's variable holds no number.
    """
    return is_parallel(os.environ, MPI_SIZES)


@contextmanager
def open_ranks(program: str) -> Iterator[Ranks]:
    """Give the ranks of this job. Under a launcher an error inside ends every rank, each with its own line."""
    if not is_under_launcher():
        yield OneRank()
        return
    ranks = MpiRanks()
    try:
        yield ranks
    except CxrHvdError as error:
        ranks.print_error_and_leave(program, error)


def broadcast_flag(ranks: Ranks, flag: bool) -> bool:
    """Return the leader's flag on every rank. Collective: every rank. Blocking: until every rank calls it."""
    return any(ranks.allgather_digests(bytes([flag]) * 32)[0])


class StoppedError(CxrHvdError):
    """Somebody asked the job to stop, and what it has done is kept."""

    exit_code = 75


class _StoppedWithPeer(PeerError):
    """Another rank failed; this one leaves with the same exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def stop_on_signal() -> Iterator[None]:
    """Raise `StoppedError` where SIGTERM or SIGINT asks this process to stop."""

    def stop(number: int, frame: object) -> None:
        raise StoppedError(f"stopped by {signal.Signals(number).name}; run the same again to go on")

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_phase(ranks: Ranks, work: Callable[[], Result]) -> Result:
    """Run this rank's part of a phase; raise on every rank where one of them failed.

    Collective: every rank. Blocking: until every rank has ended its part or noticed that another failed.

    Raises:
        CxrHvdError: on the lowest rank that failed, its own error; on all others `PeerError`.
    """
    error: Exception | None = None
    result: Result | None = None
    try:
        result = work()
    except PeerError:
        pass
    except Exception as caught:
        error = caught
        ranks.announce_failure()
    first = ranks.first_failure(error.exit_code if isinstance(error, CxrHvdError) else int(error is not None))
    if first is not None:
        if error is not None and (first[0] == ranks.rank or not isinstance(error, CxrHvdError)):
            raise error
        raise _StoppedWithPeer(f"rank {first[0]} failed and said why; rank {ranks.rank} stopped with it", first[1])
    return result  # type: ignore[return-value]
