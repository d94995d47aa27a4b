"""Open a run: begin it anew in an empty folder, or go on from a checkpoint, where settings may have changed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cxr_hvd.comm.contract import flat_items
from cxr_hvd.comm.job import Job
from cxr_hvd.config.schema import Config
from cxr_hvd.console import Console
from cxr_hvd.data.studies import TrainingData
from cxr_hvd.errors import ConfigError
from cxr_hvd.partial.plan import SharingPlan
from cxr_hvd.training.agreement import check_shared_weights
from cxr_hvd.training.checkpoint.resume import agree_on_step
from cxr_hvd.training.checkpoint.snapshot import restore_snapshot
from cxr_hvd.training.first_weights import FirstWeights
from cxr_hvd.training.history import History
from cxr_hvd.training.log import record_run, record_settings
from cxr_hvd.training.records import Budget
from cxr_hvd.training.run_folder import RunFolder
from cxr_hvd.training.state import TrainingState

Resume = Literal["never", "latest", "auto"]
"""Whether to go on from the newest checkpoint: `latest` wants one, `auto` starts anew where there is none."""

LENGTH = ("training.epochs", "training.max_steps")
MAY_CHANGE = (
    *LENGTH,
    "training.device",
    "training.on_nonfinite",
    "validation.every_epochs",
    "validation.patience",
    "validation.min_delta",
    "checkpoints.every_steps",
    "checkpoints.keep",
    "loader.threads",
    "loader.prefetch",
    "sharing.evaluate_private",
)
"""What a run may change when it goes on; all else would make it another run (decision 0015)."""


@dataclass(frozen=True)
class RunSetup:
    """What a run is, as all ranks have agreed: config, plan, length and first weights, and this rank's data."""

    config: Config
    plan: SharingPlan
    data: TrainingData
    budget: Budget
    weights: FirstWeights = field(default_factory=FirstWeights)


def open_run(
    folder: RunFolder,
    setup: RunSetup,
    state: TrainingState,
    job: Job,
    resume: Resume,
    overwrite: bool,
    console: Console,
) -> tuple[int, History]:
    """Make the run folder, or go on in one: then put its checkpoint into `state`. Collective: every rank.

    Returns:
        The number of steps that are done, and what came of the validations so far.
    """
    step: int | None = None
    changed: dict[str, tuple[str, str]] = {}
    if resume != "never":
        with job.together("comparing its config with that of its run"):
            changed = changed_settings(folder, setup.config)
        step = agree_on_step(folder, setup.plan, job)
    if step is None:
        with job.together("making its run folder"):
            if resume == "latest":
                raise folder.nothing_to_resume()
            if job.is_site_leader:
                folder.open_new(overwrite or resume == "auto")
                record_run(folder, setup.config, setup.plan, setup.data, setup.budget, setup.weights)
        return 0, History()
    return step, go_on_from(step, folder, setup, state, job, changed, console)


def go_on_from(
    step: int,
    folder: RunFolder,
    setup: RunSetup,
    state: TrainingState,
    job: Job,
    changed: Mapping[str, tuple[str, str]],
    console: Console,
) -> History:
    """Put the checkpoint of a step back, and make it the newest. Collective: every rank.

    Args:
        changed: what `changed_settings` returned.
    """
    with job.together("reading its checkpoint"):
        check_length(changed, step, setup.budget.num_steps, folder)
        record = restore_snapshot(folder.checkpoint(step), job.topology.rank_in_site, state)
    with job.together("going back to its checkpoint"):
        if job.is_site_leader:
            folder.go_back_to(step)
            if changed:
                record_settings(folder, setup.config, setup.data, setup.budget, setup.weights)
    if changed and job.is_leader:
        changes = describe_changes(changed, setup.config.training.schedule, step, setup.budget.num_steps)
        console.print(f"goes on from step {step}: {changes}", highlight=False, markup=False)
    check_shared_weights(setup.plan, state.model, job, step, record.is_common)
    return record.validation


def changed_settings(folder: RunFolder, config: Config) -> dict[str, tuple[str, str]]:
    """Compare a config with the one that the run in a folder has, where there is one with a checkpoint.

    Returns:
        What differs and may, by its dotted name: what it was, and what it is.

    Raises:
        ConfigError: something differs that may not: the run would go on as another.
    """
    if not folder.has_run() or not folder.steps():
        return {}
    before, now = (_plain_items(side.shared_part()) for side in (folder.config(), config))
    changed = {
        name: (before.get(name, "not there"), now.get(name, "not there"))
        for name in {**now, **before}
        if before.get(name) != now.get(name)
    }
    for name, (was, is_now) in changed.items():
        if name not in MAY_CHANGE:
            raise ConfigError(
                f"{name} was {was} and is {is_now} now: {folder.path} goes on with what it was started with; set "
                f"it back, or start anew with another --run (what may change: {', '.join(MAY_CHANGE)})"
            )
    return changed


def check_length(changed: Iterable[str], step: int, num_steps: int, folder: RunFolder) -> None:
    """Check that a run that goes on is not cut to less than it has done.

    Raises:
        ConfigError: it is.
    """
    is_cut = any(name in LENGTH for name in changed) and num_steps <= step
    if is_cut or num_steps < step:
        raise ConfigError(
            f"{folder.path}: expected a run of more than the {step} steps that it has done, found {num_steps}: "
            "raise training.epochs or training.max_steps"
        )


def describe_changes(changed: Mapping[str, tuple[str, str]], schedule: str, step: int, num_steps: int) -> str:
    """Say in one line what changes when a run goes on, and what that means for its learning rate."""
    text = "; ".join(f"{name} was {was} and is {is_now} now" for name, (was, is_now) in changed.items())
    if any(name in LENGTH for name in changed) and schedule != "constant":
        text += f"; from step {step} on the learning rate is that of a run of {num_steps} steps ({schedule})"
    return text


def _plain_items(tree: Mapping[str, Any]) -> dict[str, str]:
    return {name.removeprefix("config."): value for name, value in flat_items(tree, "config").items()}
