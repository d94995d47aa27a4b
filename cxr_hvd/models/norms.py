"""GroupNorm in the place of BatchNorm (Wu and He, ECCV 2018): no running statistics, any batch size.

Owns how many groups a norm has, and how a norm is replaced. Decision 0024 says why.
"""

import sys
from typing import Any, cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cxr_hvd.errors import ConfigError

MAX_GROUPS = 32
MIN_CHANNELS_OF_GROUP = 2
"""A group of one channel would lose it where the image has become one value a channel."""


def num_groups(num_channels: int) -> int:
    """Return the largest number of equal groups that is at most 32 and leaves two channels in each."""
    most_groups = min(MAX_GROUPS, max(1, num_channels // MIN_CHANNELS_OF_GROUP))
    return next(count for count in range(most_groups, 0, -1) if num_channels % count == 0)


def replace_batchnorms(model: nn.Module, name: str) -> None:
    """Put a GroupNorm in the place of each BatchNorm2d. Names, weights, biases and `eps` stay.

    Args:
        name: the network's, for errors.

    Raises:
        ConfigError: there is none, or one of a kind that is not known here.
    """
    batchnorms = [(place, norm) for place, norm in model.named_modules() if isinstance(norm, _BatchNorm)]
    if not batchnorms:
        raise ConfigError(f"model.norm: group replaces BatchNorm2d, and {name} has none: leave model.norm out")
    for place, norm in batchnorms:
        model.set_submodule(place, _group_norm(place, norm))


def _group_norm(place: str, norm: _BatchNorm) -> nn.GroupNorm:
    groups, device = num_groups(norm.num_features), norm.weight.device if norm.affine else None
    new: Any
    if type(norm) is nn.BatchNorm2d:
        new = nn.GroupNorm(groups, norm.num_features, norm.eps, norm.affine, device=device)
    elif _is_timms(norm):
        from timm.layers.norm_act import GroupNormAct

        # A norm that has its activation in it: `drop` and `act` move over.
        new = GroupNormAct(norm.num_features, groups, norm.eps, norm.affine, device=device)
        new.drop, new.act = norm.drop, norm.act
    else:
        raise ConfigError(
            f"model.norm: group knows BatchNorm2d and timm's BatchNormAct2d, found {type(norm).__name__} at "
            f"{place}: build the network with GroupNorm, and leave model.norm out"
        )
    if norm.affine:
        new.weight, new.bias = norm.weight, norm.bias
    return cast(nn.GroupNorm, new)


def _is_timms(norm: _BatchNorm) -> bool:
    """Return whether this is timm's BatchNormAct2d; where there is one, timm has been imported."""
    layers = sys.modules.get("timm.layers")
    return layers is not None and type(norm) is layers.BatchNormAct2d
