"""GroupNorm in the place of BatchNorm: no statistics are left, and a batch of one study is enough."""

import pytest
import torch
from torch import nn

from cxr_hvd.config.sections import Model
from cxr_hvd.errors import ConfigError
from cxr_hvd.models import layout
from cxr_hvd.models.build import build_model
from cxr_hvd.models.norms import MIN_CHANNELS_OF_GROUP, num_groups, replace_batchnorms
from cxr_hvd.partial import blocks
from cxr_hvd.partial.tensor_spec import Kind

NAMES = ["tiny", "torchvision/mobilenet_v3_small", "timm/test_efficientnet"]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("num_channels", [*range(1, 129), 96, 384, 576, 1024])
def test_groups_are_equal_and_at_most_32(num_channels: int) -> None:
    count = num_groups(num_channels)
    assert num_channels % count == 0 and 1 <= count <= 32
    assert num_channels == count == 1 or num_channels // count >= MIN_CHANNELS_OF_GROUP


def test_usual_widths_have_32_groups() -> None:
    assert {num_groups(num_channels) for num_channels in (64, 128, 256, 512, 1024)} == {32}
    assert [num_groups(num_channels) for num_channels in (32, 24, 12, 7)] == [16, 12, 6, 1]


@pytest.mark.parametrize("name", NAMES)
def test_no_statistics_are_left_and_all_names_and_activations_stay(name: str) -> None:
    as_it_is, group = (
        build_model(Model(name=name, image_size=64, norm=norm), 14, seed=1) for norm in ("batch", "group")
    )
    specs = blocks.tensor_specs(group)
    assert not [spec.name for spec in specs if spec.kind is not Kind.PARAMETER]
    assert [name for name, _ in group.named_parameters()] == [name for name, _ in as_it_is.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(group.parameters(), as_it_is.parameters(), strict=True))
    # timm's norms hold their activation.
    activations = [
        [type(module) for module in model.modules() if isinstance(module, nn.SiLU | nn.ReLU | nn.Hardswish)]
        for model in (as_it_is, group)
    ]
    assert activations[0] == activations[1]
    assert layout.tensor_specs(Model(name=name, image_size=64, norm="group"), 14) == specs


@pytest.mark.parametrize("name", NAMES)
def test_a_study_has_the_same_logits_in_any_batch(name: str) -> None:
    model = build_model(Model(name=name, image_size=64, norm="group"), 14, seed=1).eval()
    evaluated = model(images := torch.rand(3, 2, 64, 64))
    torch.testing.assert_close(evaluated[:1], model(images[:1]), rtol=1e-4, atol=1e-5)


def test_a_network_without_batchnorm_or_with_one_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"group replaces BatchNorm2d, and a/b has none: leave model\.norm out"):
        replace_batchnorms(nn.Sequential(nn.Conv2d(20, 8, 3), nn.GroupNorm(2, 8)), "a/b")
    with pytest.raises(ConfigError, match="found BatchNorm1d at 1: build the network with GroupNorm"):
        replace_batchnorms(nn.Sequential(nn.Linear(20, 8), nn.BatchNorm1d(8)), "a/b")
