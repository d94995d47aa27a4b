"""Channels that are left out are zeros, whatever the convolution; a network that must not lose them is padded."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cxr_hvd.errors import ConfigError
from cxr_hvd.models.channels import OccupiedConv2d, fit_channels, pad_channels, widen_first_convolution

SIZE = 32


def images_of(num_channels: int) -> Tensor:
    return torch.rand(2, num_channels, SIZE, SIZE, generator=torch.Generator().manual_seed(num_channels))


def with_zeros(images: Tensor) -> Tensor:
    return torch.cat([images, torch.zeros(len(images), 20 - images.shape[1], SIZE, SIZE)], dim=1)


def is_padded(model: nn.Module) -> bool:
    return pad_channels in model._forward_pre_hooks.values()


class Net(nn.Module):
    """A first convolution, a mean, and a linear layer; a subclass may use its images otherwise."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(20, 8, 3, **settings)
        self.linear = nn.Linear(8, 14)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.conv(images))

    def head(self, features: Tensor) -> Tensor:
        logits: Tensor = self.linear(features.mean((2, 3)))
        return logits


class ScaledByChannels(Net):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.conv(images)) / images.shape[1]


class UsedTwice(Net):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.conv(images)) + images.mean()


class UsedInAList(Net):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.conv(images)) + torch.cat([images, images], dim=1).mean()


class WeightNormed(Net):
    def __init__(self) -> None:
        super().__init__()
        nn.utils.parametrizations.weight_norm(self.conv)


class Hooked(Net):
    def __init__(self) -> None:
        super().__init__()
        self.conv.register_forward_hook(lambda _, __, features: features * 2)


class HiddenByZeros(Net):
    """Its first logits do not depend on the images: only what the images are used for shows."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.linear.weight)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.conv(images) * images.mean())


class WantsTwenty(Net):
    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[1] == 20, "20 channels"
        return self.head(self.conv(images))


class Normalized(Net):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.conv(images - images.mean()))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"padding": "same"},
        {"padding": "same", "dilation": 2},
        {"stride": (2, 3), "padding": (1, 0), "bias": False},
        {"dilation": (1, 2), "padding": 2},
    ],
    ids=str,
)
def test_a_first_convolution_leaves_empty_channels_out_and_keeps_its_settings(settings: dict[str, Any]) -> None:
    model, images = Net(**settings), images_of(3)
    weight, expected = model.conv.weight, model(with_zeros(images))
    fit_channels(model, SIZE)
    assert isinstance(model.conv, OccupiedConv2d) and not is_padded(model)
    assert model.conv.weight is weight
    torch.testing.assert_close(model(images), expected, rtol=1e-6, atol=1e-7)
    model(images).sum().backward()
    assert weight.grad is not None and not weight.grad[:, 3:].any() and weight.grad[:, :3].any()


@pytest.mark.parametrize(
    "kind",
    [ScaledByChannels, UsedTwice, UsedInAList, HiddenByZeros, WantsTwenty, Normalized, WeightNormed, Hooked],
)
def test_a_network_that_would_notice_gets_all_20_channels(kind: type[Net]) -> None:
    model, images = kind(), images_of(3)
    expected = model(with_zeros(images))
    fit_channels(model, SIZE)
    assert is_padded(model) and not isinstance(model.conv, OccupiedConv2d)
    assert torch.equal(model(images), expected)


@pytest.mark.parametrize("settings", [{"groups": 4}, {"padding": 1, "padding_mode": "reflect"}], ids=str)
def test_a_convolution_of_another_kind_gets_all_20_channels(settings: dict[str, Any]) -> None:
    model, images = Net(**settings), images_of(3)
    expected = model(with_zeros(images))
    fit_channels(model, SIZE)
    assert is_padded(model)
    assert torch.equal(model(images), expected)


def test_a_network_without_convolutions_gets_all_20_channels() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(20 * SIZE * SIZE, 14))
    fit_channels(model, SIZE)
    assert torch.equal(model(images_of(2)), model(with_zeros(images_of(2))))


def test_a_trial_leaves_a_network_as_it_was() -> None:
    model = nn.Sequential(Net(), nn.BatchNorm1d(14), nn.Dropout())
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit_channels(model, SIZE)
    assert [model[number].training for number in range(3)] == [True, False, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_three_channels_become_20_with_fresh_weights_and_the_same_bias() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 5, stride=2, padding=2, dilation=1), nn.ReLU())
    bias = model[0].bias
    widen_first_convolution(model)
    wide = model[0]
    assert isinstance(wide, OccupiedConv2d)
    assert wide.weight.shape == (64, 20, 5, 5) and wide.bias is bias
    assert (wide.stride, wide.padding) == ((2, 2), (2, 2))
    assert wide.weight.std().item() == pytest.approx((2 / (20 * 25)) ** 0.5, rel=0.05)


def test_a_first_convolution_of_a_kind_of_its_own_is_not_widened() -> None:
    class Scaled(nn.Conv2d):
        pass

    with pytest.raises(ConfigError, match="expected a plain first convolution or one for 20 channels, found 0: S"):
        widen_first_convolution(nn.Sequential(Scaled(3, 8, 3)))
