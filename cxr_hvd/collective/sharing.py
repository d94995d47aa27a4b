"""Which tensors all sites average and which stay at their site. Pure: names in, a plan out.

A block is a named part of the network (`stem`, `denseblock1`, ..., `head`). Private ones are chosen by block
name, or by glob over block and tensor names. BatchNorm's running statistics are buffers, which an optimizer
never sees and a careless average forgets: where they go is said by policy (decision 0004).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Literal

from cxr_hvd.errors import ConfigError, nearest

BatchNormPolicy = Literal["with-block", "private", "shared"]
FLOAT32_BYTES = 4


class Scope(StrEnum):
    """How far a tensor travels.

    SHARED tensors are averaged over all sites. PRIVATE ones are averaged over the ranks of their own site, and
    with one rank a site they enter no collective at all. LOCAL ones are counters that every rank advances alike.
    """

    SHARED = "shared"
    PRIVATE = "private"
    LOCAL = "local"


class Kind(StrEnum):
    """What a tensor is to the network."""

    PARAMETER = "parameter"
    STATISTIC = "statistic"
    COUNTER = "counter"


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a model, without its values."""

    name: str
    block: str
    kind: Kind
    shape: tuple[int, ...]
    dtype: str

    @property
    def num_elements(self) -> int:
        product = 1
        for side in self.shape:
            product *= side
        return product


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor and how far it travels."""

    spec: TensorSpec
    scope: Scope


@dataclass(frozen=True)
class BlockSummary:
    """One row of the printed plan; a block whose tensors differ in scope gives two rows."""

    block: str
    scope: Scope
    num_tensors: int
    num_parameters: int
    bytes_per_step: float


@dataclass(frozen=True)
class SharingPlan:
    """All tensors of a model in its own order, each with its scope. They are averaged after `every` steps."""

    tensors: tuple[PlannedTensor, ...]
    every: int = 1

    def names(self, scope: Scope) -> tuple[str, ...]:
        """Return the names of the tensors of one scope, in the model's order."""
        return tuple(planned.spec.name for planned in self.tensors if planned.scope is scope)

    def items(self) -> dict[str, str]:
        """Say each tensor in one line, for the contract between sites."""
        said = {
            f"plan {planned.spec.name}": f"{planned.scope} {planned.spec.dtype} {list(planned.spec.shape)}"
            for planned in self.tensors
        }
        return said | {"plan order": " ".join(planned.spec.name for planned in self.tensors)}

    def summary(self) -> list[BlockSummary]:
        """Sum up by block and scope. Bytes are what one rank hands to a collective in a step, on average."""
        rows: dict[tuple[str, Scope], list[PlannedTensor]] = {}
        for planned in self.tensors:
            if planned.scope is not Scope.LOCAL:
                rows.setdefault((planned.spec.block, planned.scope), []).append(planned)
        return [
            BlockSummary(
                block=block,
                scope=scope,
                num_tensors=len(members),
                num_parameters=sum(m.spec.num_elements for m in members if m.spec.kind is Kind.PARAMETER),
                bytes_per_step=FLOAT32_BYTES * sum(m.spec.num_elements for m in members) / self.every
                if scope is Scope.SHARED
                else 0.0,
            )
            for (block, scope), members in rows.items()
        ]


def build_plan(
    specs: Iterable[TensorSpec],
    private_patterns: Iterable[str],
    batchnorm: BatchNormPolicy = "with-block",
    every: int = 1,
) -> SharingPlan:
    """Decide for every tensor of a model how far it travels.

    Args:
        specs: the tensors, in the model's order.
        private_patterns: block names, or globs over block names and tensor names.
        batchnorm: where running statistics go: as the parameters of their block, or all one way.
        every: steps from one average to the next.

    Raises:
        ConfigError: a pattern matches nothing.
    """
    specs = tuple(specs)
    patterns = tuple(private_patterns)
    blocks = list(dict.fromkeys(spec.block for spec in specs))
    for pattern in patterns:
        if not any(_matches(spec, pattern) for spec in specs):
            raise ConfigError(
                f"sharing.private: '{pattern}' matches no block and no tensor"
                f"{nearest(pattern, blocks) or '; blocks: ' + ', '.join(blocks)}"
            )
    statistic_scopes: Mapping[str, Scope] = {"private": Scope.PRIVATE, "shared": Scope.SHARED}

    def scope_of(spec: TensorSpec) -> Scope:
        if spec.kind is Kind.COUNTER:
            return Scope.LOCAL
        by_block = Scope.PRIVATE if any(_matches(spec, pattern) for pattern in patterns) else Scope.SHARED
        return statistic_scopes.get(batchnorm, by_block) if spec.kind is Kind.STATISTIC else by_block

    return SharingPlan(tuple(PlannedTensor(spec, scope_of(spec)) for spec in specs), every)


def _matches(spec: TensorSpec, pattern: str) -> bool:
    return fnmatchcase(spec.block, pattern) or fnmatchcase(spec.name, pattern)
