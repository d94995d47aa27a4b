"""Learning rates as pure functions: (step, num_steps) to a factor of the configured rate, 0 to 1.

`learning_rate_factor` puts a warm-up before any of them. Steps count from 0 and stay below `num_steps`.
"""

import math
from collections.abc import Callable

WARM_UP_SHARE = 0.3
START, END = 1 / 25, 1 / 1e4


def constant(step: int, num_steps: int) -> float:
    """The configured rate throughout."""
    return 1.0


def cosine(step: int, num_steps: int) -> float:
    """From the configured rate to zero along half a cosine (Loshchilov and Hutter, ICLR 2017)."""
    return (1 + math.cos(math.pi * step / num_steps)) / 2


def stepwise(step: int, num_steps: int) -> float:
    """A tenth from 50% of the steps on, a hundredth from 75% on (Huang et al., CVPR 2017, section 4.2)."""
    if 4 * step >= 3 * num_steps:
        return 1 / 100
    return 1 / 10 if 2 * step >= num_steps else 1.0


def one_cycle(step: int, num_steps: int) -> float:
    """Up from 1/25 over the first 30% of the steps, then down to 1/10,000 (Smith and Topin, 2018)."""
    peak = max(1.0, WARM_UP_SHARE * num_steps)
    if step < peak:
        return _along_cosine(START, 1.0, step / peak)
    return _along_cosine(1.0, END, (step - peak) / max(1.0, num_steps - peak))


def _along_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": constant,
    "cosine": cosine,
    "step": stepwise,
    "one-cycle": one_cycle,
}


def learning_rate_factor(schedule: str, step: int, num_steps: int, warmup_steps: int) -> float:
    """Return the factor of the configured rate in a step: a straight rise, then the schedule over what is left.

    A run that is no longer than its warm-up ends while the rate still rises, with the rates that the first
    steps of a longer run have.

    Args:
        schedule: one of `SCHEDULES`.
        step: 0 to `num_steps` - 1.
        num_steps: steps of the run, warm-up included.
        warmup_steps: steps of the rise; the one after them has the rate that the schedule starts with.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return SCHEDULES[schedule](step - warmup_steps, num_steps - warmup_steps)
