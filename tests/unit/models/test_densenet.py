"""The network, which is ours to start faster: torchvision's is the reference."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn

from cxr_hvd.models.densenet import DenseNet
from cxr_hvd.models.densenet_sizes import DENSENETS, DenseNetSizes

SMALL = DenseNetSizes(growth_rate=4, layers_per_block=(2, 1, 2, 1), num_init_features=6, bn_size=2)


def drawn(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(7)
    return build()


def torchvision_densenet(sizes: DenseNetSizes, num_classes: int = 1000) -> nn.Module:
    network: nn.Module = torchvision.models.DenseNet(
        growth_rate=sizes.growth_rate,
        block_config=sizes.layers_per_block,
        num_init_features=sizes.num_init_features,
        bn_size=sizes.bn_size,
        num_classes=num_classes,
    )
    return network


@pytest.mark.parametrize(
    ("sizes", "num_classes"), [(SMALL, 3), (DENSENETS["densenet121"], 14)], ids=["small", "121"]
)
def test_the_first_weights_are_torchvisions(sizes: DenseNetSizes, num_classes: int) -> None:
    ours = drawn(lambda: DenseNet(sizes, num_classes)).state_dict()
    theirs = drawn(lambda: torchvision_densenet(sizes, num_classes)).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_output_and_gradients_are_torchvisions_bit_for_bit() -> None:
    ours, theirs = drawn(lambda: DenseNet(SMALL)), drawn(lambda: torchvision_densenet(SMALL))
    images = torch.randn(2, 3, 40, 40)
    for model in (ours, theirs):
        model(images).square().sum().backward()
    for parameter, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert parameter.grad is not None and reference.grad is not None
        assert torch.equal(parameter.grad, reference.grad)
    assert torch.equal(ours.eval()(images), theirs.eval()(images))
