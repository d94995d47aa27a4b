"""Learning rates as pure functions: (step, num_steps) to a factor of the configured rate, 0 to 1."""

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
    "one-cycle": one_cycle,
}
