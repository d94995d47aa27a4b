"""Which way tensors of GPUs travel between ranks: straight by NCCL, or through the memory of the hosts.

Owns the question, asked once at the start, and the answer, which is the same on all ranks. NCCL moves them only
where every rank has a GPU of its own and a Horovod with NCCL; else the first exchange would fail, or wait for ever
(decision 0038). What goes through the host is copied by `bounce`. Pure, but for the name of this rank's GPU.
"""

import socket
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
INT64_MAX = (1 << 63) - 1


@dataclass(frozen=True)
class RankDevice:
    """What a rank tells the others of the device that it computes on.

    Attributes:
        gpu: a number that two ranks have in common where they compute on one GPU; 0 for a processor.
        has_nccl: whether this rank's Horovod is built with NCCL.
    """

    gpu: int
    has_nccl: bool

    def row(self) -> Tensor:
        """Return what is sent, (2,) int64."""
        return torch.tensor([self.gpu, int(self.has_nccl)], dtype=torch.int64)

    @classmethod
    def read(cls, numbers: Sequence[int]) -> "RankDevice":
        """Read what a rank has sent; raise a ValueError where it has not that form."""
        gpu, has_nccl = numbers
        if gpu < 0 or has_nccl not in (0, 1):
            raise ValueError(f"expected a number of a GPU and 0 or 1, found {gpu} and {has_nccl}")
        return cls(gpu, bool(has_nccl))


@dataclass(frozen=True)
class Transport:
    """Which way tensors of GPUs travel.

    Attributes:
        has_gpus: whether any rank computes on one.
        bounce_reason: why they go through the memory of the hosts; None where NCCL moves them.
    """

    has_gpus: bool
    bounce_reason: str | None = None

    def __str__(self) -> str:
        if self.bounce_reason:
            return f"tensors of GPUs travel through the host's memory, since {self.bounce_reason}"
        return "tensors of GPUs travel by NCCL" if self.has_gpus else "tensors travel from the processor's memory"


def describe_device(device: torch.device, has_nccl: bool) -> RankDevice:
    """Return what this rank has to tell of its device."""
    if device.type == "cpu":
        return RankDevice(0, has_nccl)
    properties: Any = torch.cuda.get_device_properties(device)
    place = (properties.pci_domain_id, properties.pci_bus_id, properties.pci_device_id)
    return RankDevice(number_gpu(place, machine_identity()), has_nccl)


def number_gpu(place: tuple[int, int, int], machine: str) -> int:
    """Return a number of 63 bits for a GPU, by its place on the PCI buses of a machine.

    The place and not the GPU's serial number, of which nothing leaves: NCCL goes by the place, too, and counts
    the parts of a divided GPU (MIG) as one.

    Args:
        place: numbers of domain, bus and device.
        machine: a name that no other machine has.
    """
    text = ":".join([machine, *map(str, place)])
    return int.from_bytes(sha256(text.encode()).digest()[:8]) & INT64_MAX or 1


def machine_identity(boot_id: Path = BOOT_ID) -> str:
    """Return a name of this machine, the same in all its containers: a random number that Linux draws at boot."""
    with suppress(OSError):
        if text := boot_id.read_text().strip():
            return text
    return socket.gethostname()


def choose_transport(
    devices: Sequence[RankDevice], name_of: Callable[[int], str] = lambda rank: f"rank {rank}"
) -> Transport:
    """Return the way that fits the devices of all ranks, in rank order."""
    if not any(device.gpu for device in devices):
        return Transport(has_gpus=False)
    ranks_of_gpu = defaultdict(list)
    for rank, device in enumerate(devices):
        ranks_of_gpu[device.gpu].append(rank)
    on_processors = ranks_of_gpu.pop(0, [])
    without_nccl = [rank for rank, device in enumerate(devices) if not device.has_nccl]
    sharing = next((ranks for ranks in ranks_of_gpu.values() if len(ranks) > 1), None)
    reason = None
    if on_processors:
        reason = f"{name_of(on_processors[0])} computes on a processor"
    elif without_nccl:
        reason = f"the Horovod of {name_of(without_nccl[0])} is built without NCCL"
    elif sharing:
        reason = f"{name_of(sharing[0])} and {name_of(sharing[1])} share a GPU"
    return Transport(has_gpus=True, bounce_reason=reason)
