"""The blocks of a network: one rule for any `torch.nn.Module`, and its tensors listed block by block.

A **weight layer** is a module that has a weight of two or more dimensions of its own: a convolution, a linear
layer, an attention. A **stage** is a module with several of them. The rule (decision 0023):

1. Where one module holds nearly all weight layers, look at its children instead, again and again: so a network
   becomes a row of modules. Where that gives no more than three, and one is half the network, all stages open.
2. What comes before the first stage is `stem`, with class tokens and position embeddings; what comes after the
   last stage is `head`. Where nothing comes before or after, the first and the last module are.
3. Between them each module with a weight layer is a block by its own name (`layer3`, `denseblock2`, `blocks.7`);
   one without, a norm for example, belongs to the block before it.
"""

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from cxr_hvd.errors import ConfigError
from cxr_hvd.partial.tensor_spec import Kind, TensorSpec

NEARLY_ALL = 0.85
NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
Unit = tuple[str, nn.Module]
"""A module and its name in the network."""


def tensor_specs(model: nn.Module, blocks: Mapping[str, Sequence[str]] | None = None) -> list[TensorSpec]:
    """List all parameters and saved buffers of a model, in its own order, each once.

    Buffers that are not saved (`persistent=False`) are no part of the network's state, and never travel.

    Args:
        model: any network, also on the meta device.
        blocks: globs over tensor names for each block; the first that fits counts. None: the rule above.

    Raises:
        ConfigError: a tensor is in none of `blocks`.
    """
    block_of_tensor = assign_blocks(model) if blocks is None else {}
    tied = _tied_names(model)
    saved = model.state_dict(keep_vars=True)
    norms = {name for name, module in model.named_modules() if isinstance(module, NORMS)}

    def spec(name: str, tensor: Tensor, kind: Kind) -> TensorSpec:
        block = block_of_tensor[name] if blocks is None else _named_block(name, blocks)
        dtype = str(tensor.dtype).removeprefix("torch.")
        is_norm = name.rpartition(".")[0] in norms
        aliases = tuple(spec(alias, tensor, kind) for alias in tied.get(name, ()))
        return TensorSpec(name, block, kind, tuple(tensor.shape), dtype, is_norm, aliases)

    def kind_of_buffer(buffer: Tensor) -> Kind:
        return Kind.STATISTIC if buffer.is_floating_point() else Kind.COUNTER

    parameters = [spec(name, tensor, Kind.PARAMETER) for name, tensor in model.named_parameters()]
    return parameters + [spec(name, t, kind_of_buffer(t)) for name, t in model.named_buffers() if name in saved]


def _tied_names(model: nn.Module) -> dict[str, list[str]]:
    """Return the further names of each parameter that a model uses more than once."""
    first_names = {id(parameter): name for name, parameter in model.named_parameters()}
    names: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name != first_names[id(parameter)]:
            names.setdefault(first_names[id(parameter)], []).append(name)
    return names


def assign_blocks(model: nn.Module) -> dict[str, str]:
    """Return the block of every parameter and buffer of a network, by all its names."""
    units, loose = _row_of_units(model)
    names = _name_units(units) if units else []
    blocks = dict.fromkeys(loose, "stem" if units else "head")
    for (path, module), block in zip(units, names, strict=True):
        blocks |= {_joined(path, name): block for name, _ in _named_tensors(module)}
    return blocks


def _row_of_units(model: nn.Module) -> tuple[list[Unit], list[str]]:
    """Open modules that hold nearly all weight layers; return their children in a row, and loose tensors."""
    units, loose = _opened(("", model))
    total = _num_weight_layers(model)
    while units:
        biggest = max(units, key=lambda unit: _num_weight_layers(unit[1]))
        if not _is_stage(biggest[1]) or _num_weight_layers(biggest[1]) < NEARLY_ALL * total:
            break
        units, loose = _open_one(units, loose, biggest)
    deepest = max((_num_weight_layers(module) for _, module in units), default=0)
    if len(units) < 3 or (len(units) == 3 and 2 * deepest > total):  # no row yet: as VGG, with two deep modules
        for unit in [unit for unit in units if _is_stage(unit[1])]:
            units, loose = _open_one(units, loose, unit)
    return units, loose


def _open_one(units: list[Unit], loose: list[str], unit: Unit) -> tuple[list[Unit], list[str]]:
    position = units.index(unit)
    children, more_loose = _opened(unit)
    return units[:position] + children + units[position + 1 :], loose + more_loose


def _opened(unit: Unit) -> tuple[list[Unit], list[str]]:
    """Return a module's children that hold tensors, and the names of tensors that are its own."""
    path, module = unit
    children = [
        (_joined(path, name), child) for name, child in module.named_children() if any(_named_tensors(child))
    ]
    return children, [_joined(path, name) for name, _ in _named_tensors(module, recurse=False)]


def _name_units(units: Sequence[Unit]) -> list[str]:
    """Return the block of each module of a row."""
    has_weights = [_num_weight_layers(module) > 0 for _, module in units]
    stages = [number for number, (_, module) in enumerate(units) if _is_stage(module)]
    layers = [number for number, has_weight in enumerate(has_weights) if has_weight] or [*range(len(units))]
    if stages:
        num_before = stages[0] or 1
        first_of_head = stages[-1] + 1 if any(has_weights[stages[-1] + 1 :]) else stages[-1]
    else:
        num_before, first_of_head = layers[0] + 1, layers[-1]
    names: list[str] = []
    for number, (path, _) in enumerate(units):
        if number < num_before and number < first_of_head:
            names.append("stem")
        elif number >= first_of_head:
            names.append("head")
        else:
            names.append(_block_name(path, units) if has_weights[number] else names[-1])
    return names


def _block_name(path: str, units: Sequence[Unit]) -> str:
    """Return a module's own name; with what it is part of where that is a number, and whole where two share it."""
    parts = path.split(".")
    start = len(parts) - 1
    while start and parts[start].isdigit():
        start -= 1
    name = ".".join(parts[start:])
    is_shared = sum(other == name or other.endswith(f".{name}") for other, _ in units) > 1
    return path if is_shared or name in ("stem", "head") else name


def _named_block(name: str, blocks: Mapping[str, Sequence[str]]) -> str:
    for block, patterns in blocks.items():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            return block
    raise ConfigError(
        f"blocks: tensor '{name}' is in none of {', '.join(blocks)}; add a glob that fits it, or a last block "
        "of ['*'] for all the rest"
    )


def _num_weight_layers(module: nn.Module) -> int:
    return sum(any(p.dim() > 1 for p in part.parameters(recurse=False)) for part in module.modules())


def _is_stage(module: nn.Module) -> bool:
    return _num_weight_layers(module) > 1


def _named_tensors(module: nn.Module, recurse: bool = True) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=recurse, remove_duplicate=False)
    yield from module.named_buffers(recurse=recurse, remove_duplicate=False)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
