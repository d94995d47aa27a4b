"""What is due between two steps: checkpoints, validations, and the end of a run.

All of it follows from the number of the step, the config, and what every rank told in the step's status, so that
every rank comes to the same conclusion by itself. A checkpoint is taken before the validation of the same step: a
run that is stopped or killed in between judges again when it goes on, with the same result. Where averages overlap
with steps, one that waits comes before a validation, so that the sites judge a common network.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cxr_hvd.comm.job import Job
from cxr_hvd.comm.step_status import StopReason
from cxr_hvd.config.sections import Checkpoints, Validation
from cxr_hvd.partial.plan import SharingPlan
from cxr_hvd.training.checkpoint.snapshot import take_snapshot
from cxr_hvd.training.checkpoint.writer import CheckpointWriter
from cxr_hvd.training.network_record import NetworkRecord
from cxr_hvd.training.records import Budget, Verdict
from cxr_hvd.training.state import TrainingState
from cxr_hvd.training.step_report import StepReport
from cxr_hvd.training.stopping import StopRequest
from cxr_hvd.training.validation import Validator


@dataclass(frozen=True)
class Cadence:
    """When what is due, in steps that are done. Pure.

    Attributes:
        num_steps: steps of the whole run.
        save_every: steps from one checkpoint to the next.
        judge_every: steps from one validation to the next; 0: there is none.
    """

    num_steps: int
    save_every: int
    judge_every: int

    def is_saved_after(self, done: int) -> bool:
        """Whether a checkpoint is due whatever happens."""
        return done % self.save_every == 0 or done == self.num_steps

    def is_judged_after(self, done: int) -> bool:
        """Whether a validation is due."""
        return self.judge_every > 0 and done > 0 and (done % self.judge_every == 0 or done == self.num_steps)


def cadence_of_run(checkpoints: Checkpoints, validation: Validation, budget: Budget) -> Cadence:
    """Return the cadence that the config's sections ask for; nothing is judged where no site can."""
    has_studies = any(budget.validation_studies_per_site)
    return Cadence(
        num_steps=budget.num_steps,
        save_every=checkpoints.every_steps or budget.steps_per_epoch,
        judge_every=validation.every_epochs * budget.steps_per_epoch if has_studies else 0,
    )


class BetweenSteps:
    """Decides after every step what is due, and does it.

    Args:
        cadence: when checkpoints and validations are due.
        job: the ranks that take the steps.
        plan: of the averager.
        network: what checkpoints say of the network.
        state: what checkpoints keep.
        writer: writes them.
        validation: judges the networks; knows the validations so far.
        stop: why this rank asks to stop; is told how long checkpoints and validations take.
        show_verdict: is told of every validation.

    Attributes:
        stopped_by: why all stopped on request; `StopReason.NONE` where they did not.
    """

    def __init__(
        self,
        cadence: Cadence,
        job: Job,
        plan: SharingPlan,
        network: NetworkRecord,
        state: TrainingState,
        writer: CheckpointWriter,
        validation: Validator,
        stop: StopRequest,
        show_verdict: Callable[[Verdict], None],
    ) -> None:
        self.stopped_by = StopReason.NONE
        self._cadence = cadence
        self._job = job
        self._plan = plan
        self._network = network
        self._state = state
        self._writer = writer
        self._validation = validation
        self._stop = stop
        self._show_verdict = show_verdict

    def go_on_from(self, step: int) -> bool:
        """Do what is due where a run begins or goes on. Collective: every rank.

        Returns:
            Whether the run is over already.
        """
        self._writer.name_best(self._validation.history.best_step)
        return self._judge_if_due(step)

    def is_due(self, done: int) -> bool:
        """Return whether a checkpoint or a validation is due after so many steps, whoever asks to stop."""
        return self._cadence.is_saved_after(done) or self._cadence.is_judged_after(done) or self._is_over(done)

    def after_step(self, done: int, reports: Sequence[StepReport]) -> bool:
        """Do what is due after so many steps. Collective: every rank, with the same reports.

        Args:
            reports: of the steps that all ranks know all of by now, each once; where something is due, of all.

        Returns:
            Whether all stop here.
        """
        for report in reports:
            self._writer.settle(report.statuses)
        if self._writer.seconds:
            self._stop.note_save(self._writer.seconds)
        reason = max((report.stop_reason for report in reports), default=StopReason.NONE)
        self.stopped_by = StopReason.NONE if done == self._cadence.num_steps else reason
        is_last = done == self._cadence.num_steps  # the engine has averaged for the last time
        if self._plan.overlap and self._cadence.is_judged_after(done) and not is_last:
            self._state.averager.settle()
        if self.stopped_by or self.is_due(done):
            self._save(done)
        return bool(self.stopped_by) or self._judge_if_due(done)

    def _save(self, done: int) -> None:
        """Copy what a checkpoint holds, and begin to write it. Collective: every rank."""
        self._job.watchdog.works("saving a checkpoint", done - 1)
        history = self._validation.history
        snapshot = take_snapshot(self._state, self._job.topology, self._plan, done, history, self._network)
        self._writer.begin(snapshot)
        self._job.ledger.flush(is_durable=True)

    def _judge_if_due(self, done: int) -> bool:
        """Validate after so many steps where that is due; return whether the run is over by it."""
        if self._cadence.is_judged_after(done):
            self._job.watchdog.works("validating", done - 1)
            verdict = self._validation.judge(done)
            self._stop.note_validation(verdict.seconds)
            if verdict.is_best:
                self._writer.name_best(done)
            self._show_verdict(verdict)
        return self._is_over(done)

    def _is_over(self, done: int) -> bool:
        """Whether patience ends the run here: sites' shared weights are alike after an average only."""
        is_common = self._cadence.is_judged_after(done) if self._plan.overlap else done % self._plan.every == 0
        return self._validation.is_exhausted() and is_common
