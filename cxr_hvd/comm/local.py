"""The communicator of one process alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cxr_hvd.comm.communicator import Parts, Wait
from cxr_hvd.comm.transport import Transport
from cxr_hvd.comm.watchdog import STALL_LIMIT_S, Watchdog
from cxr_hvd.ledger.allowed import Group
from cxr_hvd.ledger.writer import Ledger


class LocalComm:
    """One process alone: its sum is itself, and nothing leaves it."""

    rank = 0
    num_ranks = 1
    local_rank = 0
    ranks_per_node = 1

    def __init__(self, stall_limit_s: float = STALL_LIMIT_S) -> None:
        self.ledger = Ledger()
        self.watchdog = Watchdog(stall_limit_s)

    def form_site_groups(self, site_of_rank: Sequence[int]) -> None:
        pass

    def use_device(self, device: torch.device) -> Transport:
        return Transport(has_gpus=device.type != "cpu")

    def begin_allreduce(self, tensor: Tensor, purpose: str, parts: Parts, group: Group = "all") -> Wait[None]:
        return lambda: None

    def begin_allgather(self, tensor: Tensor, purpose: str, parts: Parts | None = None) -> Wait[Tensor]:
        row = tensor.unsqueeze(0).clone()
        return lambda: row

    def begin_alltoall(self, rows: Tensor, purpose: str, parts: Parts | None = None) -> Wait[Tensor]:
        row = rows.clone()
        return lambda: row

    def start_timeline(self, path: str) -> None:
        pass

    def stop_timeline(self) -> None:
        pass

    def close(self) -> None:
        self.watchdog.rests()
