"""What is minimised: binary cross-entropy or focal loss over the known labels, present ones weighted or not.

Owns the loss of one rank's batch and the weights of its labels. How many labels a site knows, and what becomes
of its gradients, is `averaging`'s matter (docs/decisions/0006-unknown-labels.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from cxr_hvd.config.sections import Loss
from cxr_hvd.errors import ConfigError

MAX_WEIGHT = 100.0
"""The most that `balanced` weighs a rare label; a label that is rarely absent weighs no less than its inverse."""


@dataclass(frozen=True)
class MultiLabelLoss:
    """The loss of a batch, one number: a sum over known labels, divided by how many are known.

    Attributes:
        positive_weight_L: (L,) float32, the weight of each label where it is present; None weighs all by 1.
        gamma: exponent of focal loss, at least 0, or None for plain cross-entropy.
    """

    positive_weight_L: Tensor | None = None
    gamma: float | None = None

    def __call__(
        self, logits_BL: Tensor, targets_BL: Tensor, known_BL: Tensor, num_known: int | Tensor | None = None
    ) -> Tensor:
        """Return the loss, a scalar; 0, with zero gradients, where no label is known.

        Args:
            logits_BL: (B, L) float32, any finite values.
            targets_BL: (B, L) float, 0 or 1.
            known_BL: (B, L) bool; where False, the label counts nowhere.
            num_known: what to divide by; None is the number of labels known here. Where a batch goes through
                the network in parts, the number of the whole batch: the losses and the gradients of the parts
                then add up to those of the whole.
        """
        losses_BL = functional.binary_cross_entropy_with_logits(logits_BL, targets_BL, reduction="none")
        if self.gamma is not None:
            losses_BL = losses_BL * focus(logits_BL, targets_BL, self.gamma)
        if self.positive_weight_L is not None:
            losses_BL = losses_BL * torch.where(targets_BL == 1, self.positive_weight_L, 1.0)
        if num_known is None:
            num_known = known_BL.sum()
        elif isinstance(num_known, int):
            # A GPU divides by a number and by a tensor of one with different rounding.
            num_known = known_BL.new_full((), num_known, dtype=torch.int64)
        return (losses_BL * known_BL).sum() / num_known.clamp(min=1)

    def to(self, device: torch.device | str) -> "MultiLabelLoss":
        """Return the same loss for logits on `device`."""
        if self.positive_weight_L is None:
            return self
        return replace(self, positive_weight_L=self.positive_weight_L.to(device))


def focus(logits_BL: Tensor, targets_BL: Tensor, gamma: float) -> Tensor:
    """Return (1 - p)^gamma, (B, L), p being the probability given to the truth (Lin et al., ICCV 2017).

    The power is taken of the logarithm: that of a probability which rounds to 0 would have no finite gradient.
    """
    return (gamma * functional.logsigmoid((1 - 2 * targets_BL) * logits_BL)).exp()


def build_loss(
    settings: Loss,
    label_names: Sequence[str],
    targets_NL: NDArray[np.float32],
    known_NL: NDArray[np.bool_],
) -> MultiLabelLoss:
    """Build the configured loss, on the CPU.

    Args:
        settings: section `loss` of the config.
        label_names: names of the L labels, in the order of the columns.
        targets_NL: (N, L) 0 or 1, those of the training studies that this rank draws from.
        known_NL: (N, L); where False, the target counts nowhere.

    Raises:
        ConfigError: a weight is given to a label that the study file does not have.
    """
    gamma = settings.gamma if settings.name == "focal" else None
    if settings.positive_weight == "none":
        return MultiLabelLoss(None, gamma)
    if settings.positive_weight == "balanced":
        weight_L = balanced_weights(targets_NL, known_NL)
    else:
        for name in settings.positive_weight:
            if name not in label_names:
                raise ConfigError(
                    f"loss.positive_weight: expected labels of the study file ({', '.join(label_names)}), "
                    f"found '{name}'; leave it out"
                )
        weight_L = np.array([settings.positive_weight.get(name, 1.0) for name in label_names])
    return MultiLabelLoss(torch.from_numpy(weight_L.astype(np.float32)), gamma)


def balanced_weights(targets_NL: NDArray[np.float32], known_NL: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return absent / present among the known of each label, (L,), within 1/100 and 100.

    A label that is never present, or never absent, weighs 1: there is nothing to balance.
    """
    present_L = (known_NL & (targets_NL == 1)).sum(axis=0)
    absent_L = (known_NL & (targets_NL == 0)).sum(axis=0)
    ratio_L = np.clip(absent_L / np.maximum(present_L, 1), 1 / MAX_WEIGHT, MAX_WEIGHT)
    return np.where((present_L > 0) & (absent_L > 0), ratio_L, 1.0)
