"""What happens between two steps: rows of logs, checkpoints, validations, and the end of a run.

All of it follows from the number of the step, the config, and what every rank told in the step's pulse, so that
every rank comes to the same conclusion by itself. A checkpoint is taken before the validation of the same step: a
run that is stopped or killed in between judges again when it goes on, with the same result.
"""

from collections.abc import Callable, Mapping
from typing import Any

from cxr_hvd.comm.step_status import StopReason
from cxr_hvd.config.schema import Config
from cxr_hvd.training.checkpoint.checkpoint import CheckpointWriter, snapshot_record, snapshot_tensors
from cxr_hvd.training.engine import Engine, StepReport
from cxr_hvd.training.records import Budget, Verdict
from cxr_hvd.training.stopping import StopRequest
from cxr_hvd.training.validation import History, Validation


class BetweenSteps:
    """Decides after every step what is due, and does it.

    Args:
        show_verdict: is told of every validation.

    Attributes:
        stopped_by: why all stopped on request; `StopReason.NONE` where they did not.
    """

    def __init__(
        self,
        config: Config,
        budget: Budget,
        engine: Engine,
        writer: CheckpointWriter,
        validation: Validation,
        stop: StopRequest,
        show_verdict: Callable[[Verdict], None],
    ) -> None:
        self.stopped_by = StopReason.NONE
        self._engine = engine
        self._writer = writer
        self._validation = validation
        self._stop = stop
        self._show_verdict = show_verdict
        self._num_steps = budget.num_steps
        self._save_every = config.checkpoints.every_steps or budget.steps_per_epoch
        has_studies = any(budget.validation_studies_per_site)
        self._judge_every = config.validation.every_epochs * budget.steps_per_epoch if has_studies else 0
        engine.ask = lambda step: (stop.wish(), writer.writing)

    def go_on_from(self, step: int, validation: Mapping[str, Any]) -> bool:
        """Take up where a checkpoint was taken. Collective: every rank.

        Returns:
            Whether the run is over already.
        """
        self._validation.history = History.from_json(validation)
        self._writer.best_step = self._validation.history.best_step
        if self._engine.topology.is_site_leader:
            self._writer.name_best()
        return self._judge_if_due(step)

    def after_step(self, report: StepReport) -> bool:
        """Do what is due after a step. Collective: every rank, with the same step's report.

        Returns:
            Whether all stop here.
        """
        done = report.step + 1
        self._writer.settle(report.pulses)
        if self._writer.seconds:
            self._stop.note_save(self._writer.seconds)
        is_last = done == self._num_steps
        self.stopped_by = StopReason.NONE if is_last else report.wish
        is_due = done % self._save_every == 0 or self._is_judged_after(done) or self._is_over(done)
        if is_last or self.stopped_by or is_due:
            self._save(done)
        return bool(self.stopped_by) or self._judge_if_due(done)

    def _save(self, done: int) -> None:
        """Copy what a checkpoint holds, and begin to write it. Collective: every rank."""
        self._engine.comm.watchdog.works("saving a checkpoint", done - 1)
        state = snapshot_record(self._engine, done, self._validation.history.as_json())
        self._writer.begin(done, snapshot_tensors(self._engine, done), state)
        self._engine.comm.ledger.flush(is_durable=True)

    def _is_judged_after(self, done: int) -> bool:
        return self._judge_every > 0 and (done % self._judge_every == 0 or done == self._num_steps)

    def _judge_if_due(self, done: int) -> bool:
        """Validate after so many steps where that is due; return whether the run is over by it."""
        if done and self._is_judged_after(done):
            self._engine.comm.watchdog.works("validating", done - 1)
            verdict = self._validation.judge(done)
            self._stop.note_validation(verdict.seconds)
            if verdict.is_best:
                self._writer.best_step = done
                if self._engine.topology.is_site_leader:
                    self._writer.name_best()
            self._show_verdict(verdict)
        return self._is_over(done)

    def _is_over(self, done: int) -> bool:
        """Whether patience ends the run here: sites' shared weights are alike after an average only."""
        return self._validation.is_exhausted() and done % self._engine.plan.every == 0
