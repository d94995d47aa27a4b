"""Any network: 20 channels of which some may be left out, and first weights that depend on the seed alone."""

import functools
import hashlib

import pytest
import torch
from torch import Tensor, nn

from cxr_hvd.config.sections import Model
from cxr_hvd.errors import ConfigError
from cxr_hvd.models import layout
from cxr_hvd.models.build import build_model
from cxr_hvd.models.channels import OccupiedConv2d
from cxr_hvd.models.forward import forward
from cxr_hvd.partial import blocks

SIZE = 64
QUICK = [
    "torchvision/mobilenet_v3_small",
    "timm/test_resnet",
    "timm/test_vit",
]  # the last two are timm's own, for tests
SLOW = [
    *("torchvision/resnet50", "torchvision/convnext_tiny", "torchvision/efficientnet_b0", "torchvision/swin_t"),
    *("torchvision/vit_b_16", "torchvision/regnet_y_400mf"),
    *("timm/convnext_tiny", "timm/vit_small_patch16_224", "timm/resnet26d"),
]
PADDED = ["timm/tf_efficientnet_b0", "timm/nf_resnet26"]
"""Their first convolution pads or scales by itself, and gets all 20 channels."""
NETWORKS = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW + PADDED)]

pytestmark = pytest.mark.usefixtures("one_thread")


def settings_of(name: str) -> Model:
    return Model(name=name, image_size=SIZE)


@functools.lru_cache(maxsize=1)
def network(name: str) -> nn.Module:
    return build_model(settings_of(name), 14, seed=5)


def digest(model: nn.Module) -> str:
    content = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        content.update(name.encode())
        content.update(tensor.contiguous().numpy())
    return content.hexdigest()


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Return logits in training, with the same dropout: BatchNorm keeps fresh weights from hiding the images."""
    model.train()
    torch.manual_seed(3)
    return forward(model, images, "fp32").detach()


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("densenet121", "98f54dcb4a79c4907a56be1dcc4089f600677aec588057ae5ed76275b7c65b9f"),
        ("tiny", "669a7a89d16ee2cf9185e82520ff5357b2f22130648e29a6d52495832de97255"),
    ],
)
def test_the_first_weights_of_version_0_1_0_are_kept(name: str, sha256: str) -> None:
    assert digest(build_model(Model(name=name), 14, seed=5)) == sha256


@pytest.mark.slow
def test_torchvisions_densenet121_is_the_densenet121_that_is_built_here() -> None:
    assert digest(network("torchvision/densenet121")) == digest(build_model(Model(), 14, seed=5))


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_left_out_are_channels_of_zeros(name: str) -> None:
    """A rounding at most differs, where a library sums in another order."""
    model = network(name)
    for parameter in model.parameters():  # some libraries begin with a head of zeros
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    images = torch.rand(3, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    logits = logits_of(model, images)
    assert logits.shape == (3, 14) and logits.std() > 0
    padded = torch.cat([images, torch.zeros(3, 18, SIZE, SIZE)], dim=1)
    torch.testing.assert_close(logits, logits_of(model, padded), rtol=1e-4, atol=1e-5)
    second_only = torch.cat([torch.zeros(3, 1, SIZE, SIZE), images[:, 1:]], dim=1)
    assert not torch.allclose(logits, logits_of(model, second_only), rtol=1e-4, atol=1e-5)
    is_occupied = any(isinstance(module, OccupiedConv2d) for module in model.modules())
    assert is_occupied == (name not in PADDED)
    network.cache_clear()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_first_weights_depend_on_the_seed_alone(name: str) -> None:
    torch.manual_seed(123)
    first = digest(network(name))
    torch.manual_seed(456)
    assert digest(build_model(settings_of(name), 14, seed=5)) == first
    assert digest(build_model(settings_of(name), 14, seed=6)) != first
    assert torch.initial_seed() == 456


@pytest.mark.parametrize("name", NETWORKS)
def test_a_plan_lists_the_tensors_of_the_network_without_its_weights(name: str) -> None:
    model = network(name)
    assert layout.tensor_specs(settings_of(name), 14) == blocks.tensor_specs(model)
    assert not any(tensor.is_meta for tensor in model.state_dict().values())


def test_names_in_the_state_are_the_librarys() -> None:
    from torchvision.models import mobilenet_v3_small

    theirs = mobilenet_v3_small(num_classes=14).state_dict()
    ours = network("torchvision/mobilenet_v3_small").state_dict()
    assert list(ours) == list(theirs)
    differing = [name for name in ours if ours[name].shape != theirs[name].shape]
    assert differing == ["features.0.0.weight"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision/resnet5", "is not a network of torchvision; did you mean 'torchvision/resnet50'?"),
        ("torchvision/fasterrcnn_resnet50_fpn", "does not give one row of logits a study"),
        ("torchvision/r3d_18", "does not give one row of logits a study"),
        ("torchvision/quantized_resnet18", "does not give one row of logits a study"),
        ("torchvision/inception_v3", "does not give one row of logits a study"),
        ("torchvision/maxvit_t", "building torchvision/maxvit_t for 64 px raised ValueError"),
        ("timm/test_resne", "did you mean 'timm/test_resnet"),
        ("timm/inception_v3", "timm/inception_v3 did not take images of 64 x 64 px: RuntimeError"),
    ],
)
def test_what_cannot_be_built_is_one_line(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_model(settings_of(name), 14, seed=0)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_network_of_timm_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cxr_hvd.models.libraries.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="timm/test_resnet needs timm, which is not installed here: pip install"):
        build_model(settings_of("timm/test_resnet"), 14, seed=0)
