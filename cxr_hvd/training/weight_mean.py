"""A running mean of a model's weights, which is often a better network than its last weights (Polyak, 1992)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightMean:
    """The exponential moving average of all floating-point tensors of a model, BatchNorm's statistics among them.

    It starts at the weights that the model has, and never changes them. Where shared weights are equal on all
    ranks, so are their means: nothing is exchanged.

    Args:
        model: its tensors must stay where they are.
        decay: share of the old mean that each step keeps, between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._own = {name: t for name, t in model.state_dict().items() if t.is_floating_point()}
        self._means = {name: tensor.clone() for name, tensor in self._own.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's tensors as they are now."""
        self._average(list(self._means.values()), list(self._own.values()), 1)

    def tensors(self) -> dict[str, Tensor]:
        """Return the means by the names of their tensors."""
        return dict(self._means)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put means back that `tensors` gave."""
        for name, mean in self._means.items():
            mean.copy_(tensors[name])
