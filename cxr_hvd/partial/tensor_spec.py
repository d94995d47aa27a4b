"""One tensor of a network, without its values. Needs no torch."""

from dataclasses import dataclass
from enum import StrEnum
from math import prod


class Kind(StrEnum):
    """What a tensor is to the network."""

    PARAMETER = "parameter"
    STATISTIC = "statistic"
    COUNTER = "counter"


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a model, without its values.

    Attributes:
        is_norm: whether it belongs to a normalisation layer.
        aliases: the same tensor where the model uses it again, under another name (tied weights).
    """

    name: str
    block: str
    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    is_norm: bool = False
    aliases: tuple["TensorSpec", ...] = ()

    @property
    def num_elements(self) -> int:
        return prod(self.shape)
