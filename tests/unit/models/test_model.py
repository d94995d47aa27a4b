"""The layout of what goes through the network, and what leaving empty channels out changes: nothing."""

import pytest
import torch
from torch import Tensor, nn

from cxr_hvd.models.build import as_channels_last, build_model
from cxr_hvd.training.engine import forward

SIZE = 64
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build_model("densenet121", 14, seed=0)


def images_of(num_studies: int, num_channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(num_channels)
    return torch.rand(num_studies, num_channels, SIZE, SIZE, generator=generator)


@pytest.mark.parametrize("num_channels", [1, 2, 5, 20])
@pytest.mark.parametrize("num_studies", [1, 3])
def test_images_have_channels_last_strides_whatever_the_number_of_channels(
    num_studies: int, num_channels: int
) -> None:
    images = images_of(num_studies, num_channels)
    found = as_channels_last(images)
    assert torch.equal(found, images)
    assert found.stride() == (SIZE * SIZE * num_channels, 1, SIZE * num_channels, num_channels)
    part = as_channels_last(torch.cat([images, images])[num_studies:])
    assert torch.equal(part, images) and part.stride() == found.stride()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("num_channels", [1, 2])
def test_the_whole_network_runs_in_channels_last(model: nn.Module, num_channels: int, precision: str) -> None:
    """Also where every study has one image, as in most of CheXpert and all of NIH."""
    strides: dict[str, tuple[int, ...]] = {}

    def note(name: str, output: Tensor) -> None:
        strides[name] = output.stride()

    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    model.train()
    forward(model, images_of(2, num_channels), precision)
    for hook in hooks:
        hook.remove()
    assert strides["features.conv0"] == (64 * (SIZE // 2) ** 2, 1, 64 * SIZE // 2, 64)
    assert not {name: stride for name, stride in strides.items() if stride[1] != 1}


@pytest.mark.parametrize("num_images", [1, 2, 3])
def test_channels_left_out_are_channels_of_zeros(model: nn.Module, num_images: int) -> None:
    """Output and gradient of the whole network; a rounding at most where a library sums in another order."""
    images = images_of(2, num_images)
    padded = torch.cat([images, torch.zeros(2, 20 - num_images, SIZE, SIZE)], dim=1)
    found = []
    for each in (images, padded):
        model.zero_grad()
        model.train()
        logits = forward(model, each, "fp32")
        logits.square().mean().backward()  # type: ignore[no-untyped-call]
        gradient = model.get_parameter("features.conv0.weight").grad
        assert gradient is not None
        found.append((logits.detach(), gradient[:, :num_images].clone()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
