"""What one step came to: all that its readers know of it, and how much of that a rank knows already."""

from collections.abc import Sequence
from dataclasses import dataclass

from cxr_hvd.comm.communicator import Wait
from cxr_hvd.comm.step_status import StepStatus, StopReason


@dataclass(frozen=True)
class StepReport:
    """What one step came to.

    Attributes:
        step: number of the step, from 0.
        statuses: every rank's word on this step, in rank order: losses, norms, reasons to stop.
        loss: this rank's mean loss over its known labels.
        learning_rate: the rate of this step.
        gradient_norm: of this rank's whole gradient, before clipping.
        is_skipped: whether no rank took the optimizer's step, since something was not finite on one.
        data_s, compute_s, averaging_s: seconds spent in each, on this rank.
    """

    step: int
    statuses: Sequence[StepStatus]
    loss: float
    learning_rate: float
    gradient_norm: float
    is_skipped: bool
    data_s: float
    compute_s: float
    averaging_s: float

    @property
    def loss_of_rank(self) -> list[float]:
        """Every rank's mean loss, in rank order."""
        return [status.loss for status in self.statuses]

    @property
    def stop_reason(self) -> StopReason:
        """Why all stop after this step; `StopReason.NONE` where they go on."""
        return max(status.stop_reason for status in self.statuses)


@dataclass(frozen=True)
class OpenStep:
    """A step of which this rank does not know yet how it went on the others.

    Attributes:
        report: of the step, without statuses.
        wait: waits for the statuses.
        fault: what was not finite on this rank; empty where all was.
    """

    report: StepReport
    wait: Wait[list[StepStatus]]
    fault: str
