"""A step in which a number is not finite: whose and which it is, and how the step is taken back."""

from collections.abc import Sequence
from math import isfinite

import torch
from torch import nn

from cxr_hvd.comm.job import Job
from cxr_hvd.comm.step_status import StepStatus
from cxr_hvd.data.loader import Batch
from cxr_hvd.errors import TrainingError
from cxr_hvd.partial.averager import PartialAverager
from cxr_hvd.terminal import shown

MAX_SKIPPED = 20


class Statistics:
    """A model's buffers as they were before a step: forward moves BatchNorm's running means, whatever follows."""

    def __init__(self, model: nn.Module) -> None:
        buffers = list(model.buffers())
        floats = [buffer for buffer in buffers if buffer.is_floating_point()]
        counters = [buffer for buffer in buffers if not buffer.is_floating_point()]
        self._groups = [(group, [torch.empty_like(buffer) for buffer in group]) for group in (floats, counters)]

    @torch.no_grad()
    def keep(self) -> None:
        """Take note of the buffers."""
        for buffers, kept in self._groups:
            torch._foreach_copy_(kept, buffers)

    @torch.no_grad()
    def restore(self) -> None:
        """Undo what happened to them since."""
        for buffers, kept in self._groups:
            torch._foreach_copy_(buffers, kept)


def nonfinite_error(
    job: Job, statuses: Sequence[StepStatus], fault: str, step: int, was_skipping: bool
) -> TrainingError:
    """Tell all ranks whose step is not finite and in which tensor. Collective: every rank. Blocking.

    Args:
        statuses: of all ranks on this step.
        fault: what `first_nonfinite` found on this rank in it.

    Returns:
        The same error on every rank; it names site, rank, step and tensor.
    """
    faults = {rank: name for rank, name in enumerate(job.allgather_text(fault, "fault")) if name}
    rank = min(faults, default=0)
    loss = statuses[rank].loss
    what = "a gradient is not finite" if isfinite(loss) else f"the loss is {loss}"
    after = f", after {MAX_SKIPPED} skipped steps in a row" if was_skipping else ""
    tensor = shown(faults.get(rank, "the sum of finite gradients"))
    return TrainingError(
        f"{what} in step {step} ({job.name_of(rank)}): {tensor}{after}; no weight was changed by it: lower "
        "training.learning_rate, set training.clip_norm, use training.precision: fp32, or let all ranks leave "
        "such a step out with training.on_nonfinite: skip"
    ).agreed()


def first_nonfinite(model: nn.Module, averager: PartialAverager, status: StepStatus, batch: Batch) -> str:
    """Name the first thing of this rank that is not finite, from input to gradients; empty where all is.

    Call it in the step itself: the next one has other gradients. Not collective.

    Gradients that were exchanged are everybody's: of those the averager knows the rank's own part.
    """
    if not bool(batch.images.isfinite().all()):
        return "the images of its batch are not finite"
    for name, tensor in model.named_parameters():
        if not bool(tensor.isfinite().all()):
            return f"weight {name} is not finite"
    if not isfinite(status.loss):
        return "weights and images are finite, the network's output is not"
    blocks = averager.nonfinite_blocks()
    if blocks:
        return f"the gradient of {blocks[-1]} is not finite"
    if blocks is not None and status.is_private_finite:
        return ""
    # The one nearest to the loss: from there it spreads to all that come before.
    gradients = {name: tensor.grad for name, tensor in model.named_parameters() if tensor.grad is not None}
    bad = [name for name, gradient in gradients.items() if not bool(gradient.isfinite().all())]
    return f"the gradient of {bad[-1]} is not finite" if bad else ""
