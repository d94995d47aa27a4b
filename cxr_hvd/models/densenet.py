"""DenseNet (Huang et al., CVPR 2017), tensor by tensor as torchvision names and draws it.

Written out here, since importing torchvision takes as long as importing torch. With the same seed the first
weights are those of `torchvision.models.DenseNet`, and so is the output, bit for bit.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from cxr_hvd.models.densenet_sizes import DenseNetSizes


class DenseNet(nn.Module):
    """A network for (B, 3, H, W) images and (B, num_classes) logits.

    Args:
        sizes: its layers and channels.
        num_classes: outputs.
    """

    def __init__(self, sizes: DenseNetSizes, num_classes: int = 1000) -> None:
        super().__init__()
        num_features = sizes.num_init_features
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        parts["conv0"] = nn.Conv2d(3, num_features, kernel_size=7, stride=2, padding=3, bias=False)
        parts["norm0"] = nn.BatchNorm2d(num_features)
        parts["relu0"] = nn.ReLU(inplace=True)
        parts["pool0"] = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        for number, num_layers in enumerate(sizes.layers_per_block, 1):
            parts[f"denseblock{number}"] = DenseBlock(num_layers, num_features, sizes)
            num_features += num_layers * sizes.growth_rate
            if number < len(sizes.layers_per_block):
                parts[f"transition{number}"] = _transition(num_features)
                num_features //= 2
        parts["norm5"] = nn.BatchNorm2d(num_features)
        self.features = nn.Sequential(parts)
        self.classifier = nn.Linear(num_features, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits (B, num_classes)."""
        features_BCHW = functional.relu(self.features(images_BCHW), inplace=True)
        pooled_BC = torch.flatten(functional.adaptive_avg_pool2d(features_BCHW, (1, 1)), 1)
        logits_BL: Tensor = self.classifier(pooled_BC)
        return logits_BL


class DenseBlock(nn.ModuleDict):
    """Layers that each take the outputs of all before, side by side."""

    def __init__(self, num_layers: int, num_features: int, sizes: DenseNetSizes) -> None:
        super().__init__()
        for number in range(num_layers):
            layer = DenseLayer(num_features + number * sizes.growth_rate, sizes)
            self.add_module(f"denselayer{number + 1}", layer)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Return the input and all layers' outputs, side by side."""
        features = [features_BCHW]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseLayer(nn.Module):
    """Norm, 1 x 1 convolution to the bottleneck, norm, 3 x 3 convolution to `growth_rate` channels."""

    def __init__(self, num_features: int, sizes: DenseNetSizes) -> None:
        super().__init__()
        num_bottleneck = sizes.bn_size * sizes.growth_rate
        self.norm1 = nn.BatchNorm2d(num_features)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(num_features, num_bottleneck, kernel_size=1, bias=False)
        self.norm2 = nn.BatchNorm2d(num_bottleneck)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(num_bottleneck, sizes.growth_rate, kernel_size=3, padding=1, bias=False)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return the new channels (B, growth_rate, H, W)."""
        bottleneck_BCHW = self.conv1(self.relu1(self.norm1(torch.cat(list(features), 1))))
        new_BCHW: Tensor = self.conv2(self.relu2(self.norm2(bottleneck_BCHW)))
        return new_BCHW


def _transition(num_features: int) -> nn.Sequential:
    """Build what stands between two blocks: half as many channels, half the height and width."""
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(num_features),
            relu=nn.ReLU(inplace=True),
            conv=nn.Conv2d(num_features, num_features // 2, kernel_size=1, bias=False),
            pool=nn.AvgPool2d(kernel_size=2, stride=2),
        )
    )
