"""The ranks' only line to each other, and the only module that imports Horovod.

A `Communicator` offers three collectives on numeric tensors: a sum in place, a gather of equal shapes, and a swap
of rows. All else is made of these, so that nothing is ever unpickled (decision 0002). What is handed to them must
stand in the table of `traffic`, and is noted in the `ledger`, before Horovod is called: nothing goes round either.
`HorovodComm` talks to the other ranks; `LocalComm` is the same for one process.

Every method below is collective: all ranks of the group call it, in the same order, or all wait. `begin_` starts
one and returns a function that waits for its end. A wait that lasts longer than a limit ends this rank, and with
it the job (`watchdog`; CXR_STALL_LIMIT_S in the environment, such as 600 or 10m).
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from cxr_hvd.comm.answers import NameOf, check_number, name_rank, read_answers
from cxr_hvd.comm.watchdog import Watchdog
from cxr_hvd.environment import is_parallel
from cxr_hvd.errors import CxrHvdError, PeerError
from cxr_hvd.launch.early import NO_HOROVOD
from cxr_hvd.launch.launchers import parse_duration
from cxr_hvd.ledger.allowed import Group, How
from cxr_hvd.ledger.writer import Ledger

STALL_LIMIT_S = 600.0
STALL_LIMIT = "CXR_STALL_LIMIT_S"
MAX_TEXT_BYTES = 1 << 20
EXIT_CODES = (1, 2, 75)

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
        watchdog: ends this rank where it, or one that it waits for, hangs.
    """

    rank: int
    num_ranks: int
    local_rank: int
    ranks_per_node: int
    ledger: Ledger
    watchdog: Watchdog

    def form_site_groups(self, site_of_rank: Sequence[int]) -> None:
        """Fix the ranks of each site for the group "site". Collective: all ranks."""
        ...

    def begin_allreduce(self, tensors: Mapping[str, Tensor], purpose: str, group: Group = "all") -> Wait[None]:
        """Begin to replace each named tensor by its sum over the group. Collective: all ranks of the group.

        Until the returned function has been called, the tensors must not be touched.
        """
        ...

    def begin_allgather(self, tensor: Tensor, purpose: str) -> Wait[Tensor]:
        """Begin to collect (num_ranks, *shape): every rank's tensor of one shape and type. Collective: all."""
        ...

    def begin_alltoall(self, rows: Tensor, purpose: str) -> Wait[Tensor]:
        """Begin to give row r of (num_ranks, k) to rank r; the result holds the row from each. Collective: all."""
        ...

    def start_timeline(self, path: str) -> None:
        """Have Horovod write what it does when to a file, on rank 0. Collective: all ranks."""
        ...

    def stop_timeline(self) -> None:
        """End that. Collective: all ranks."""
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

    def __init__(self, stall_limit_s: float = STALL_LIMIT_S) -> None:
        self.ledger = Ledger()
        self.watchdog = Watchdog(stall_limit_s)

    def form_site_groups(self, site_of_rank: Sequence[int]) -> None:
        pass

    def begin_allreduce(self, tensors: Mapping[str, Tensor], purpose: str, group: Group = "all") -> Wait[None]:
        return lambda: None

    def begin_allgather(self, tensor: Tensor, purpose: str) -> Wait[Tensor]:
        row = tensor.unsqueeze(0).clone()
        return lambda: row

    def begin_alltoall(self, rows: Tensor, purpose: str) -> Wait[Tensor]:
        own = rows.clone()
        return lambda: own

    def start_timeline(self, path: str) -> None:
        pass

    def stop_timeline(self) -> None:
        pass

    def close(self) -> None:
        self.watchdog.rests()


class HorovodComm:
    """The ranks of one Horovod job, under MPI or Gloo.

    Collective: all ranks create one. Creating it starts Horovod.

    Args:
        stall_limit_s: the longest wait for other ranks, in seconds.
        has_timeline: whether Horovod is to be ready for `start_timeline`.
    """

    def __init__(self, stall_limit_s: float = STALL_LIMIT_S, has_timeline: bool = False) -> None:
        # Read when Horovod and MPI start: sites may be formed later; a waiting rank yields its core; flat buffers
        # are sent from where they lie, not copied into one of Horovod's own first (decision 0005).
        os.environ.setdefault("HOROVOD_DYNAMIC_PROCESS_SETS", "1")
        os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
        os.environ.setdefault("HOROVOD_FUSION_THRESHOLD", "0")
        if has_timeline:
            os.environ.setdefault("HOROVOD_TIMELINE", "DYNAMIC")
        try:
            import horovod.torch as hvd
        except ImportError as error:
            raise CxrHvdError(f"{NO_HOROVOD} ({error})") from error
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
        self.watchdog = Watchdog(stall_limit_s)

    def form_site_groups(self, site_of_rank: Sequence[int]) -> None:
        for site in sorted(set(site_of_rank)):
            ranks = tuple(rank for rank, other in enumerate(site_of_rank) if other == site)
            # A rank alone sums with nobody; and Horovod refuses to form the same set twice.
            if len(ranks) > 1 and ranks not in self._process_sets:
                self._process_sets[ranks] = self._hvd.add_process_set(list(ranks))
            if self.rank in ranks:
                self._ranks_of_site = ranks

    def begin_allreduce(self, tensors: Mapping[str, Tensor], purpose: str, group: Group = "all") -> Wait[None]:
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

    def begin_allgather(self, tensor: Tensor, purpose: str) -> Wait[Tensor]:
        row = tensor.unsqueeze(0).contiguous()
        self._account_for(row, purpose, "", "all", self.num_ranks, "gather")
        wait = self._started(purpose, lambda: self._hvd.allgather_async(_as_sent(row), name=f"{purpose}.gather"))
        return lambda: self._checked(wait(), row.shape[1:], purpose).view(row.dtype)

    def begin_alltoall(self, rows: Tensor, purpose: str) -> Wait[Tensor]:
        self._account_for(rows, purpose, "", "all", self.num_ranks, "swap")
        wait = self._started(purpose, lambda: self._hvd.alltoall_async(_as_sent(rows), name=f"{purpose}.swap"))
        # Beside the rows come their numbers.
        return lambda: self._checked(wait()[0], rows.shape[1:], purpose).view(rows.dtype)

    def start_timeline(self, path: str) -> None:
        self._hvd.start_timeline(path)

    def stop_timeline(self) -> None:
        self._hvd.stop_timeline()

    def close(self) -> None:
        self.ledger.close()
        with self.watchdog.waits("leaving"):
            self._hvd.shutdown()
        self.watchdog.rests()

    def _account_for(
        self, tensor: Tensor, purpose: str, name: str, group: Group, group_size: int, how: How
    ) -> None:
        if not name:
            purpose, _, name = purpose.partition(".")
        dtype = str(tensor.dtype).removeprefix("torch.")
        self.ledger.note(purpose, name, tuple(tensor.shape), dtype, tensor.nbytes, group, group_size, how)

    def _started(self, purpose: str, start: Callable[[], Any]) -> Wait[Any]:
        # Under Gloo, Horovod does not even take an order while it waits for a rank that is frozen.
        with self._stops_told(purpose), self.watchdog.waits(purpose):
            handle = start()

        def wait() -> Any:
            with self._stops_told(purpose), self.watchdog.waits(purpose):
                return self._hvd.synchronize(handle)

        return wait

    def _checked(self, rows: Tensor, shape: torch.Size, purpose: str) -> Tensor:
        if rows.shape != (self.num_ranks, *shape):  # Horovod lets it pass
            raise PeerError(f"a rank handed over another number of rows in {purpose}; start one version at all")
        return rows

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


def start_comm(stall_limit_s: float = STALL_LIMIT_S, has_timeline: bool = False) -> Communicator:
    """Join the job that a launcher (horovodrun, mpirun, srun) started, or work alone where there is none.

    Args:
        stall_limit_s: the longest that a rank may hang or wait, in seconds; CXR_STALL_LIMIT_S goes first.
        has_timeline: whether `start_timeline` will be called.

    Raises:
        UsageError: the environment says something that is no time, or no number of ranks.
    """
    if text := os.environ.get(STALL_LIMIT):
        stall_limit_s = parse_duration(text, STALL_LIMIT)
    return HorovodComm(stall_limit_s, has_timeline) if is_parallel(os.environ) else LocalComm(stall_limit_s)


def allgather(comm: Communicator, tensor: Tensor, purpose: str) -> Tensor:
    """Return (num_ranks, *shape): every rank's tensor. Collective: all ranks. Blocking."""
    return comm.begin_allgather(tensor, purpose)()


def allgather_text(comm: Communicator, text: str, purpose: str, name_of: NameOf = name_rank) -> list[str]:
    """Return every rank's text, in rank order, as UTF-8 bytes of bounded length. Collective: all ranks."""
    payload = text.encode()
    offered = (
        allgather(comm, torch.tensor([len(payload)], dtype=torch.int64), f"{purpose}.length").flatten().tolist()
    )
    lengths = read_answers(offered, lambda num: int(check_number(num, 0, MAX_TEXT_BYTES)), purpose, name_of)
    padded = torch.zeros(max(1, *lengths), dtype=torch.uint8)
    padded[: len(payload)] = torch.frombuffer(bytearray(payload), dtype=torch.uint8) if payload else 0
    rows = allgather(comm, padded, f"{purpose}.text")
    texts = [bytes(row[:length].tolist()) for row, length in zip(rows, lengths, strict=True)]
    return read_answers(texts, bytes.decode, purpose, name_of)


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
    codes = allgather(comm, torch.tensor([failure.exit_code if failure else 0]), f"verdict.{doing}").flatten()
    if failure is not None:
        failure.is_agreed = True
        raise failure
    if codes.any():
        failed = ", ".join(str(rank) for rank in codes.nonzero().flatten().tolist())
        peer_error = PeerError(f"stopped because rank {failed} failed while {doing}; its own line says why")
        peer_error.exit_code = max(code if code in EXIT_CODES else 1 for code in codes.tolist() if code)
        peer_error.is_agreed = True
        raise peer_error
