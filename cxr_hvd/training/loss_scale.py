"""The number that float16 gradients are multiplied with, so that small ones do not become zero.

`torch.amp.GradScaler` has each rank decide for itself whether to skip a step and what to scale the next one by.
Here a step is skipped on all ranks or on none, so the flag comes from outside: given the same flags, all ranks
have the same scale (Micikevicius et al., ICLR 2018, section 3.2). Who finds out whether the gradients of all
ranks are finite, and multiplies and divides, is the engine.
"""

import math
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field

from cxr_hvd.record import Record

FIRST_SCALE = 2.0**16
MAX_SCALE = 2.0**24
GROWTH_STEPS = 2000


def _check_power_of_two(scale: float) -> float:
    if math.frexp(scale)[0] != 0.5:
        raise ValueError("expected a power of two")
    return scale


class LossScaleState(Record):
    """What a resume needs of a loss scale; its attributes are those of `LossScale`."""

    scale: Annotated[float, Field(ge=1, le=MAX_SCALE), AfterValidator(_check_power_of_two)]
    good_steps: Annotated[int, Field(ge=0, lt=GROWTH_STEPS)]


@dataclass
class LossScale:
    """A scale that follows whether steps were finite. Always a power of two, so that scaling never rounds.

    Attributes:
        scale: 1 to 2^24. The loss is multiplied with it, the gradients are divided by it.
        good_steps: finite steps since the scale last changed, 0 to 1,999.
    """

    scale: float = FIRST_SCALE
    good_steps: int = 0

    def update(self, is_finite: bool) -> None:
        """Take note of a step: half the scale where it was not finite, twice after 2,000 that were.

        Args:
            is_finite: whether every gradient of every rank was finite: the same on all ranks.
        """
        if not is_finite:
            self.scale = max(1.0, self.scale / 2)
            self.good_steps = 0
            return
        self.good_steps += 1
        if self.good_steps == GROWTH_STEPS:
            self.scale = min(MAX_SCALE, self.scale * 2)
            self.good_steps = 0

    def state(self) -> LossScaleState:
        """Return what a resume needs."""
        return LossScaleState(scale=self.scale, good_steps=self.good_steps)

    def load_state(self, state: LossScaleState) -> None:
        """Go on from a saved state."""
        self.scale, self.good_steps = state.scale, state.good_steps
