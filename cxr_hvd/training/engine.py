"""The training loop: one step on this rank, one average with the others, until the steps are done."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cxr_hvd.collective.averaging import Averager
from cxr_hvd.collective.comm import Communicator, Wait
from cxr_hvd.collective.sites import Topology
from cxr_hvd.config import Training
from cxr_hvd.errors import TrainingError
from cxr_hvd.training.loader import Batch
from cxr_hvd.training.schedule import SCHEDULES


@dataclass(frozen=True)
class StepReport:
    """What one step came to.

    Attributes:
        step: number of the step, from 0.
        loss: this rank's mean loss over its known labels.
        loss_of_rank: the same for every rank.
        learning_rate: the rate of this step.
        data_s, compute_s, averaging_s: seconds spent in each, on this rank.
    """

    step: int
    loss: float
    loss_of_rank: list[float]
    learning_rate: float
    data_s: float
    compute_s: float
    averaging_s: float


class Clock:
    """Adds up the seconds spent in its `with` blocks."""

    def __init__(self) -> None:
        self.spent_s = 0.0

    def __enter__(self) -> None:
        self._entered = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.spent_s += time.perf_counter() - self._entered


class Engine:
    """A model, its optimizer and its averager, ready to take steps in lockstep with the other ranks."""

    def __init__(
        self,
        model: nn.Module,
        averager: Averager,
        comm: Communicator,
        topology: Topology,
        settings: Training,
        num_steps: int,
    ) -> None:
        self.model = model
        self.optimizer = build_optimizer(model, settings)
        self.num_steps = num_steps
        self.averager = averager
        self._comm = comm
        self._topology = topology
        self._settings = settings

    def run(self, batches: Iterator[Batch], first_step: int, on_step: Callable[[StepReport], None]) -> None:
        """Take all steps from `first_step` on. Collective: every rank, with the same numbers. Blocking."""
        self.model.train()
        for step in range(first_step, self.num_steps):
            started = time.perf_counter()
            batch = next(batches)
            loaded = time.perf_counter()
            rate = self._set_learning_rate(step)
            losses, waited_s = self.train_step(batch, step)
            ended = time.perf_counter()
            on_step(
                StepReport(
                    step=step,
                    loss=losses[self._topology.rank],
                    loss_of_rank=losses,
                    learning_rate=rate,
                    data_s=loaded - started,
                    compute_s=ended - loaded - waited_s,
                    averaging_s=waited_s,
                )
            )

    def train_step(self, batch: Batch, step: int) -> tuple[list[float], float]:
        """Take one step in lockstep with the other ranks. Collective: every rank, with the same step. Blocking.

        Returns:
            Every rank's loss, and how many seconds this rank spent on averaging.
        """
        clock = Clock()
        self._comm.ledger.step = step
        self.optimizer.zero_grad(set_to_none=True)
        logits_BL = forward(self.model, batch.images, self._settings.precision)
        loss = masked_bce(logits_BL, batch.targets, batch.known)
        # Losses travel while backward runs, and are looked at before the weights change.
        losses_arrive = self._comm.begin_gather(loss.detach().reshape(1).float(), "loss")
        with clock:
            self.averager.begin(step, int(batch.known.sum()))
        loss.backward()  # type: ignore[no-untyped-call]
        with clock:
            self.averager.before_update()
            losses = self._require_finite(losses_arrive, step)
        self.optimizer.step()
        with clock:
            self.averager.after_update(step, step + 1 == self.num_steps, self.optimizer)
        return losses, clock.spent_s

    def _set_learning_rate(self, step: int) -> float:
        factor = SCHEDULES[self._settings.schedule](step, self.num_steps)
        rate = self._settings.learning_rate * factor
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _require_finite(self, losses_arrive: Wait[Tensor], step: int) -> list[float]:
        """Return every rank's loss; raise on all ranks where one is NaN or infinite. Collective: every rank."""
        losses = losses_arrive().flatten().cpu()
        if not bool(losses.isfinite().all()):
            rank = int((~losses.isfinite()).nonzero()[0])
            error = TrainingError(
                f"the loss is {float(losses[rank])} in step {step} ({self._topology.name_of(rank)}); "
                "lower training.learning_rate or use training.precision: fp32"
            )
            error.is_agreed = True
            raise error
        return [float(each) for each in losses]


def forward(model: nn.Module, images_BMHW: Tensor, precision: str) -> Tensor:
    """Return logits (B, L) float32. Activations are channels_last, which convolutions on a CPU prefer."""
    device_type = images_BMHW.device.type
    with torch.autocast(device_type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        logits_BL: Tensor = model(images_BMHW.contiguous(memory_format=torch.channels_last))
    return logits_BL.float()


def masked_bce(logits_BL: Tensor, targets_BL: Tensor, known_BL: Tensor) -> Tensor:
    """Mean binary cross-entropy over the known labels; 0, with zero gradients, where none is known."""
    losses_BL = functional.binary_cross_entropy_with_logits(logits_BL, targets_BL, reduction="none")
    return (losses_BL * known_BL).sum() / known_BL.sum().clamp(min=1)


def build_optimizer(model: nn.Module, settings: Training) -> torch.optim.Optimizer:
    """Build the configured optimizer over all parameters, shared and private alike."""
    parameters = list(model.parameters())
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(
            parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
    return torch.optim.SGD(
        parameters, lr=settings.learning_rate, momentum=0.9, weight_decay=settings.weight_decay, fused=True
    )
