"""Whether all ranks of a training loop are at the same step, where nothing else of the loop makes sure of it.

A rank that has taken all its steps would leave the others waiting. So before an average, at the last one, and on
leaving, the ranks tell each other where they stand: where they differ, all are told so, and none waits.
"""

from dataclasses import dataclass
from enum import IntEnum

import torch

from cxr_hvd.comm.answers import check_number
from cxr_hvd.comm.job import Job
from cxr_hvd.errors import TrainingError

MAX_STEPS = 1 << 40


class Progress(IntEnum):
    """What a rank is about to do."""

    GOES_ON = 0
    ENDS = 1
    LEAVES = 2
    SETTLES = 3


VERBS = {
    Progress.GOES_ON: "averages after step {}",
    Progress.ENDS: "closes its averager after step {}",
    Progress.LEAVES: "leaves the job",
    Progress.SETTLES: "settles after step {}",
}


@dataclass(frozen=True)
class Standing:
    """Where a rank stands: steps that it has taken, and what it is about to do."""

    num_steps: int
    progress: Progress

    def __str__(self) -> str:
        return VERBS[self.progress].format(self.num_steps)


def agree_on_progress(job: Job, num_steps: int, progress: Progress) -> None:
    """Check that all ranks have taken the same number of steps, and do the same next. Collective: every rank.

    Blocking, for as long as the watchdog allows.

    Raises:
        TrainingError: on every rank alike, where they differ.
    """
    standing = torch.tensor([num_steps, progress])
    standings = job.allgather_numbers(standing, "progress", _read)
    if len(set(standings)) == 1:
        return
    first_rank = {standing: standings.index(standing) for standing in standings}
    sides = "; ".join(f"{job.name_of(rank)} {standing}" for standing, rank in first_rank.items())
    raise TrainingError(
        f"the ranks are not at the same step: {sides}; all have to take the same number, whatever their data: "
        "for example with cxr_hvd.cycle(loader, num_steps), and to close their averagers"
    ).agreed()


def _read(answer: list[float]) -> Standing:
    num_steps, progress = answer
    return Standing(
        int(check_number(num_steps, 0, MAX_STEPS)), Progress(int(check_number(progress, 0, max(Progress))))
    )
