"""The job that a rank takes part in: its line to the other ranks, who is where, and the rank's own device."""

from dataclasses import dataclass

import torch

from cxr_hvd.comm.communicator import Communicator
from cxr_hvd.comm.sites import Topology


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
    device: torch.device
