"""One rank's part in a job: its line to the other ranks, who is where, and the device that it computes on."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from cxr_hvd.comm.answers import read_answers
from cxr_hvd.comm.communicator import Communicator, allgather, allgather_text, together
from cxr_hvd.comm.sites import Topology
from cxr_hvd.comm.watchdog import Watchdog
from cxr_hvd.ledger.writer import Ledger

CPU = torch.device("cpu")

Answer = TypeVar("Answer")
Read = TypeVar("Read")


@dataclass(frozen=True)
class Job:
    """One rank's part in a job. It travels instead of a communicator, a topology and a device.

    Attributes:
        comm: the collectives.
        topology: which rank belongs to which site, and the roles of this rank.
        device: where this rank computes.
    """

    comm: Communicator
    topology: Topology
    device: torch.device = CPU

    @property
    def rank(self) -> int:
        """This process among all, from 0."""
        return self.topology.rank

    @property
    def num_ranks(self) -> int:
        """How many processes take part."""
        return self.topology.num_ranks

    @property
    def site(self) -> str:
        """The name of this rank's site."""
        return self.topology.site

    @property
    def num_ranks_of_site(self) -> int:
        """How many ranks this rank's site has."""
        return len(self.topology.ranks_of_site)

    @property
    def is_leader(self) -> bool:
        """Whether this rank speaks for the whole job."""
        return self.topology.is_leader

    @property
    def is_site_leader(self) -> bool:
        """Whether this rank writes its site's files."""
        return self.topology.is_site_leader

    @property
    def ledger(self) -> Ledger:
        """What this rank has handed to others."""
        return self.comm.ledger

    @property
    def watchdog(self) -> Watchdog:
        """Ends this rank where it, or one that it waits for, hangs."""
        return self.comm.watchdog

    def name_of(self, rank: int) -> str:
        """Return how messages call a rank."""
        return self.topology.name_of(rank)

    def together(self, doing: str) -> AbstractContextManager[None]:
        """Run the body on every rank; where it fails on one, all stop. Collective: all ranks. Blocking."""
        return together(self.comm, doing)

    def allgather(self, tensor: Tensor, purpose: str) -> Tensor:
        """Return (num_ranks, *shape): every rank's tensor. Collective: all ranks. Blocking."""
        return allgather(self.comm, tensor, purpose)

    def allgather_text(self, text: str, purpose: str) -> list[str]:
        """Return every rank's text, in rank order. Collective: all ranks. Blocking."""
        return allgather_text(self.comm, text, purpose, self.name_of)

    def allgather_numbers(self, numbers: Tensor, purpose: str, read: Callable[[list[float]], Read]) -> list[Read]:
        """Return what `read` makes of every rank's numbers, in rank order. Collective: all ranks. Blocking.

        Args:
            numbers: (k,) of this rank.
            read: raises a ValueError where a rank's numbers have not their form.

        Raises:
            ContractError: on every rank alike, where one rank's numbers cannot be read.
        """
        return read_answers(self.allgather(numbers, purpose).tolist(), read, purpose, self.name_of)
