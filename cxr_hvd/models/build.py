"""Build the network of a config, with fresh weights that depend on the seed alone.

Owns what is done to every network: 20 input channels, norms, and a trial that its output is one row of logits a
study. Where a network comes from is in `densenet`, `libraries` and `user_network`.
"""

from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from cxr_hvd.config.sections import Model
from cxr_hvd.errors import ConfigError
from cxr_hvd.models.channels import TRIAL_STUDIES, fit_channels, widen_first_convolution
from cxr_hvd.models.densenet import DenseNet
from cxr_hvd.models.densenet_sizes import DENSENETS
from cxr_hvd.models.libraries import build_timm, build_torchvision
from cxr_hvd.models.norms import replace_batchnorms
from cxr_hvd.models.user_network import build_user_network, describe, source_digest


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


def build_model(settings: Model, num_labels: int, seed: int) -> nn.Module:
    """Build a network for (B, 1 to 20, H, W) images and (B, num_labels) logits.

    Its first weights depend on the seed alone, so that all ranks start alike.

    Raises:
        ConfigError: there is no such network, or it does not take such images or give such logits.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_network(settings, num_labels)
        if settings.name not in DENSENETS:
            _check_logits(settings, _trial(model, settings), num_labels)
    return model


def build_network(settings: Model, num_labels: int) -> nn.Module:
    """Build a network with all its tensors, for 20 channels; without the trial, so that it may be on any device.

    Raises:
        ConfigError: there is no such network, or it cannot be built so.
    """
    name, size = settings.name, settings.image_size
    library, _, name_there = name.partition("/")
    if name in DENSENETS:
        # Built with three channels and widened, so that a seed gives the weights that it gave ever since.
        model: nn.Module = DenseNet(DENSENETS[name], num_labels)
    elif ":" in name:
        model = build_user_network(name, num_labels, size)
    else:
        build = {"torchvision": build_torchvision, "timm": build_timm}[library]
        try:
            model = build(name_there, num_labels, size)
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(f"model.name: building {name} for {size} px raised {describe(error)}") from error
    widen_first_convolution(model)
    if settings.norm == "group":
        replace_batchnorms(model, name)
    return model


def network_items(settings: Model) -> dict[str, str]:
    """State what a network is made of beside the config and torch, for the contract between sites."""
    if settings.name.startswith("timm/"):
        return {"version of timm": version("timm")}
    return {f"source of {settings.name}": source_digest(settings.name)} if ":" in settings.name else {}


def _trial(model: nn.Module, settings: Model) -> Any:
    try:
        return fit_channels(model, settings.image_size)
    except Exception as error:  # any network, any error
        size = settings.image_size
        raise ConfigError(
            f"model.name: {settings.name} did not take images of {size} x {size} px: {describe(error)}"
        ) from error


def _check_logits(settings: Model, logits_BL: Any, num_labels: int) -> None:
    shape = tuple(logits_BL.shape) if isinstance(logits_BL, Tensor) else type(logits_BL).__name__
    if shape != (TRIAL_STUDIES, num_labels):
        raise ConfigError(
            f"model.name: expected {settings.name} to return logits {(TRIAL_STUDIES, num_labels)} for "
            f"{TRIAL_STUDIES} studies, found {shape}"
        )
