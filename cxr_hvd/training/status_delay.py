"""How long after a step all ranks read how it went: at once where a decision of the step hangs on it."""

from cxr_hvd.config.sections import Training
from cxr_hvd.partial.plan import SharingPlan


def may_skip(settings: Training) -> bool:
    """Return whether a step that is not finite is left out on all ranks, rather than ending the run."""
    return settings.precision == "fp16" or settings.on_nonfinite == "skip"


def steps_late(plan: SharingPlan, settings: Training, num_ranks: int) -> int:
    """Return how many steps after a step all read how it went; 0: in the step itself.

    An overlapped average fills the line for `plan.delay` steps, and what is told meanwhile queues behind it.
    """
    if num_ranks == 1 or plan.exchange == "gradients" or may_skip(settings):
        return 0
    return max(1, plan.delay)
