"""Networks of torchvision and timm, by their names there. Weights are fresh, and nothing is downloaded.

Each library is imported where a network of it is built: that takes as long as importing torch.
"""

from importlib.util import find_spec
from typing import Any, cast

from torch import nn

from cxr_hvd.errors import ConfigError, nearest
from cxr_hvd.study.layout import MAX_IMAGES

TWO_OUTPUTS = ("googlenet", "inception_v3")
"""In training these return logits of further classifiers, too."""


def build_torchvision(name: str, num_labels: int, image_size: int) -> nn.Module:
    """Build a network of `torchvision.models` for three channels.

    Raises:
        ConfigError: torchvision has no network of this name for whole images, or not for this size.
    """
    from torchvision import models

    known = [known for known in models.list_models(module=models) if known not in TWO_OUTPUTS]
    if name not in known:
        if name in models.list_models():
            raise ConfigError(
                f"model.name: torchvision/{name} does not give one row of logits a study: choose another"
            )
        near = _nearest("torchvision", name, known)
        raise ConfigError(f"model.name: torchvision/{name} is not a network of torchvision{near}")
    sizes: dict[str, Any] = {}
    if name.startswith("vit_"):
        sizes = {"image_size": image_size}
    elif name.startswith("maxvit_"):
        sizes = {"input_size": (image_size, image_size)}
    network: nn.Module = models.get_model(name, weights=None, num_classes=num_labels, **sizes)
    return network


def build_timm(name: str, num_labels: int, image_size: int) -> nn.Module:
    """Build a network of timm for 20 channels; its first weights are timm's for so many.

    Raises:
        ConfigError: timm is not installed, or has no network of this name.
    """
    if find_spec("timm") is None:
        raise ConfigError(f"model.name: timm/{name} needs timm, which is not installed here: pip install timm")
    import timm

    if not timm.is_model(name):
        near = _nearest("timm", name, timm.list_models())
        raise ConfigError(f"model.name: timm/{name} is not a network of timm {timm.__version__}{near}")
    published = timm.models.get_pretrained_cfg(name)
    sizes: dict[str, Any] = {"img_size": image_size} if published and published.fixed_input_size else {}
    network: Any = timm.create_model(name, False, in_chans=MAX_IMAGES, num_classes=num_labels, **sizes)
    if not sizes and hasattr(network, "set_input_size"):
        network.set_input_size(img_size=image_size)
    return cast(nn.Module, network)


def _nearest(library: str, name: str, known: list[str]) -> str:
    return nearest(f"{library}/{name}", [f"{library}/{other}" for other in known])
