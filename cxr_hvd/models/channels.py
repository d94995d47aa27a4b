"""The 20 input channels of a network, and the convolution that leaves empty channels out.

Owns how a network for three channels becomes one for 20, and how a network takes a batch that holds only the
channels in use. Decision 0024 says why.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from cxr_hvd.errors import ConfigError
from cxr_hvd.study.layout import MAX_IMAGES

COLOR_CHANNELS = 3
TRIAL_STUDIES = 2
SHAPE_READERS = ("__get__", "size", "dim")
"""What reads a tensor's shape or type, by its name in torch; `__get__` reads an attribute."""


class OccupiedConv2d(nn.Conv2d):
    """A convolution that takes an input with its last channels left off and treats them as zeros.

    A study of n images fills n of 20 channels. Leaving the empty ones out costs n/20 of the work and gives the
    same output and gradients, but for the order in which a library sums, which it chooses by the shape. In
    float32 on x86 processors they came out the same bit for bit, with the strides of `as_channels_last`; in
    bfloat16 and on GPUs they may differ by a rounding.
    """

    def forward(self, images_BMHW: Tensor) -> Tensor:
        """Convolve (B, M, H, W), M at most `in_channels`. There is one group."""
        weight = self.weight[:, : images_BMHW.shape[1]]
        features_BCHW: Tensor = self._conv_forward(images_BMHW, weight, self.bias)
        return features_BCHW


def first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """Return the first convolution in a network's order, with its name, where it takes 3 or 20 channels."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            return (name, module) if name and module.in_channels in (COLOR_CHANNELS, MAX_IMAGES) else None
    return None


def widen_first_convolution(model: nn.Module) -> None:
    """Give a network whose first convolution takes three channels 20 of them, by a new weight.

    The weight is drawn by He's rule for 20 channels (`kaiming_normal_`); a bias stays as the library drew it.

    Raises:
        ConfigError: the convolution is of a kind that cannot be replaced.
    """
    place = first_convolution(model)
    if place is None or place[1].in_channels == MAX_IMAGES:
        return
    name, convolution = place
    if type(convolution) is not nn.Conv2d or convolution.groups > 1:
        raise ConfigError(
            f"model.name: expected a plain first convolution or one for {MAX_IMAGES} channels, found {name}: "
            f"{convolution}; build the network with {MAX_IMAGES} input channels"
        )
    wide = _occupied(convolution, MAX_IMAGES)
    nn.init.kaiming_normal_(wide.weight)
    if convolution.bias is not None:
        wide.bias = convolution.bias
    model.set_submodule(name, wide)


def fit_channels(model: nn.Module, image_size: int) -> Any:
    """Have a network for (B, 20, H, W) take (B, M, H, W), as if the channels that are not there were zeros.

    Where a trial shows that the images go into the first convolution and nowhere else, it becomes an
    `OccupiedConv2d`. Every other network has its images padded to 20 channels before its forward pass.

    Returns:
        What the network returned for two studies of one image in the trial, in evaluation mode.
    """
    images_BCHW = torch.zeros(TRIAL_STUDIES, MAX_IMAGES, image_size, image_size)
    images_BCHW[:, :1] = torch.rand(TRIAL_STUDIES, 1, image_size, image_size)
    with _on_trial(model):
        with _Uses(images_BCHW) as uses:
            logits_BL = model(images_BCHW)
        place = first_convolution(model)
        if place and _is_only_use(place[1], uses.calls):
            name, convolution = place
            model.set_submodule(name, _with_weight_of(convolution))
            if _gives(model, images_BCHW[:, :1], logits_BL):
                return logits_BL
            model.set_submodule(name, convolution)
    model.register_forward_pre_hook(pad_channels)
    return logits_BL


def pad_channels(_model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
    """Pad the images (B, M, H, W) of a forward pass to 20 channels. A forward pre-hook."""
    (images_BMHW,) = inputs
    return (functional.pad(images_BMHW, (0, 0, 0, 0, 0, MAX_IMAGES - images_BMHW.shape[1])),)


class _Uses(TorchFunctionMode):
    """Notes every call of torch that takes the images and does more than read their shape.

    Attributes:
        calls: the function and its second argument.
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self._images = images
        self.calls: list[tuple[Callable[..., Any], object]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, and note the call."""
        result = func(*args, **(kwargs or {}))
        reads_shape = func.__name__ in SHAPE_READERS and not isinstance(result, Tensor)
        if not reads_shape and self._takes_images((*args, *(kwargs or {}).values())):
            self.calls.append((func, args[1] if len(args) > 1 else None))
        return result

    def _takes_images(self, values: Sequence[Any]) -> bool:
        return any(
            self._takes_images(value) if isinstance(value, list | tuple) else value is self._images
            for value in values
        )


def _is_only_use(convolution: nn.Conv2d, calls: list[tuple[Callable[..., Any], object]]) -> bool:
    is_plain = type(convolution) in (nn.Conv2d, OccupiedConv2d) and isinstance(convolution.weight, nn.Parameter)
    has_hooks = convolution._forward_pre_hooks or convolution._forward_hooks
    if not is_plain or has_hooks or convolution.groups > 1 or convolution.in_channels != MAX_IMAGES:
        return False
    if len(calls) != 1:
        return False
    function, weight = calls[0]
    is_its_weight = isinstance(weight, Tensor) and weight.data_ptr() == convolution.weight.data_ptr()
    return function is torch.conv2d and is_its_weight


def _gives(model: nn.Module, images_BMHW: Tensor, logits_BL: Any) -> bool:
    """Return whether a network gives these logits for fewer channels, too."""
    try:
        return torch.allclose(model(images_BMHW), logits_BL, rtol=1e-3, atol=1e-5)
    except Exception:  # whatever it raises, it wants all 20 channels
        return False


def _with_weight_of(convolution: nn.Conv2d) -> OccupiedConv2d:
    occupied = _occupied(convolution, MAX_IMAGES)
    occupied.weight, occupied.bias = convolution.weight, convolution.bias
    return occupied


def _occupied(convolution: nn.Conv2d, num_channels: int) -> OccupiedConv2d:
    return OccupiedConv2d(
        num_channels,
        convolution.out_channels,
        convolution.kernel_size,  # type: ignore[arg-type]  # torch types it as of any length
        convolution.stride,  # type: ignore[arg-type]
        convolution.padding,  # type: ignore[arg-type]
        convolution.dilation,  # type: ignore[arg-type]
        bias=convolution.bias is not None,
        padding_mode=convolution.padding_mode,
        device=convolution.weight.device,
        dtype=convolution.weight.dtype,
    )


@contextmanager
def _on_trial(model: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode, without gradients, and put each of its modules back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
