"""The networks: their first weights, the strides of what goes through, and empty channels left out."""

import pytest
import torch
from torch import Tensor, nn

from cxr_hvd.config.sections import Model
from cxr_hvd.models.build import as_channels_last, build_model
from cxr_hvd.models.forward import forward
from cxr_hvd.partial.blocks import tensor_specs

SIZE = 64
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build_model(Model(), 14, seed=0)


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
    """Output and gradient of the whole network; some processors sum one channel in another order than twenty."""
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
        assert float((one - other).norm()) <= 1e-3 * float(other.norm())


def test_the_small_network_has_the_blocks_of_the_large_one_and_few_parameters() -> None:
    small, large = (build_model(Model(name=name), 14, seed=0) for name in ("tiny", "densenet121"))
    assert 15_000 < sum(parameter.numel() for parameter in small.parameters()) < 25_000
    blocks = [list(dict.fromkeys(spec.block for spec in tensor_specs(model))) for model in (small, large)]
    assert blocks[0] == blocks[1]
    assert small(torch.rand(2, 3, 32, 32)).shape == (2, 14)


def test_leaving_out_empty_channels_is_exact_in_output_and_gradient() -> None:
    model = build_model(Model(), 14, seed=0)
    model.eval()  # running statistics: comparable whatever the batch
    full = torch.zeros(2, 20, 64, 64)
    full[:, :3] = torch.rand(2, 3, 64, 64)
    gradients, outputs = [], []
    for images in (full, full[:, :3]):
        model.zero_grad()
        output = model(images)
        output.sum().backward()
        outputs.append(output.detach())
        gradients.append(model.get_submodule("features.conv0").weight.grad.clone())  # type: ignore[operator, union-attr]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(gradients[0], gradients[1])
    assert bool((gradients[0][:, 3:] == 0).all())


def test_the_first_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(123)
    one = build_model(Model(), 14, seed=5).state_dict()
    torch.manual_seed(456)
    same = build_model(Model(), 14, seed=5).state_dict()
    other = build_model(Model(), 14, seed=6).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["classifier.weight"], other["classifier.weight"])
