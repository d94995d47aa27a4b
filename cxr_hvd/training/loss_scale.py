"""The number that float16 gradients are multiplied with, so that small ones do not become zero.

`torch.amp.GradScaler` has each rank decide for itself whether to skip a step and what to scale the next one by.
Here a step is skipped on all ranks or on none, so the flag comes from outside: given the same flags, all ranks
have the same scale (Micikevicius et al., ICLR 2018, section 3.2). Who finds out whether the gradients of all
ranks are finite, and multiplies and divides, is the engine.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cxr_hvd.errors import CheckpointError

FIRST_SCALE = 2.0**16
MAX_SCALE = 2.0**24
GROWTH_STEPS = 2000


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

    def state(self) -> dict[str, float | int]:
        """Return what a resume needs."""
        return {"scale": self.scale, "good_steps": self.good_steps}

    def load_state(self, state: Mapping[str, float | int]) -> None:
        """Go on from a saved state.

        Raises:
            CheckpointError: it is not one that `state` could have returned.
        """
        scale, good_steps = state.get("scale"), state.get("good_steps")
        is_power = scale is not None and 1 <= scale <= MAX_SCALE and math.frexp(scale)[0] == 0.5
        if scale is None or good_steps is None or not (is_power and 0 <= good_steps < GROWTH_STEPS):
            raise CheckpointError(
                f"loss scale: expected a power of two up to 2^24 and less than {GROWTH_STEPS} good steps, "
                f"found {scale} and {good_steps}; resume from another checkpoint"
            )
        self.scale, self.good_steps = float(scale), int(good_steps)
