"""The sizes of the networks that are built here, without torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DenseNetSizes:
    """The sizes of a DenseNet (Huang et al., CVPR 2017).

    Attributes:
        growth_rate: channels that each layer adds.
        layers_per_block: layers of each dense block.
        num_init_features: channels after the first convolution.
        bn_size: channels of a layer's bottleneck, in growth rates.
    """

    growth_rate: int
    layers_per_block: tuple[int, ...]
    num_init_features: int
    bn_size: int


DENSENETS = {
    "densenet121": DenseNetSizes(32, (6, 12, 24, 16), num_init_features=64, bn_size=4),
    "tiny": DenseNetSizes(8, (1, 1, 1, 1), num_init_features=12, bn_size=2),
}
