"""What becomes of a step in which a number is not finite: whose and which it is, and how a step is taken back."""

from collections.abc import Sequence
from math import isfinite

import torch
from torch import nn

from cxr_hvd.comm.communicator import Communicator, allgather_text
from cxr_hvd.comm.sites import Topology
from cxr_hvd.comm.step_status import StepStatus
from cxr_hvd.data.loader import Batch
from cxr_hvd.errors import TrainingError
from cxr_hvd.partial.averager import Averager
from cxr_hvd.terminal import shown

MAX_SKIPPED = 20


class Statistics:
    """A model's buffers as they were before a step: forward moves BatchNorm's running means, whatever follows."""

    def __init__(self, model: nn.Module) -> None:
        buffers = list(model.buffers())
        self._floats = [each for each in buffers if each.is_floating_point()]
        self._counters = [each for each in buffers if not each.is_floating_point()]
        self._kept = [[torch.empty_like(each) for each in group] for group in (self._floats, self._counters)]

    @torch.no_grad()
    def keep(self) -> None:
        """Take note of the buffers."""
        for kept, own in zip(self._kept, (self._floats, self._counters), strict=True):
            torch._foreach_copy_(kept, own)

    @torch.no_grad()
    def restore(self) -> None:
        """Undo what happened to them since."""
        for kept, own in zip(self._kept, (self._floats, self._counters), strict=True):
            torch._foreach_copy_(own, kept)


def nonfinite_error(
    comm: Communicator,
    topology: Topology,
    model: nn.Module,
    averager: Averager,
    pulses: Sequence[StepStatus],
    batch: Batch,
    step: int,
    was_skipping: bool,
) -> TrainingError:
    """Find out whose step is not finite and in which tensor. Collective: every rank. Blocking.

    Returns:
        The same error on every rank; it names site, rank, step and tensor.
    """
    own = first_nonfinite(model, averager, pulses[topology.rank], batch)
    named = {rank: name for rank, name in enumerate(allgather_text(comm, own, "fault", topology.name_of)) if name}
    rank = min(named, default=0)
    what = f"the loss is {pulses[rank].loss}" if not isfinite(pulses[rank].loss) else "a gradient is not finite"
    after = f", after {MAX_SKIPPED} skipped steps in a row" if was_skipping else ""
    tensor = shown(named.get(rank, "the sum of finite gradients"))
    where = f"{what} in step {step} ({topology.name_of(rank)})"
    error = TrainingError(
        f"{where}: {tensor}{after}; no weight was changed by it: lower "
        "training.learning_rate, set training.clip_norm, use training.precision: fp32, or let all ranks leave "
        "such a step out with training.on_nonfinite: skip"
    )
    error.is_agreed = True
    return error


def first_nonfinite(model: nn.Module, averager: Averager, own: StepStatus, batch: Batch) -> str:
    """Name the first thing of this rank that is not finite, from input to gradients; empty where all is.

    Gradients that were exchanged are everybody's: of those the averager knows the rank's own part.
    """
    if not bool(batch.images.isfinite().all()):
        return "the images of its batch are not finite"
    for name, tensor in model.named_parameters():
        if not bool(tensor.isfinite().all()):
            return f"weight {name} is not finite"
    if not isfinite(own.loss):
        return "weights and images are finite, the network's output is not"
    blocks = averager.nonfinite_blocks()
    if blocks:
        return f"the gradient of {blocks[-1]} is not finite"
    if blocks is not None and own.is_private_finite:
        return ""
    # The one nearest to the loss: from there it spreads to all that come before.
    gradients = [(name, each.grad) for name, each in model.named_parameters() if each.grad is not None]
    bad = [name for name, gradient in gradients if not bool(gradient.isfinite().all())]
    return f"the gradient of {bad[-1]} is not finite" if bad else ""
