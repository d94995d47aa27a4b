"""All ranks agree on the checkpoint from which they go on."""

import torch

from cxr_hvd.comm.answers import check_number
from cxr_hvd.comm.job import Job
from cxr_hvd.errors import CheckpointError
from cxr_hvd.partial.plan import SharingPlan
from cxr_hvd.terminal import say
from cxr_hvd.training.checkpoint.files import check_whole
from cxr_hvd.training.run_folder import RunFolder

MAX_OFFERED = 8
MAX_STEP = 1 << 53


def agree_on_step(folder: RunFolder, plan: SharingPlan, job: Job) -> int | None:
    """Return the newest step of which all ranks hold a whole checkpoint; None where no rank holds any.

    Collective: every rank. Blocking.

    Raises:
        CheckpointError: on every rank, where some hold checkpoints but there is no step that all hold whole.
    """
    whole, damaged = _whole_steps(folder, plan, job)
    padded = torch.tensor(whole + [0] * (MAX_OFFERED - len(whole)), dtype=torch.int64)
    offered = job.allgather_numbers(padded, "steps.whole", _read_steps)
    common = set.intersection(*offered)
    if not common and any(offered):
        held = "; ".join(
            f"{job.name_of(rank)} {', '.join(map(str, sorted(steps))) or 'none'}"
            for rank, steps in enumerate(offered)
        )
        raise CheckpointError(
            f"there is no step of which all ranks hold a whole checkpoint: {held}; bring a common one back from a "
            "backup, or start anew with --overwrite"
        ).agreed()
    newest = max(common, default=0)
    for step, why in damaged.items():
        if step > newest > 0:
            path = folder.checkpoint(step)
            say(f"{path} is passed over, {job.name_of(job.rank)} goes on from step {newest}: {why}")
    if not common:
        with job.together("looking for a checkpoint to go on from"):
            for step, why in damaged.items():
                raise CheckpointError(
                    f"{folder.checkpoint(step)}: cannot go on from it, nor from an earlier one: {why}; start anew "
                    "with --overwrite"
                )
    return newest or None


def _read_steps(answer: list[float]) -> set[int]:
    return {int(check_number(step, 0, MAX_STEP)) for step in answer if step}


def _whole_steps(folder: RunFolder, plan: SharingPlan, job: Job) -> tuple[list[int], dict[int, str]]:
    """Return the newest steps whose checkpoints this rank can go on from, and why it cannot from others."""
    whole: list[int] = []
    damaged: dict[int, str] = {}
    for step in folder.steps():
        if len(whole) < MAX_OFFERED:
            try:
                check_whole(folder.checkpoint(step), step, plan, job.topology)
                whole.append(step)
            except CheckpointError as error:
                damaged[step] = str(error)
    return whole, damaged
