"""The ranks' only line to each other, and the only module that imports Horovod.

A `Communicator` offers three collectives on numeric tensors: a sum in place, a gather of equal shapes, and a swap
of rows. All else is made of these, so that nothing is ever unpickled (decision 0002). What is handed to them must
stand in the table of `traffic`, and is noted in the `ledger`, before Horovod is called: nothing goes round either.
`HorovodComm` talks to the other ranks; `LocalComm` is the same for one process.

Every method below is collective: all ranks of the group call it, in the same order, or all wait. `begin_` starts
one and returns a function that waits for its end. A wait that lasts longer than a limit (CXR_STALL_LIMIT_S in the
environment, in seconds) ends this rank, and with it the job.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from cxr_hvd.collective.ledger import Ledger
from cxr_hvd.collective.traffic import Group, How
from cxr_hvd.errors import ContractError, CxrHvdError, PeerError, leave, print_error

STALL_LIMIT_S = 600.0
MAX_TEXT_BYTES = 1 << 20

Result = TypeVar("Result")
Wait = Callable[[], Result]


class Communicator(Protocol):
    """What every rank needs of the others.

    Purposes begin with a name from `traffic.TRAFFIC`, and tell what is sent.

    Attributes:
        rank: this process among all, from 0.
        num_ranks: how many processes take part.
        local_rank, ranks_per_node: the same on this machine alone.
        ledger: what this rank has handed to others.
    """

    rank: int
    num_ranks: int
    local_rank: int
    ranks_per_node: int
    ledger: Ledger

    def form_site_groups(self, site_of_rank: Sequence[int]) -> None:
        """Fix the ranks of each site for the group "site". Collective: all ranks."""
        ...

    def begin_sum(self, tensors: Mapping[str, Tensor], purpose: str, group: Group = "all") -> Wait[None]:
        """Begin to replace each named tensor by its sum over the group. Collective: all ranks of the group.

        Until the returned function has been called, the tensors must not be touched.
        """
        ...

    def begin_gather(self, tensor: Tensor, purpose: str) -> Wait[Tensor]:
        """Begin to collect (num_ranks, *shape): every rank's tensor of one shape and type. Collective: all."""
        ...

    def begin_swap(self, rows: Tensor, purpose: str) -> Wait[Tensor]:
        """Begin to give row r of (num_ranks, k) to rank r; the result holds the row from each. Collective: all."""
        ...

    def close(self) -> None:
        """Leave the job in order. Collective: all ranks."""
        ...


class LocalComm:
    """One process alone: its sum is itself."""

    rank = 0
    num_ranks = 1
    local_rank = 0
    ranks_per_node = 1

    def __init__(self) -> None:
        self.ledger = Ledger()

    def form_site_groups(self, site_of_rank: Sequence[int]) -> None:
        pass

    def begin_sum(self, tensors: Mapping[str, Tensor], purpose: str, group: Group = "all") -> Wait[None]:
        return lambda: None

    def begin_gather(self, tensor: Tensor, purpose: str) -> Wait[Tensor]:
        row = tensor.unsqueeze(0).clone()
        return lambda: row

    def begin_swap(self, rows: Tensor, purpose: str) -> Wait[Tensor]:
        own = rows.clone()
        return lambda: own

    def close(self) -> None:
        pass


class HorovodComm:
    """The ranks of one Horovod job, under MPI or Gloo.

    Collective: all ranks create one. Creating it starts Horovod.

    Args:
        stall_limit_s: the longest wait for other ranks, in seconds, unless CXR_STALL_LIMIT_S says otherwise.
    """

    def __init__(self, stall_limit_s: float = STALL_LIMIT_S) -> None:
        # Read when Horovod and MPI start: sites may be formed later; a waiting rank yields its core; flat buffers
        # are sent from where they lie, not copied into one of Horovod's own first (decision 0005).
        os.environ.setdefault("HOROVOD_DYNAMIC_PROCESS_SETS", "1")
        os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
        os.environ.setdefault("HOROVOD_FUSION_THRESHOLD", "0")
        import horovod.torch as hvd

        self._hvd: Any = hvd
        hvd.init()
        self.rank: int = hvd.rank()
        self.num_ranks: int = hvd.size()
        self.local_rank: int = hvd.local_rank()
        self.ranks_per_node: int = hvd.local_size()
        self.ledger = Ledger()
        everybody = tuple(range(self.num_ranks))
        self._process_sets: dict[tuple[int, ...], Any] = {everybody: hvd.global_process_set}
        self._ranks_of_site = everybody
        self._watchdog = Watchdog(float(os.environ.get("CXR_STALL_LIMIT_S", stall_limit_s)))

    def form_site_groups(self, site_of_rank: Sequence[int]) -> None:
        for site in sorted(set(site_of_rank)):
            ranks = tuple(rank for rank, other in enumerate(site_of_rank) if other == site)
            # A rank alone sums with nobody; and Horovod refuses to form the same set twice.
            if len(ranks) > 1 and ranks not in self._process_sets:
                self._process_sets[ranks] = self._hvd.add_process_set(list(ranks))
            if self.rank in ranks:
                self._ranks_of_site = ranks

    def begin_sum(self, tensors: Mapping[str, Tensor], purpose: str, group: Group = "all") -> Wait[None]:
        ranks = self._ranks_of_site if group == "site" else tuple(range(self.num_ranks))
        if not tensors or len(ranks) == 1:  # Horovod fails on an empty list
            return lambda: None
        for name, tensor in tensors.items():
            self._account_for(tensor, purpose, name, group, len(ranks), "sum")
        return self._started(
            purpose,
            lambda: self._hvd.grouped_allreduce_async_(
                list(tensors.values()),
                name=f"{purpose}.{group}.{next(iter(tensors))}",
                op=self._hvd.Sum,
                process_set=self._process_sets[ranks],
            ),
        )

    def begin_gather(self, tensor: Tensor, purpose: str) -> Wait[Tensor]:
        row = tensor.unsqueeze(0).contiguous()
        self._account_for(row, purpose, "", "all", self.num_ranks, "gather")
        wait = self._started(purpose, lambda: self._hvd.allgather_async(_as_sent(row), name=f"{purpose}.gather"))
        return lambda: wait().view(row.dtype)

    def begin_swap(self, rows: Tensor, purpose: str) -> Wait[Tensor]:
        self._account_for(rows, purpose, "", "all", self.num_ranks, "swap")
        wait = self._started(purpose, lambda: self._hvd.alltoall_async(_as_sent(rows), name=f"{purpose}.swap"))
        return lambda: wait()[0].view(rows.dtype)  # beside the rows come their numbers

    def close(self) -> None:
        self.ledger.close()
        self._hvd.shutdown()

    def _account_for(
        self, tensor: Tensor, purpose: str, name: str, group: Group, group_size: int, how: How
    ) -> None:
        if not name:
            purpose, _, name = purpose.partition(".")
        dtype = str(tensor.dtype).removeprefix("torch.")
        self.ledger.note(purpose, name, tuple(tensor.shape), dtype, tensor.nbytes, group, group_size, how)

    def _started(self, purpose: str, start: Callable[[], Any]) -> Wait[Any]:
        with self._stops_told(purpose):
            handle = start()

        def wait() -> Any:
            with self._stops_told(purpose), self._watchdog.watching(purpose):
                return self._hvd.synchronize(handle)

        return wait

    @contextmanager
    def _stops_told(self, purpose: str) -> Iterator[None]:
        from horovod.common.exceptions import HorovodInternalError

        try:
            yield
        except HorovodInternalError as error:
            raise PeerError(f"another rank stopped during {purpose}; its own last line says why") from error


def _as_sent(tensor: Tensor) -> Tensor:
    """Give bfloat16 another name: Horovod does not know it, and neither swap nor gather looks at values."""
    return tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor


class Watchdog:
    """Ends this process when a wait for other ranks has lasted too long.

    Horovod's own stall check does not fire under Gloo, where a silent rank would be waited for without end.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._waiting: tuple[str, float] | None = None
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @contextmanager
    def watching(self, purpose: str) -> Iterator[None]:
        """Count the time of the body, a wait for `purpose`."""
        self._waiting = (purpose, time.monotonic())
        try:
            yield
        finally:
            self._waiting = None

    def _watch(self) -> None:
        while True:
            time.sleep(min(1.0, self._limit_s / 4))
            waiting = self._waiting
            if waiting and time.monotonic() - waiting[1] > self._limit_s:
                error = PeerError(
                    f"waited {self._limit_s:.0f} s for the other ranks in {waiting[0]}: one hangs or is cut "
                    "off; look at each rank's last line, then start again with --resume"
                )
                print_error("cxr-hvd", error)
                leave(error.exit_code)


def start_comm(stall_limit_s: float = STALL_LIMIT_S) -> Communicator:
    """Join the job that a launcher (horovodrun, mpirun, srun) started, or work alone where there is none."""
    sizes = ("HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
    num_ranks = max(int(os.environ.get(name, "1")) for name in sizes)
    return HorovodComm(stall_limit_s) if num_ranks > 1 or "PMIX_RANK" in os.environ else LocalComm()


def gather(comm: Communicator, tensor: Tensor, purpose: str) -> Tensor:
    """Return (num_ranks, *shape): every rank's tensor. Collective: all ranks. Blocking."""
    return comm.begin_gather(tensor, purpose)()


def gather_text(comm: Communicator, text: str, purpose: str) -> list[str]:
    """Return every rank's text, in rank order, as UTF-8 bytes of bounded length. Collective: all ranks."""
    payload = text.encode()
    lengths = gather(comm, torch.tensor([len(payload)], dtype=torch.int64), f"{purpose}.length").flatten()
    if int(lengths.max()) > MAX_TEXT_BYTES:
        raise ContractError(
            f"{purpose}: a rank offers {int(lengths.max())} bytes, at most {MAX_TEXT_BYTES} are read"
        )
    padded = torch.zeros(max(1, int(lengths.max())), dtype=torch.uint8)
    padded[: len(payload)] = torch.frombuffer(bytearray(payload), dtype=torch.uint8) if payload else 0
    rows = gather(comm, padded, f"{purpose}.text")
    return [bytes(row[:length].tolist()).decode() for row, length in zip(rows, lengths.tolist(), strict=True)]


@contextmanager
def together(comm: Communicator, doing: str) -> Iterator[None]:
    """Run the body on every rank; where it fails on one, all stop with one verdict.

    The rank that failed raises its own error, the others a `PeerError` that names the rank, never the message:
    what one site's files are called is not the others' business.

    Collective: all ranks, at the end of the body. Blocking.
    """
    failure: CxrHvdError | None = None
    try:
        yield
    except CxrHvdError as error:
        failure = error
    codes = gather(comm, torch.tensor([failure.exit_code if failure else 0]), f"verdict.{doing}").flatten()
    if failure is not None:
        failure.is_agreed = True
        raise failure
    if codes.any():
        failed = ", ".join(str(rank) for rank in codes.nonzero().flatten().tolist())
        peer_error = PeerError(f"stopped because rank {failed} failed while {doing}; its own line says why")
        peer_error.exit_code = int(codes.max())
        peer_error.is_agreed = True
        raise peer_error
