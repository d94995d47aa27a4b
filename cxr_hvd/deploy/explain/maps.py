"""Two maps of where a network looks: Grad-CAM, by gradients, and occlusion, by covering parts of an image.

The network adds a study's images up in its first convolution. What lies behind it belongs to the whole study, so
that Grad-CAM has one map a study; occlusion covers one image at a time and has a map of each.

Shapes: M images, L labels, H x W pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from cxr_hvd.errors import UsageError
from cxr_hvd.models.forward import forward

Map = NDArray[np.float32]

MIN_SIDE = 7
"""Grad-CAM takes the last layer whose features have so many pixels a side: fewer show no place."""

WINDOWS_PER_SIDE = 8


def layer_of_grad_cam(model: nn.Module, images_1MHW: Tensor) -> str:
    """Return the name of the last layer whose features still show where something is.

    Raises:
        UsageError: the network has none, as one of attention alone.
    """
    names: list[str] = []

    def note(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.dim() == 4 and min(output.shape[2:]) >= MIN_SIDE:
                names.append(name)

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            forward(model, images_1MHW, "fp32")
    finally:
        for hook in hooks:
            hook.remove()
    if not names:
        raise UsageError(
            f"--method grad-cam: expected a layer with features of {MIN_SIDE} x {MIN_SIDE} pixels or more, found "
            "none in this network at this image size: use --method occlusion"
        )
    return names[-1]


def grad_cam(model: nn.Module, images_1MHW: Tensor, layer: str, columns: Sequence[int]) -> Map:
    """Return for each column a map (len(columns), H, W), 0 and above, of what speaks for the label.

    Features of the layer are weighted by the mean gradient of the label's logit (Selvaraju et al., ICCV 2017).

    Args:
        model: in evaluation mode.
        layer: of `layer_of_grad_cam`, or any name of `model.named_modules()` whose output is (1, C, h, w).
        columns: labels, by their place.
    """
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        kept.append(output)
        return output.clone()  # a ReLU behind it may work in place

    hook = model.get_submodule(layer).register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits_1L = forward(model, images_1MHW.requires_grad_(), "fp32")
            [features_1Chw] = kept
            gradients = [
                torch.autograd.grad(logits_1L[0, column], features_1Chw, retain_graph=True)[0]
                for column in columns
            ]
    finally:
        hook.remove()
    weights_KC11 = torch.cat(gradients).mean(dim=(2, 3), keepdim=True)
    maps_Khw = functional.relu((weights_KC11 * features_1Chw.detach()).sum(1))
    size = images_1MHW.shape[2:]
    maps_K1HW = functional.interpolate(maps_Khw[:, None], size, mode="bilinear", align_corners=False)
    return maps_K1HW[:, 0].numpy()


@torch.inference_mode()
def occlusion(
    model: nn.Module,
    images_1MHW: Tensor,
    batch_size: int,
    on_batch: Callable[[], None] = lambda: None,
) -> Map:
    """Return by how much a label's probability falls where a square of an image is covered (M, L, H, W), -1 to 1.

    The square has the image's mean shade and an eighth of its side (Zeiler and Fergus, ECCV 2014). Where squares
    overlap at an edge, a pixel has their mean. Above 0: what is there speaks for the label.

    Args:
        batch_size: covered images that the network sees at a time.
    """
    num_images, height, width = images_1MHW.shape[1:]
    whole_L = torch.sigmoid(forward(model, images_1MHW, "fp32"))[0]
    falls_MLHW = torch.zeros((num_images, len(whole_L), height, width))
    for image in range(num_images):
        shade, covers_HW = images_1MHW[0, image].mean(), torch.zeros((height, width))
        squares = list(_squares(height, width))
        for start in range(0, len(squares), batch_size):
            on_batch()
            part = squares[start : start + batch_size]
            covered_BMHW = images_1MHW.repeat(len(part), 1, 1, 1)
            for row, (ys, xs) in enumerate(part):
                covered_BMHW[row, image, ys, xs] = shade
            falls_BL = whole_L - torch.sigmoid(forward(model, covered_BMHW, "fp32"))
            for fall_L, (ys, xs) in zip(falls_BL, part, strict=True):
                falls_MLHW[image, :, ys, xs] += fall_L[:, None, None]
                covers_HW[ys, xs] += 1
        falls_MLHW[image] /= covers_HW
    return falls_MLHW.numpy()


def _squares(height: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Yield the rows and columns of each square; together they cover the whole image."""
    side = max(1, min(height, width) // WINDOWS_PER_SIDE)
    for top in _starts(height, side):
        for left in _starts(width, side):
            yield slice(top, top + side), slice(left, left + side)


def _starts(length: int, side: int) -> list[int]:
    starts = list(range(0, length - side + 1, side))
    return starts if starts[-1] == length - side else [*starts, length - side]
