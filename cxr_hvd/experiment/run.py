"""An experiment: several set-ups, each trained with several seeds and scored on every site's studies.

One launch at a time, by `cxr-hvd train` and `cxr-hvd evaluate --pooled` under a launcher, so that each can
be typed again. All train the same number of steps. A seed is finished for all set-ups before the next begins:
whenever one looks, what is there can be compared in pairs. Killed and started again, it goes on where it stood.
"""

import sys
import time
from pathlib import Path

from rich.table import Table

from cxr_hvd.console import Console
from cxr_hvd.errors import Stopped, TrainingError, UsageError
from cxr_hvd.experiment.folder import is_scored, open_folder, thin_checkpoints
from cxr_hvd.experiment.plan import ExperimentPlan, PlannedRun
from cxr_hvd.experiment.progress import progress_shown
from cxr_hvd.experiment.variants import describe_data, private_of
from cxr_hvd.launch.outcome import DONE, STOPPED, USAGE
from cxr_hvd.launch.supervise import supervise
from cxr_hvd.training.run_folder import disk_errors


def print_plan(plan: ExperimentPlan, console: Console) -> None:
    """Say what is to be done, and what of it is done."""
    table = Table(
        title=f"{len(plan.runs)} runs of {plan.num_steps:,} steps each, in {plan.out}", title_justify="left"
    )
    for heading in ("set-up", "trains on", "private", "BatchNorm statistics", "seeds", "scored"):
        table.add_column(heading)
    for name in dict.fromkeys(planned.variant for planned in plan.runs):
        runs = [planned for planned in plan.runs if planned.variant == name]
        config = runs[0].config
        table.add_row(
            name,
            describe_data(config),
            private_of(config),
            config.sharing.batchnorm,
            ", ".join(str(planned.config.seed) for planned in runs),
            str(sum(is_scored(planned, plan.data_sha256) for planned in runs)),
        )
    console.print(table)


def run_experiment(
    plan: ExperimentPlan,
    console: Console,
    launcher: list[str] | None = None,
    num_restarts: int = 1,
    deadline: float | None = None,
) -> None:
    """Train and score what is not there yet. Blocking: as long as that takes.

    Args:
        launcher: the words that start the ranks, instead of `mpirun -np R` or `horovodrun --gloo -np R`.
        num_restarts: how often a run that fails is started again.
        deadline: by `time.monotonic()`, when it is to have stopped, with a checkpoint of the run that trains.

    Raises:
        Stopped: it was asked to stop; what is done is kept.
        TrainingError: runs failed; the others are done.
        CheckpointError: the folder holds another experiment.
    """
    todo = [planned for planned in plan.runs if not is_scored(planned, plan.data_sha256)]
    open_folder(plan)
    failed = []
    with progress_shown(len(todo), plan.num_steps, console) as progress:
        for planned in todo:
            progress.begin(planned.name, planned.folder)
            code = run_planned(planned, launcher, num_restarts, deadline)
            if code == STOPPED:
                raise Stopped(f"stopped in {planned.name}; what is done is kept: run the same command to go on")
            if code == USAGE:
                raise UsageError(f"{planned.name} cannot run: {planned.last_error()}; see {planned.log}")
            if code == DONE:
                thin_checkpoints(planned.folder)
            else:
                failed.append(planned)
            progress.end("done" if code == DONE else f"FAILED with {code}")
    if failed:
        raise TrainingError(
            f"{len(failed)} of {len(plan.runs)} runs failed: {', '.join(planned.name for planned in failed)}; see "
            f"{failed[0].log}; the same command tries them again"
        )


def run_planned(planned: PlannedRun, launcher: list[str] | None, num_restarts: int, deadline: float | None) -> int:
    """Train and score one run; return 0 done, 2 wrong config, 75 stopped on request, else failed."""
    program = str(Path(sys.argv[0]).absolute())
    with disk_errors(planned.folder):
        planned.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = planned.log.open("a", encoding="utf-8")
    with log:
        train, score = [program, *planned.train_words()], [program, *planned.score_words()]
        words = (planned.folder, planned.num_ranks, num_restarts, launcher)
        code = supervise(train, *words, deadline=deadline, log=log)
        if code == DONE and deadline is not None and time.monotonic() > deadline:
            return STOPPED  # trained; scored by the next start
        return code if code != DONE else supervise(score, *words, log=log)
