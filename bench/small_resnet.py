"""A small ResNet for the benches that ask how well something learns: some hundred trainings in an hour."""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (16, 32, 64, 128)


class Block(nn.Module):
    """Two convolutions beside a shortcut (He et al., CVPR 2016); halves the side."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(num_out)
        self.shortcut = nn.Conv2d(num_in, num_out, 1, stride=2)

    def forward(self, features: Tensor) -> Tensor:
        deeper = functional.relu(self.norm1(self.conv1(features)))
        return functional.relu(self.norm2(self.conv2(deeper)) + self.shortcut(features))


def small_resnet(num_channels: int, num_labels: int, image_size: int) -> nn.Module:
    """Build the network for (B, num_channels, H, W) images of any size from 32 pixels on."""
    pairs = zip(WIDTHS, (*WIDTHS[1:], WIDTHS[-1]), strict=True)
    stem = nn.Sequential(
        nn.Conv2d(num_channels, WIDTHS[0], 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(WIDTHS[0]),
        nn.ReLU(),
    )
    stages = [(f"stage{number}", Block(*pair)) for number, pair in enumerate(pairs, 1)]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], num_labels))
    return nn.Sequential(OrderedDict([("stem", stem), *stages, ("head", head)]))
