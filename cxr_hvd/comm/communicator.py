"""What every rank needs of the others: three collectives on numeric tensors, and what is made of them.

A `Communicator` offers an allreduce in place, an allgather of equal shapes, and an alltoall of rows. All else is
made of these, so that nothing is ever unpickled (decision 0002). What is handed to them must stand in the table of
`ledger.allowed`, and is noted in the ledger, before Horovod is called: nothing goes round either.

Every method is collective: all ranks of the group call it, in the same order, or all wait. `begin_` starts one and
returns a function that waits for its end. A wait that lasts longer than a limit ends this rank, and with it the
job (`watchdog`). `horovod.HorovodComm` talks to the other ranks; `local.LocalComm` is the same for one process.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from cxr_hvd.comm.answers import NameOf, check_number, name_rank, read_answers
from cxr_hvd.comm.transport import Transport
from cxr_hvd.comm.watchdog import Watchdog
from cxr_hvd.errors import CxrHvdError, PeerError
from cxr_hvd.ledger.allowed import Group
from cxr_hvd.ledger.writer import Ledger

MAX_TEXT_BYTES = 1 << 20
EXIT_CODES = (1, 2, 75)

Result = TypeVar("Result")
Wait = Callable[[], Result]
Parts = Mapping[str, int]
"""What lies in a flat tensor, in order: each part's name and number of elements. The ledger notes each."""


class Communicator(Protocol):
    """What every rank needs of the others.

    Purposes begin with a name from `ledger.allowed.TRAFFIC`, and tell what is sent.

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

    def use_device(self, device: torch.device) -> Transport:
        """Agree on how tensors of GPUs travel, before the first one does. Collective: all ranks. Blocking."""
        ...

    def begin_allreduce(self, tensor: Tensor, purpose: str, parts: Parts, group: Group = "all") -> Wait[None]:
        """Begin to replace a tensor by its sum over the group. Collective: all ranks of the group.

        Until the returned function has been called, the tensor must not be touched. An empty one is not sent.
        """
        ...

    def begin_allgather(self, tensor: Tensor, purpose: str, parts: Parts | None = None) -> Wait[Tensor]:
        """Begin to collect (num_ranks, *shape): every rank's tensor of one shape and type. Collective: all.

        Several may be under way at once where their purposes differ.
        """
        ...

    def begin_alltoall(self, rows: Tensor, purpose: str, parts: Parts | None = None) -> Wait[Tensor]:
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
        raise failure.agreed()
    if codes.any():
        failed = ", ".join(str(rank) for rank in codes.nonzero().flatten().tolist())
        exit_code = max(code if code in EXIT_CODES else 1 for code in codes.tolist() if code)
        refusal = f"stopped because rank {failed} failed while {doing}; its own line says why"
        raise PeerError(refusal).agreed(exit_code)
