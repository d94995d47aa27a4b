"""The training loop: one step on this rank, one average with the others, until the steps are done or all stop.

A step is the same on all ranks by construction: after backward each rank tells the others in five numbers how it
went (`comm/step_status.py`), and every decision follows from what all then know. Where a step may be left out, or
gradients travel, all read that at once. Else it is read `steps_late` steps later, and no rank waits for a slow
line: a rank whose own step is not finite leaves its weights alone, and all stop when they have heard of it
(decision 0034). Owns the loop and the step. Left to others: what a step changes (`state`), which studies (`data`),
what is averaged and how (`partial`), and what happens between steps (`between_steps`).
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.profiler import record_function

from cxr_hvd.comm.job import Job
from cxr_hvd.comm.step_status import StepStatus, StopReason, Writing, begin_statuses
from cxr_hvd.config.sections import Training
from cxr_hvd.data.loader import Batch
from cxr_hvd.models.forward import forward
from cxr_hvd.partial.plan import Scope, SharingPlan
from cxr_hvd.training.freezing import frozen_norms
from cxr_hvd.training.loss import MultiLabelLoss
from cxr_hvd.training.nonfinite import MAX_SKIPPED, Statistics, first_nonfinite, nonfinite_error
from cxr_hvd.training.optim import clip, gradient_norm, gradients, numbers_of
from cxr_hvd.training.schedule import learning_rate_factor
from cxr_hvd.training.state import TrainingState
from cxr_hvd.training.status_delay import may_skip, steps_late
from cxr_hvd.training.step_report import OpenStep, StepReport

Ask = Callable[[], tuple[StopReason, Writing]]


class Clock:
    """Adds up the seconds spent in its `with` blocks."""

    def __init__(self) -> None:
        self.spent_s = 0.0

    def __enter__(self) -> None:
        self._entered = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.spent_s += time.perf_counter() - self._entered


class Engine:
    """Takes steps in lockstep with the other ranks.

    Args:
        state: what the steps change.
        job: the ranks that take them.
        plan: of the state's averager.
        settings: section `training` of the config.
        num_steps: steps of the whole run.
        loss: what is minimised.
        ask: called once a step: why this rank wishes to stop after it, and how far its part of a checkpoint is.
    """

    def __init__(
        self,
        state: TrainingState,
        job: Job,
        plan: SharingPlan,
        settings: Training,
        num_steps: int,
        loss: MultiLabelLoss = MultiLabelLoss(),  # noqa: B008, it is frozen
        ask: Ask = lambda: (StopReason.NONE, Writing.IDLE),
    ) -> None:
        self.state = state
        self._job = job
        self._settings = settings
        self._num_steps = num_steps
        self._loss = loss
        self._ask = ask
        self._exchanges_gradients = plan.exchange == "gradients"
        parameters, shared = dict(state.model.named_parameters()), set(plan.names(Scope.SHARED))
        self._shared = [parameter for name, parameter in parameters.items() if name in shared]
        self._private = [parameter for name, parameter in parameters.items() if name not in shared]
        self._frozen_norms = frozen_norms(state.model, plan)
        self._may_skip = may_skip(settings)
        self._steps_late = steps_late(plan, settings, job.num_ranks)
        self._open: deque[OpenStep] = deque()
        # Forward moves running statistics before anybody knows whether the step is finite.
        self._statistics = Statistics(state.model) if self._may_skip or self._steps_late else None

    def run(
        self,
        batches: Iterator[Batch],
        first_step: int,
        after_step: Callable[[int, Sequence[StepReport]], bool | None],
        is_due: Callable[[int], bool] = lambda done: False,
    ) -> int:
        """Take steps from `first_step` on until all are done or `after_step` returns True.

        Collective: every rank, with the same numbers. Blocking.

        Args:
            after_step: called after every step, with the number of steps that are done, and with the reports of
                the steps that all ranks know all of by now, in order: each step's once.
            is_due: whether something is to be done after so many steps for which all have to be known.

        Returns:
            How many steps are done, those before `first_step` among them.
        """
        for step in range(first_step, self._num_steps):
            self._job.watchdog.works("loading data", step)
            started = time.perf_counter()
            with record_function("data"):
                batch = next(batches)
            data_s = time.perf_counter() - started
            self._job.watchdog.works("training", step)
            self.state.model.train()
            for norm in self._frozen_norms:
                norm.eval()
            reports, done = self.train_step(batch, step, data_s), step + 1
            if is_due(done) or done == self._num_steps or any(report.stop_reason for report in reports):
                reports += self.catch_up()
            if after_step(done, reports):
                return done
        return self._num_steps

    def train_step(self, batch: Batch, step: int, data_s: float = 0.0) -> list[StepReport]:
        """Take one step in lockstep with the other ranks. Collective: every rank, with the same step. Blocking.

        Returns:
            The reports of the steps that all ranks know all of since the last call: of this step, or of one
            `steps_late` before it.

        Raises:
            TrainingError: on every rank alike, where a loss or gradient is not finite and the step may not be
                skipped.
        """
        state, settings = self.state, self._settings
        started, waiting = time.perf_counter(), Clock()
        self._job.ledger.begin_step(step)

        # Each rank: forward and backward. Gradients that are shared leave during the last backward.
        factor = learning_rate_factor(settings.schedule, step, self._num_steps, settings.warmup_steps)
        state.optimizer.learning_rate = settings.learning_rate * factor
        if self._statistics:
            self._statistics.keep()
        loss = self._forward_and_backward(batch, step, waiting)

        # All ranks: average gradients, where these are shared.
        if self._exchanges_gradients:
            self._average(step, waiting)
        if state.loss_scale:
            torch._foreach_mul_(gradients(self._shared + self._private), 1 / state.loss_scale.scale)

        # All ranks: tell each other how the step went, whether to stop, and how far checkpoints are.
        norms = [gradient_norm(self._shared), gradient_norm(self._private)]
        own_loss, shared_norm, private_norm = numbers_of([loss, *norms])
        status = StepStatus(own_loss, shared_norm, math.isfinite(private_norm), *self._ask())
        with waiting, record_function("status"):
            known = [self._close_oldest()] if self._steps_late and len(self._open) == self._steps_late else []
            wait = begin_statuses(self._job, status, slot=step % max(1, self._steps_late))
            statuses = [] if self._steps_late else wait()
        is_finite = all(status.is_finite for status in statuses or [status])
        fault = "" if is_finite else first_nonfinite(state.model, state.averager, status, batch)
        if state.loss_scale:
            state.loss_scale.update(is_finite)

        # Each rank: update its weights, where all are finite as far as it knows.
        if is_finite:
            state.num_skipped_in_a_row = 0
            if settings.clip_norm:
                self._clip(statuses, (shared_norm, private_norm), settings.clip_norm)
            with record_function("update"):
                state.optimizer.step()
        else:
            self._leave_out(statuses, fault, step)

        # All ranks: average weights, where these are shared and it is time to.
        if not self._exchanges_gradients:
            self._average(step, waiting)

        # Each rank: follow the weights with their running mean.
        if state.weight_mean:
            state.weight_mean.update()
        report = StepReport(
            step=step,
            statuses=statuses,
            loss=own_loss,
            learning_rate=state.optimizer.learning_rate,
            gradient_norm=math.hypot(shared_norm, private_norm),
            is_skipped=not is_finite,
            data_s=data_s,
            compute_s=time.perf_counter() - started - waiting.spent_s,
            averaging_s=waiting.spent_s,
        )
        if not self._steps_late:
            return [report]
        self._open.append(OpenStep(report, wait, fault))
        return known

    def catch_up(self) -> list[StepReport]:
        """Wait until all is known of every step. Collective: every rank, after the same step. Blocking.

        Returns:
            The reports of the steps that were not known all of.

        Raises:
            TrainingError: on every rank alike, where one of them was not finite on a rank.
        """
        reports = []
        while self._open:
            reports.append(self._close_oldest())
        return reports

    def _forward_and_backward(self, batch: Batch, step: int, waiting: Clock) -> Tensor:
        """Send the batch through in its parts; leave the gradient of the mean loss, and return that loss."""
        state = self.state
        state.optimizer.zero_grad()
        num_known = batch.known.sum().clamp(min=1)
        loss = torch.zeros((), device=batch.images.device)
        parts = split(batch, self._settings.accumulate)
        for number, part in enumerate(parts):
            with record_function("forward"):
                logits_BL = forward(state.model, part.images, self._settings.precision)
                part_loss = self._loss(logits_BL, part.targets, part.known, num_known)
            if number == len(parts) - 1:  # gradients may leave while the last backward still makes others
                with waiting, record_function("exchange"):
                    self._begin_exchange(batch)
            with record_function("backward"):
                scaled = part_loss * state.loss_scale.scale if state.loss_scale else part_loss
                scaled.backward()  # type: ignore[no-untyped-call]
            loss += part_loss.detach()
        return loss

    def _begin_exchange(self, batch: Batch) -> None:
        """Let gradients travel, weighed by known labels among the ranks of a site."""
        if self._exchanges_gradients:
            counts = self._job.num_ranks_of_site > 1  # else nobody asks, and a GPU is not waited for
            self.state.averager.begin(int(batch.known.sum()) if counts else 1)

    def _close_oldest(self) -> StepReport:
        """Read the statuses of the oldest step that is open. Collective: every rank. Blocking."""
        step = self._open.popleft()
        statuses = step.wait()
        if not all(status.is_finite for status in statuses):
            raise nonfinite_error(self._job, statuses, step.fault, step.report.step, self._may_skip)
        return replace(step.report, statuses=statuses)

    def _average(self, step: int, waiting: Clock) -> None:
        """Average with the other ranks; after the last step in any case, so that all sites end alike."""
        with waiting, record_function("exchange"):
            self.state.averager.average()
            if step + 1 == self._num_steps:
                self.state.averager.close()

    def _clip(self, statuses: Sequence[StepStatus], norms: tuple[float, float], max_norm: float) -> None:
        """Shorten the shared gradient and the private one to this norm, each for itself.

        Where gradients are common to several ranks, one rank's norm counts for all: norms of equal gradients may
        differ in the last digit between machines, and weights would drift apart.

        Collective: where gradients are exchanged, the ranks of a site.
        """
        shared_norm, private_norm = norms
        if self._exchanges_gradients:
            shared_norm = statuses[0].shared_norm
            if self._job.num_ranks_of_site > 1:
                leaders = private_norm if self._job.is_site_leader else 0.0
                norm = torch.tensor([leaders], dtype=torch.float64)
                self._job.comm.begin_allreduce(norm, "norm", {"private": 1}, "site")()
                private_norm = float(norm)
        clip(self._shared, shared_norm, max_norm)
        clip(self._private, private_norm, max_norm)

    def _leave_out(self, statuses: Sequence[StepStatus], fault: str, step: int) -> None:
        """Leave all as it was before the step; where it is not to be left out, stop. Collective: every rank.

        Where statuses are read late only this rank knows as yet: what it hands over is finite, and all stop later.
        """
        if self._statistics:
            self._statistics.restore()
        if self._steps_late:
            return
        self.state.num_skipped_in_a_row += 1
        if not self._may_skip or self.state.num_skipped_in_a_row > MAX_SKIPPED:
            raise nonfinite_error(self._job, statuses, fault, step, self._may_skip)


def split(batch: Batch, num_parts: int) -> list[Batch]:
    """Cut a batch into parts of equally many studies, a divisor of its size."""
    if num_parts == 1:
        return [batch]
    pieces = (tensor.chunk(num_parts) for tensor in (batch.images, batch.targets, batch.known))
    return [Batch(*part) for part in zip(*pieces, strict=True)]
