"""Measure the running statistics of BatchNorms anew, on other images.

So networks are fitted to another hospital's images without labels (AdaBN: Li et al., Pattern Recognition 2018).
"""

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from cxr_hvd.models.forward import forward


@torch.no_grad()
def measure_statistics(model: nn.Module, names: Collection[str], batches: Iterable[Tensor]) -> None:
    """Replace running statistics by their mean over batches, in place; nothing else of the model changes.

    Args:
        model: on the device of the batches; it is left in evaluation mode.
        names: of running statistics, as `features.norm0.running_mean`; a norm of which one is named is measured.
        batches: images (B, 1 to 20, H, W), 0 to 1; one batch at least.
    """
    norms = [
        module
        for path, module in model.named_modules()
        if isinstance(module, _NormBase)
        and any(f"{path}.{name}" in names for name in ("running_mean", "running_var"))
    ]
    model.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
        norm.train()
    for images in batches:
        forward(model, images, "fp32")
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
