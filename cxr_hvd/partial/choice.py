"""Choose tensors of a network: by a preset, by block name, or by glob over block and tensor names. Pure."""

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

from cxr_hvd.errors import ConfigError, nearest
from cxr_hvd.partial.tensor_spec import TensorSpec

PRESETS: dict[str, Callable[[TensorSpec, Sequence[str]], bool]] = {
    "none": lambda spec, blocks: False,
    "ends": lambda spec, blocks: spec.block in (*blocks[:2], *blocks[-2:]),
    "stem+head": lambda spec, blocks: spec.block in ("stem", "head"),
    "norms": lambda spec, blocks: spec.is_norm,
    "head": lambda spec, blocks: spec.block == "head",
    "all": lambda spec, blocks: True,
}
"""Names for sets of private tensors, given a tensor and all blocks in the network's order. `ends` is the published
study's experiment D: stem, first stage, last stage, head. `norms` keeps every norm at its site (FedBN, Li et al.,
ICLR 2021), `head` the last layers (FedPer, Arivazhagan et al., 2019)."""


def chosen_names(
    specs: Sequence[TensorSpec], blocks: Sequence[str], choice: str | Iterable[str], key: str
) -> set[str]:
    """Return the names of the tensors that a preset, or block names and globs, choose."""
    if isinstance(choice, str) and choice in PRESETS:
        preset = PRESETS[choice]

        def is_chosen(spec: TensorSpec) -> bool:
            return preset(spec, blocks)

    else:
        patterns = (choice,) if isinstance(choice, str) else tuple(choice)
        for pattern in patterns:
            if not any(_matches(place, pattern) for spec in specs for place in (spec, *spec.aliases)):
                valid = [*PRESETS, *blocks] if isinstance(choice, str) else list(blocks)
                raise ConfigError(
                    f"{key}: '{pattern}' matches no block and no tensor"
                    f"{nearest(pattern, valid) or '; blocks: ' + ', '.join(blocks)}"
                )

        def is_chosen(spec: TensorSpec) -> bool:
            return any(_matches(spec, pattern) for pattern in patterns)

    for spec in specs:
        for alias in spec.aliases:
            if is_chosen(alias) != is_chosen(spec):
                raise ConfigError(
                    f"{key}: {spec.name} and {alias.name} are one tensor (tied weights), and only one of them is "
                    f"chosen: choose both, of blocks {spec.block} and {alias.block}, or none"
                )
    return {spec.name for spec in specs if is_chosen(spec)}


def _matches(spec: TensorSpec, pattern: str) -> bool:
    return fnmatchcase(spec.block, pattern) or fnmatchcase(spec.name, pattern)
