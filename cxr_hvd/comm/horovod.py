"""The communicator of a Horovod job: the only module that imports Horovod."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cxr_hvd.comm.answers import read_answers
from cxr_hvd.comm.bounce import BounceBuffers, GpuBoundary
from cxr_hvd.comm.communicator import Parts, Wait
from cxr_hvd.comm.transport import RankDevice, Transport, choose_transport, describe_device
from cxr_hvd.comm.watchdog import STALL_LIMIT_S, Watchdog
from cxr_hvd.environment import num_ranks_of_job
from cxr_hvd.errors import CxrHvdError, PeerError
from cxr_hvd.launch.early import NO_HOROVOD
from cxr_hvd.ledger.allowed import Group, How
from cxr_hvd.ledger.writer import Ledger

SHUT_DOWN = "Horovod has been shut down"
"""How Horovod begins to say of a rank that is gone no more than that."""
MAX_CAUSE = 400


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
        if torch.cuda.device_count():
            # Horovod looks for work every so many ms, 1 if left alone, which is as long as a GPU's exchange takes.
            os.environ.setdefault("HOROVOD_CYCLE_TIME", "0.1")
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
        _check_size(self.num_ranks, num_ranks_of_job(os.environ), bool(hvd.mpi_built()))
        self.local_rank: int = hvd.local_rank()
        self.ranks_per_node: int = hvd.local_size()
        self.ledger = Ledger()
        everybody = tuple(range(self.num_ranks))
        self._process_sets: dict[tuple[int, ...], Any] = {everybody: hvd.global_process_set}
        self._ranks_of_site = everybody
        self._bounce = BounceBuffers()
        self.watchdog = Watchdog(stall_limit_s)

    def use_device(self, device: torch.device) -> Transport:
        row = describe_device(device, bool(self._hvd.cuda_built() and self._hvd.nccl_built())).row()
        answers = self.begin_allgather(row, "device")().tolist()
        transport = choose_transport(read_answers(answers, RankDevice.read, "device"))
        self._bounce = BounceBuffers(GpuBoundary() if transport.bounce_reason else None)
        return transport

    def form_site_groups(self, site_of_rank: Sequence[int]) -> None:
        for site in sorted(set(site_of_rank)):
            ranks = tuple(rank for rank, other in enumerate(site_of_rank) if other == site)
            # A rank alone sums with nobody; and Horovod refuses to form the same set twice.
            if len(ranks) > 1 and ranks not in self._process_sets:
                self._process_sets[ranks] = self._hvd.add_process_set(list(ranks))
            if self.rank in ranks:
                self._ranks_of_site = ranks

    def begin_allreduce(self, tensor: Tensor, purpose: str, parts: Parts, group: Group = "all") -> Wait[None]:
        ranks = self._ranks_of_site if group == "site" else tuple(range(self.num_ranks))
        if not tensor.numel() or len(ranks) == 1:
            return lambda: None
        self._account_for(tensor, purpose, parts, group, len(ranks), "allreduce")
        name = f"{purpose}.{group}.{next(iter(parts))}"
        handed_over = self._bounce.to_host(tensor, name)
        wait_for_sum = self._started(
            purpose,
            lambda: self._hvd.grouped_allreduce_async_(
                [handed_over],
                name=name,
                op=self._hvd.Sum,
                process_set=self._process_sets[ranks],
            ),
        )

        def wait() -> None:
            wait_for_sum()
            self._bounce.put_back(handed_over, tensor)

        return wait

    def begin_allgather(self, tensor: Tensor, purpose: str, parts: Parts | None = None) -> Wait[Tensor]:
        row = tensor.unsqueeze(0).contiguous()
        self._account_for(row, purpose, parts, "all", self.num_ranks, "allgather")
        name = f"{purpose}.allgather"
        handed_over = self._bounce.to_host(_as_sent(row), name)
        wait = self._started(purpose, lambda: self._hvd.allgather_async(handed_over, name=name))
        return lambda: self._received(wait(), row, purpose)

    def begin_alltoall(self, rows: Tensor, purpose: str, parts: Parts | None = None) -> Wait[Tensor]:
        self._account_for(rows, purpose, parts, "all", self.num_ranks, "alltoall")
        name = f"{purpose}.alltoall"
        handed_over = self._bounce.to_host(_as_sent(rows), name)
        wait = self._started(purpose, lambda: self._hvd.alltoall_async(handed_over, name=name))
        # Beside the rows come their numbers.
        return lambda: self._received(wait()[0], rows, purpose)

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
        self, tensor: Tensor, purpose: str, parts: Parts | None, group: Group, group_size: int, how: How
    ) -> None:
        dtype = str(tensor.dtype).removeprefix("torch.")
        purpose, _, name = purpose.partition(".")
        if parts is None:
            self.ledger.note(purpose, name, tuple(tensor.shape), dtype, tensor.nbytes, group, group_size, how)
            return
        if sum(parts.values()) != tensor.numel():
            raise ValueError(f"{purpose}: {tensor.numel()} elements, and parts of {sum(parts.values())}: a defect")
        for name, size in parts.items():
            num_bytes = size * tensor.element_size()
            self.ledger.note(purpose, name, (size,), dtype, num_bytes, group, group_size, how)

    def _started(self, purpose: str, start: Callable[[], Any]) -> Wait[Any]:
        # Under Gloo, Horovod does not even take an order while it waits for a rank that is frozen.
        with self._peer_errors(purpose), self.watchdog.waits(purpose):
            handle = start()

        def wait() -> Any:
            with self._peer_errors(purpose), self.watchdog.waits(purpose):
                return self._hvd.synchronize(handle)

        return wait

    def _received(self, rows: Tensor, sent: Tensor, purpose: str) -> Tensor:
        """Return the rows of all ranks as `sent` is: its type, and where it is."""
        if rows.shape != (self.num_ranks, *sent.shape[1:]):  # Horovod lets it pass
            raise PeerError(f"a rank handed over another number of rows in {purpose}; start one version at all")
        return self._bounce.to_device_of(sent, rows).view(sent.dtype)

    @contextmanager
    def _peer_errors(self, purpose: str) -> Iterator[None]:
        from horovod.common.exceptions import HorovodInternalError

        try:
            yield
        except HorovodInternalError as error:
            raise PeerError(
                f"another rank stopped during {purpose}; its own last line says why{_cause(error)}"
            ) from error


def _check_size(num_ranks: int, started: int | None, has_mpi: bool) -> None:
    """Raise where Horovod sees one rank of several: each would take itself for the whole job."""
    if num_ranks > 1 or (started or 1) == 1:
        return
    mend = "is built for another MPI: make setup"
    if not has_mpi:
        mend = f"is built without MPI: start them by horovodrun --gloo -np {started}"
    raise CxrHvdError(f"a launcher started {started} ranks, and Horovod sees one, since it {mend}")


def _cause(error: Exception) -> str:
    """Return in brackets what Horovod, NCCL or Gloo says of a failure; nothing where that says no more."""
    # Gloo puts the place in its source before it.
    text = re.sub(r"^\[\S+:\d+\]\s*", "", " ".join(str(error).split()))
    return f" (Horovod: {text[:MAX_CAUSE]})" if text and not text.startswith(SHUT_DOWN) else ""


def _as_sent(tensor: Tensor) -> Tensor:
    """Give bfloat16 another name: Horovod does not know it, and neither alltoall nor allgather looks at values."""
    return tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
