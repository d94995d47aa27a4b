"""The training loop: one step on this rank, one average with the others, until the steps are done or all stop.

A step is the same on all ranks by construction: after backward each tells the others in five numbers how it went
(`comm/step_status.py`), and every decision follows from what all then know. Own to this module: the loop, the
step, the optimizer. Left to others: which studies (`loader`), what is averaged and how (`averaging`), what happens
between steps (`milestones`).
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.profiler import record_function

from cxr_hvd.comm.communicator import Communicator
from cxr_hvd.comm.job import Job
from cxr_hvd.comm.sites import Topology
from cxr_hvd.comm.step_status import StepStatus, StopReason, Writing, begin_statuses
from cxr_hvd.config.schema import Training
from cxr_hvd.data.loader import Batch
from cxr_hvd.models.build import as_channels_last
from cxr_hvd.partial.averager import Averager
from cxr_hvd.partial.plan import Scope, SharingPlan
from cxr_hvd.training.loss import MultiLabelLoss
from cxr_hvd.training.loss_scale import LossScale
from cxr_hvd.training.nonfinite import MAX_SKIPPED, Statistics, nonfinite_error
from cxr_hvd.training.optim import Optimizer
from cxr_hvd.training.schedule import learning_rate_factor
from cxr_hvd.training.weight_mean import WeightMean


@dataclass(frozen=True)
class StepReport:
    """What one step came to.

    Attributes:
        step: number of the step, from 0.
        pulses: every rank's word, in rank order: losses, norms, wishes.
        loss: this rank's mean loss over its known labels.
        learning_rate: the rate of this step.
        gradient_norm: of this rank's whole gradient, before clipping.
        is_skipped: whether no rank took the optimizer's step, since something was not finite on one.
        data_s, compute_s, averaging_s: seconds spent in each, on this rank.
    """

    step: int
    pulses: Sequence[StepStatus]
    loss: float
    learning_rate: float
    gradient_norm: float
    is_skipped: bool
    data_s: float
    compute_s: float
    averaging_s: float

    @property
    def loss_of_rank(self) -> list[float]:
        return [pulse.loss for pulse in self.pulses]

    @property
    def wish(self) -> StopReason:
        """Why all stop after this step; `StopReason.NONE` where they go on."""
        return max(pulse.wish for pulse in self.pulses)


class Clock:
    """Adds up the seconds spent in its `with` blocks."""

    def __init__(self) -> None:
        self.spent_s = 0.0

    def __enter__(self) -> None:
        self._entered = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.spent_s += time.perf_counter() - self._entered


class Engine:
    """A model, its optimizer and its averager, ready to take steps in lockstep with the other ranks.

    Attributes:
        model, averager, comm, topology, plan: as given.
        ask: called once a step, with its number: why this rank wishes to stop after it, and how far its part of a
            checkpoint is.
        weight_mean: the running mean of the weights, where the settings want one.
        loss_scale: what the loss is multiplied by before backward, for fp16; None otherwise.
        num_skipped_in_a_row: steps without an update, up to this one.
    """

    def __init__(
        self,
        model: nn.Module,
        averager: Averager,
        comm: Communicator,
        topology: Topology,
        settings: Training,
        num_steps: int,
        plan: SharingPlan,
        loss: MultiLabelLoss | None = None,
    ) -> None:
        self.model = model
        self.optimizer = Optimizer(model.parameters(), settings)
        self.averager = averager
        self.num_steps = num_steps
        self.loss_scale = LossScale() if settings.precision == "fp16" else None
        self.weight_mean = WeightMean(model, settings.ema_decay) if settings.ema_decay else None
        self.num_skipped_in_a_row = 0
        self.ask: Callable[[int], tuple[StopReason, Writing]] = lambda step: (StopReason.NONE, Writing.IDLE)
        self._loss = loss or MultiLabelLoss(None, None)
        self.plan = plan
        self.comm = comm
        self.topology = topology
        self._settings = settings
        parameters, shared = dict(model.named_parameters()), set(plan.names(Scope.SHARED))
        self._shared = [each for name, each in parameters.items() if name in shared]
        self._private = [each for name, each in parameters.items() if name not in shared]
        self._may_skip = settings.precision == "fp16" or settings.on_nonfinite == "skip"
        self._statistics = Statistics(model) if self._may_skip else None

    def run(self, batches: Iterator[Batch], first_step: int, on_step: Callable[[StepReport], bool | None]) -> int:
        """Take steps from `first_step` on until all are done or `on_step` returns True.

        Collective: every rank, with the same numbers. Blocking.

        Returns:
            How many steps are done, those before `first_step` among them.
        """
        for step in range(first_step, self.num_steps):
            self.comm.watchdog.works("loading data", step)
            started = time.perf_counter()
            with record_function("data"):
                batch = next(batches)
            data_s = time.perf_counter() - started
            self.comm.watchdog.works("training", step)
            self.model.train()
            if on_step(self.train_step(batch, step, data_s)):
                return step + 1
        return self.num_steps

    def train_step(self, batch: Batch, step: int, data_s: float = 0.0) -> StepReport:
        """Take one step in lockstep with the other ranks. Collective: every rank, with the same step. Blocking.

        Raises:
            TrainingError: on every rank alike, where a loss or gradient is not finite and the step may not be
                skipped.
        """
        started, waiting = time.perf_counter(), Clock()
        self.comm.ledger.begin_step(step)
        rate = self._set_learning_rate(step)
        if self._statistics:
            self._statistics.keep()
        loss = self._forward_and_backward(batch, step, waiting)
        with waiting, record_function("exchange"):
            self.averager.before_update()
        norms = self._gradient_norms()
        pulses = self._exchange_statuses(float(loss), norms, step, waiting)
        is_finite = all(pulse.is_finite for pulse in pulses)
        if self.loss_scale:
            self.loss_scale.update(is_finite)
        if is_finite:
            self._update(pulses, norms)
        else:
            self._skip(pulses, batch, step)
        with waiting, record_function("exchange"):
            self.averager.after_update(step, step + 1 == self.num_steps, self.optimizer)
        if self.weight_mean:
            self.weight_mean.update()
        return StepReport(
            step=step,
            pulses=pulses,
            loss=pulses[self.topology.rank].loss,
            learning_rate=rate,
            gradient_norm=math.hypot(*norms),
            is_skipped=not is_finite,
            data_s=data_s,
            compute_s=time.perf_counter() - started - waiting.spent_s,
            averaging_s=waiting.spent_s,
        )

    def _forward_and_backward(self, batch: Batch, step: int, waiting: Clock) -> Tensor:
        """Send the batch through in its parts; leave the gradient of the mean loss, and return that loss."""
        self.optimizer.zero_grad()
        num_known = batch.known.sum().clamp(min=1)
        loss = torch.zeros((), device=batch.images.device)
        parts = split(batch, self._settings.accumulate)
        for number, part in enumerate(parts):
            with record_function("forward"):
                logits_BL = forward(self.model, part.images, self._settings.precision)
                part_loss = self._loss(logits_BL, part.targets, part.known, num_known)
            if number == len(parts) - 1:  # gradients may leave while the last backward still makes others
                with waiting, record_function("exchange"):
                    self.averager.begin(step, int(batch.known.sum()))
            with record_function("backward"):
                scaled = part_loss * self.loss_scale.scale if self.loss_scale else part_loss
                scaled.backward()  # type: ignore[no-untyped-call]
            loss += part_loss.detach()
        return loss

    def _gradient_norms(self) -> tuple[float, float]:
        """Take the loss's scale out of the gradient; return the norms of its shared and its private part."""
        if self.loss_scale:
            torch._foreach_mul_(_gradients(self._shared + self._private), 1 / self.loss_scale.scale)
        return _norm(self._shared), _norm(self._private)

    def _exchange_statuses(
        self, loss: float, norms: tuple[float, float], step: int, waiting: Clock
    ) -> list[StepStatus]:
        """Tell the others how this rank's step went, and hear how theirs did. Collective: every rank. Blocking."""
        shared_norm, private_norm = norms
        own = StepStatus(loss, shared_norm, math.isfinite(private_norm), *self.ask(step))
        with waiting, record_function("pulse"):
            return begin_statuses(Job(self.comm, self.topology), own)()

    def _update(self, pulses: Sequence[StepStatus], norms: tuple[float, float]) -> None:
        self.num_skipped_in_a_row = 0
        if self._settings.clip_norm:
            self._clip(pulses, norms, self._settings.clip_norm)
        with record_function("update"):
            self.optimizer.step()

    def _clip(self, pulses: Sequence[StepStatus], norms: tuple[float, float], most: float) -> None:
        """Shorten the shared gradient and the private one to this norm, each for itself.

        Where gradients are common to several ranks, one rank's norm counts for all: norms of equal gradients may
        differ in the last digit between machines, and weights would drift apart.

        Collective: where gradients are exchanged, the ranks of a site.
        """
        is_common = self.plan.exchange == "gradients"
        shared_norm, private_norm = pulses[0].shared_norm if is_common else norms[0], norms[1]
        if is_common and len(self.topology.ranks_of_site) > 1:
            said = torch.tensor([private_norm if self.topology.is_site_leader else 0.0], dtype=torch.float64)
            self.comm.begin_allreduce({"private": said}, "norm", "site")()
            private_norm = float(said)
        for parameters, norm in ((self._shared, shared_norm), (self._private, private_norm)):
            if norm > most:
                torch._foreach_mul_(_gradients(parameters), most / norm)

    def _skip(self, pulses: Sequence[StepStatus], batch: Batch, step: int) -> None:
        """Leave all as it was before the step, or stop. Collective: every rank."""
        self.num_skipped_in_a_row += 1
        if self._statistics is None or self.num_skipped_in_a_row > MAX_SKIPPED:
            raise nonfinite_error(
                self.comm, self.topology, self.model, self.averager, pulses, batch, step, self._may_skip
            )
        self._statistics.restore()

    def _set_learning_rate(self, step: int) -> float:
        settings = self._settings
        factor = learning_rate_factor(settings.schedule, step, self.num_steps, settings.warmup_steps)
        self.optimizer.learning_rate = settings.learning_rate * factor
        return self.optimizer.learning_rate


def split(batch: Batch, num_parts: int) -> list[Batch]:
    """Cut a batch into parts of equally many studies, a divisor of its size."""
    if num_parts == 1:
        return [batch]
    pieces = (each.chunk(num_parts) for each in (batch.images, batch.targets, batch.known))
    return [Batch(*part) for part in zip(*pieces, strict=True)]


def forward(model: nn.Module, images_BMHW: Tensor, precision: str) -> Tensor:
    """Return logits (B, L) float32. Activations are channels_last, also where all studies have one image."""
    types = {"bf16": torch.bfloat16, "fp16": torch.float16}
    is_short = precision in types
    with torch.autocast(images_BMHW.device.type, dtype=types[precision]) if is_short else nullcontext():
        logits_BL: Tensor = model(as_channels_last(images_BMHW))
    return logits_BL.float()


def _gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [each.grad for each in parameters if each.grad is not None]


def _norm(parameters: Sequence[nn.Parameter]) -> float:
    gradients = _gradients(parameters)
    return float(get_total_norm(gradients)) if gradients else 0.0
