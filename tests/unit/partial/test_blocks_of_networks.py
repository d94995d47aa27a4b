"""The blocks of networks of torchvision and timm: every tensor in one of them, and a plan that reads well.

Networks are built on the meta device, without numbers.
"""

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from cxr_hvd.partial.blocks import tensor_specs
from cxr_hvd.partial.plan import Scope, build_plan
from cxr_hvd.partial.tensor_spec import Kind

# Blocks between stem and head, as the printed plan names them.
TORCHVISION = {
    "densenet121": "denseblock1 transition1 denseblock2 transition2 denseblock3 transition3 denseblock4",
    "resnet18": "layer1 layer2 layer3 layer4",
    "resnet50": "layer1 layer2 layer3 layer4",
    "convnext_tiny": " ".join(f"features.{number}" for number in range(1, 8)),
    "vit_b_16": " ".join(f"encoder_layer_{number}" for number in range(12)),
    "efficientnet_b0": " ".join(f"features.{number}" for number in range(1, 8)),
    "mobilenet_v3_small": " ".join(f"features.{number}" for number in range(1, 13)),
    "swin_t": " ".join(f"features.{number}" for number in range(1, 8)),
    "vgg11": " ".join(f"features.{number}" for number in (3, 6, 8, 11, 13, 16, 18)) + " classifier.0 classifier.3",
    "regnet_y_400mf": "block1 block2 block3 block4",
    "shufflenet_v2_x0_5": "stage2 stage3 stage4",
    "inception_v3": "Mixed_5b Mixed_5c Mixed_5d Mixed_6a Mixed_6b Mixed_6c Mixed_6d Mixed_6e AuxLogits "
    "Mixed_7a Mixed_7b Mixed_7c",
    "maxvit_t": "blocks.0 blocks.1 blocks.2 blocks.3",
}
STAGES = "stages.0 stages.1 stages.2 stages.3"
TIMM = {
    "convnext_tiny": STAGES,
    "vit_small_patch16_224": " ".join(f"blocks.{number}" for number in range(12)),
    "resnet26d": "layer1 layer2 layer3 layer4",
    "efficientnet_b0": " ".join(f"blocks.{number}" for number in range(7)),
    "densenet121": TORCHVISION["densenet121"],
    "swin_tiny_patch4_window7_224": "layers.0 layers.1 layers.2 layers.3",
    "regnety_004": "s1 s2 s3 s4",
    "hgnetv2_b0": STAGES,
    "vgg11": " ".join(f"features.{number}" for number in (3, 6, 8, 11, 13, 16, 18)) + " fc1 fc2",
    "dla34": "level2 level3 level4 level5",
    "xcit_nano_12_p8_224": "pos_embed blocks cls_attn_blocks",
}
# Where the stem is not the first group of timm's `group_matcher`: what it has besides, and what it has not.
STEM_BESIDES = {"dla34": {f"level{n}.{part}" for n in (0, 1) for part in ("0.weight", "1.weight", "1.bias")}}
STEM_WITHOUT = {"xcit_nano_12_p8_224": {f"pos_embed.token_projection.{part}" for part in ("weight", "bias")}}


def build(source: str, name: str) -> nn.Module:
    more: dict[str, Any] = {"init_weights": False} if name == "inception_v3" else {}
    with torch.device("cpu" if name == "regnet_y_400mf" else "meta"):  # it computes its sizes with tensors
        if source == "torchvision":
            model: nn.Module = torchvision.models.get_model(name, num_classes=14, **more)
            return model
        timm = pytest.importorskip("timm", reason="timm is not installed here: uv pip install timm")
        made: nn.Module = timm.create_model(name, in_chans=20, num_classes=14)
        return made


@pytest.mark.parametrize(
    ("source", "name", "between"),
    [
        pytest.param(source, name, between, id=f"{source}-{name}")
        for source, networks in (("torchvision", TORCHVISION), ("timm", TIMM))
        for name, between in networks.items()
    ],
)
def test_every_tensor_of_a_network_is_in_one_of_its_blocks(source: str, name: str, between: str) -> None:
    model = build(source, name)
    specs = tensor_specs(model)
    names = [spec.name for spec in specs]
    assert len(names) == len(set(names))
    assert set(names) >= set(model.state_dict())
    plan = build_plan(specs, "stem+head")
    order = list(dict.fromkeys(row.block for row in plan.summary()))
    assert [block for block in order if block not in ("stem", "head")] == between.split()
    assert {"stem", "head"} <= set(order) and 3 <= len(order) <= 40
    weights = [spec for spec in specs if spec.block == "stem" and len(spec.shape) > 1]
    assert any(spec.shape[1] in (3, 20) for spec in weights), "the stem takes the image"
    assert any(spec.shape[:1] == (14,) for spec in specs if spec.block == "head"), "the head gives the labels"
    private = {spec.name for spec in specs if spec.block in ("stem", "head") and spec.kind is not Kind.COUNTER}
    assert set(plan.names(Scope.PRIVATE)) == private
    assert set(build_plan(specs, "norms").names(Scope.PRIVATE)) >= {
        spec.name for spec in specs if spec.kind is Kind.STATISTIC
    }


@pytest.mark.parametrize("name", TIMM)
def test_the_stem_is_what_timm_groups_first(name: str) -> None:
    model = build("timm", name)
    from timm.models import group_parameters

    groups = group_parameters(model, model.group_matcher(coarse=True))  # type: ignore[operator]
    first = set(groups[0])
    parameters = {name for name, _ in model.named_parameters()}
    stem = {spec.name for spec in tensor_specs(model) if spec.block == "stem"} & parameters
    assert stem - first == STEM_BESIDES.get(name, set())
    assert first - stem == STEM_WITHOUT.get(name, set())
    head = {spec.name for spec in tensor_specs(model) if spec.block == "head"}
    assert any(tensor.startswith(f"{model.pretrained_cfg['classifier']}.") for tensor in head)  # type: ignore[index]
