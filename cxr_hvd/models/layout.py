"""The tensors of a network by name, shape and block, without its weights; those of DenseNets without torch."""

from collections.abc import Iterator

from cxr_hvd.config.sections import Model
from cxr_hvd.errors import ConfigError
from cxr_hvd.models.densenet_sizes import DENSENETS, DenseNetSizes
from cxr_hvd.partial.tensor_spec import Kind, TensorSpec
from cxr_hvd.study.layout import MAX_IMAGES


def block_of(tensor_name: str) -> str:
    """Return a DenseNet tensor's block: `stem`, `denseblock1` to 4, `transition1` to 3, `head`."""
    parts = tensor_name.split(".")
    if parts[0] == "classifier" or parts[1] == "norm5":
        return "head"
    return "stem" if parts[1] in ("conv0", "norm0") else parts[1]


def tensor_specs(settings: Model, num_labels: int) -> list[TensorSpec]:
    """List all parameters and buffers of a network, in its own order.

    DenseNets need no torch. Every other network is built on the meta device, without memory for its tensors, or
    on the CPU where it cannot be: RegNets compute their sizes with tensors.

    Args:
        settings: which network.
        num_labels: outputs of the network.

    Raises:
        ConfigError: there is no such network.
    """
    if settings.name in DENSENETS:
        return _densenet_specs(settings, num_labels)
    import torch

    from cxr_hvd.models.build import build_network
    from cxr_hvd.partial import blocks

    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                model = build_network(settings, num_labels)
        except ConfigError:
            model = build_network(settings, num_labels)
    return blocks.tensor_specs(model)


def _densenet_specs(settings: Model, num_labels: int) -> list[TensorSpec]:
    shapes = dict(_weight_shapes(DENSENETS[settings.name], num_labels))
    parameters, buffers = [], []
    for module, shape in shapes.items():
        has_bias = len(shape) < 4  # all convolutions go without
        for parameter in ("weight", "bias") if has_bias else ("weight",):
            parameter_shape = shape if parameter == "weight" else shape[:1]
            parameters.append(_spec(f"{module}.{parameter}", Kind.PARAMETER, parameter_shape, "float32"))
        if len(shape) == 1 and settings.norm == "batch":
            means = (f"{module}.running_mean", f"{module}.running_var")
            buffers += [_spec(mean, Kind.STATISTIC, shape, "float32") for mean in means]
            buffers.append(_spec(f"{module}.num_batches_tracked", Kind.COUNTER, (), "int64"))
    return parameters + buffers


def _spec(name: str, kind: Kind, shape: tuple[int, ...], dtype: str) -> TensorSpec:
    return TensorSpec(name, block_of(name), kind, shape, dtype, is_norm=".norm" in name)


def _weight_shapes(sizes: DenseNetSizes, num_labels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield each module with its weight's shape: 4 sizes of a convolution, 1 of a norm, 2 of the classifier."""
    num_features, num_bottleneck = sizes.num_init_features, sizes.bn_size * sizes.growth_rate
    yield "features.conv0", (num_features, MAX_IMAGES, 7, 7)
    yield "features.norm0", (num_features,)
    for number, num_layers in enumerate(sizes.layers_per_block, 1):
        for layer_number in range(1, num_layers + 1):
            layer = f"features.denseblock{number}.denselayer{layer_number}"
            yield f"{layer}.norm1", (num_features,)
            yield f"{layer}.conv1", (num_bottleneck, num_features, 1, 1)
            yield f"{layer}.norm2", (num_bottleneck,)
            yield f"{layer}.conv2", (sizes.growth_rate, num_bottleneck, 3, 3)
            num_features += sizes.growth_rate
        if number < len(sizes.layers_per_block):
            transition = f"features.transition{number}"
            yield f"{transition}.norm", (num_features,)
            yield f"{transition}.conv", (num_features // 2, num_features, 1, 1)
            num_features //= 2
    yield "features.norm5", (num_features,)
    yield "classifier", (num_labels, num_features)
