"""The networks: DenseNet121 with 20 input channels and an output for each label, and a tiny one for dry runs.

Owns how they are built, and the convolution that leaves empty channels out. Their sizes stand in `layout`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cxr_hvd.config.sections import Model
from cxr_hvd.models.densenet import DenseNet
from cxr_hvd.models.layout import DENSENETS, DenseNetSizes
from cxr_hvd.study.layout import MAX_IMAGES


class OccupiedConv2d(nn.Conv2d):
    """A convolution that takes an input with its last channels left off and treats them as zeros.

    A study of n images fills n of 20 channels. Leaving the empty ones out costs n/20 of the work and gives the
    same output and gradients, but for the order in which a library sums, which it chooses by the shape. In
    float32 on x86 processors they came out the same bit for bit, with the strides of `as_channels_last`; in
    bfloat16 and on GPUs they may differ by a rounding.
    """

    def forward(self, images_BMHW: Tensor) -> Tensor:
        """Convolve (B, M, H, W), M at most `in_channels`."""
        weight = self.weight[:, : images_BMHW.shape[1]]
        return functional.conv2d(images_BMHW, weight, self.bias, self.stride, self.padding, self.dilation)


def as_channels_last(images_BMHW: Tensor) -> Tensor:
    """Return images (B, M, H, W) with the strides of channels_last, which convolutions prefer.

    With one channel both orders lie alike in memory, and `contiguous` leaves the strides of NCHW. Torch reads the
    order from the strides: the whole network would run in NCHW then, 29% slower.
    """
    images_BMHW = images_BMHW.contiguous(memory_format=torch.channels_last)
    num_channels, height, width = images_BMHW.shape[1:]
    if num_channels > 1:
        return images_BMHW
    return images_BMHW.as_strided(images_BMHW.shape, (height * width, 1, width, 1))


def build_densenet(sizes: DenseNetSizes, num_labels: int) -> nn.Module:
    """Build a DenseNet for (B, 1 to 20, H, W) inputs and (B, num_labels) logits, with fresh weights."""
    model = DenseNet(sizes, num_labels)
    # Built with three channels before and replaced, so that a seed gives the weights that it gave ever since.
    stem = OccupiedConv2d(MAX_IMAGES, sizes.num_init_features, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(stem.weight)
    model.get_submodule("features").register_module("conv0", stem)
    return model


def build_model(settings: Model, num_labels: int, seed: int) -> nn.Module:
    """Build a network whose first weights depend on the seed alone, so that all ranks start alike."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_densenet(DENSENETS[settings.name], num_labels)
