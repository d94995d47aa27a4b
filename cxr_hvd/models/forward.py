"""One forward pass, in the precision and the memory layout that the network runs fastest in."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from cxr_hvd.errors import ConfigError
from cxr_hvd.models.build import as_channels_last

AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def forward(model: nn.Module, images_BMHW: Tensor, precision: str) -> Tensor:
    """Return logits (B, L) float32. Activations are channels_last, also where all studies have one image.

    Args:
        model: any network for (B, M, H, W).
        images_BMHW: float32, 0 to 1.
        precision: `fp32`, or `bf16` or `fp16` for autocast.

    Raises:
        ConfigError: the network returns something else than a tensor, in training for example.
    """
    dtype = AUTOCAST_TYPES.get(precision)
    with torch.autocast(images_BMHW.device.type, dtype=dtype) if dtype else nullcontext():
        logits_BL = model(as_channels_last(images_BMHW))
    if not isinstance(logits_BL, Tensor):
        raise ConfigError(f"model.name: expected a network that returns logits, found {type(logits_BL).__name__}")
    return logits_BL.float()


@contextmanager
def full_float32() -> Iterator[None]:
    """Keep a GPU's convolutions from rounding to TensorFloat-32, torch's default for float32."""
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = before
