"""What all ranks tell each other in every step, after backward and before a weight changes.

Five numbers a rank. They make every decision of a step the same on all ranks without a further collective: whether
its losses and gradients are finite, whether anybody asks to stop, and whether everybody's checkpoint is written.
Where nothing hangs on them at once they are read some steps later, so that nobody waits for a slow line
(decision 0034).
"""

from dataclasses import astuple, dataclass
from enum import IntEnum
from math import isfinite

import torch

from cxr_hvd.comm.answers import read_answers
from cxr_hvd.comm.communicator import Wait
from cxr_hvd.comm.job import Job


class StopReason(IntEnum):
    """Why a rank asks all to stop after this step. The greatest of all ranks' is told."""

    NONE = 0
    TIME = 1
    SIGNAL = 2
    LAUNCHER = 3


class Writing(IntEnum):
    """How far a rank's part of a checkpoint is."""

    IDLE = 0
    BUSY = 1
    WRITTEN = 2
    FAILED = 3


@dataclass(frozen=True)
class StepStatus:
    """One rank's word on one step.

    Attributes:
        loss: mean over the batch's known labels.
        shared_norm: norm of the shared gradient, as the optimizer is about to use it.
        is_private_finite: whether the private gradient is; its norm is not the others' business.
        stop_reason: whether the rank asks to stop, and why.
        writing: how far its part of a checkpoint is.
    """

    loss: float
    shared_norm: float
    is_private_finite: bool
    stop_reason: StopReason = StopReason.NONE
    writing: Writing = Writing.IDLE

    @property
    def is_finite(self) -> bool:
        return isfinite(self.loss) and isfinite(self.shared_norm) and self.is_private_finite


def begin_statuses(job: Job, status: StepStatus, slot: int = 0) -> Wait[list[StepStatus]]:
    """Begin to give every rank's status to every rank, in rank order. Collective: all ranks, once a step.

    Args:
        slot: tells statuses that are under way at the same time apart.
    """
    purpose = f"status.{slot}" if slot else "status"
    wait = job.comm.begin_allgather(torch.tensor(astuple(status), dtype=torch.float64), purpose)
    return lambda: read_answers(wait().tolist(), _read, "status", job.name_of)


def _read(row: list[float]) -> StepStatus:
    loss, shared_norm, is_private_finite, stop_reason, writing = row
    if is_private_finite not in (0.0, 1.0):
        raise ValueError(f"expected 0 or 1, found {is_private_finite}")
    if stop_reason not in list(StopReason) or writing not in list(Writing):
        raise ValueError(f"expected a reason to stop and a state of writing, found {stop_reason} and {writing}")
    return StepStatus(
        loss, shared_norm, bool(is_private_finite), StopReason(int(stop_reason)), Writing(int(writing))
    )
