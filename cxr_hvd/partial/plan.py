"""Which tensors all sites average and which stay at their site. Pure: names in, a plan out.

A block is a named part of the network (`stem`, `denseblock1`, ..., `head`). Private ones are chosen by block
name, or by glob over block and tensor names. BatchNorm's running statistics are buffers, which an optimizer
never sees and a careless average forgets: where they go is said by policy (decision 0004).
"""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from math import prod
from typing import Any, Literal

from cxr_hvd.errors import ConfigError, nearest

BatchNormPolicy = Literal["with-block", "private", "shared"]
Exchange = Literal["weights", "gradients"]
Wire = Literal["float32", "bfloat16", "float16"]
BYTES_OF: dict[Wire, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


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
        return prod(self.shape)


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor and how far it travels."""

    spec: TensorSpec
    scope: Scope


@dataclass(frozen=True)
class Buffer:
    """Tensors of one block that travel side by side, as one.

    Attributes:
        purpose: what travels, as `traffic` knows it: weights, gradients, statistics, moments, or private.
        name: the block; `statistics.BLOCK` or `MOMENT.BLOCK` where the block has another buffer of that purpose.
        num_elements: how many numbers.
        dtype: the type that they travel in.
        scope: how far.
    """

    purpose: str
    name: str
    num_elements: int
    dtype: Wire
    scope: Scope

    @property
    def num_bytes(self) -> int:
        """What one rank hands over in one exchange."""
        return self.num_elements * BYTES_OF[self.dtype]


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
    """All tensors of a model in its own order, each with its scope, and how the shared ones travel.

    Attributes:
        every: steps from one exchange to the next.
        exchange: whether weights travel after the optimizer's step, or gradients before it.
        wire: the type in which shared tensors travel.
        moments: the optimizer's running means that are averaged beside the weights, by their names in torch.
    """

    tensors: tuple[PlannedTensor, ...]
    every: int = 1
    exchange: Exchange = "weights"
    wire: Wire = "float32"
    moments: tuple[str, ...] = ()

    def names(self, scope: Scope) -> tuple[str, ...]:
        """Return the names of the tensors of one scope, in the model's order."""
        return tuple(planned.spec.name for planned in self.tensors if planned.scope is scope)

    def blocks(self, scope: Scope, kinds: Container[Kind]) -> dict[str, list[TensorSpec]]:
        """Return the tensors of one scope and of these kinds, block by block, in the model's order."""
        members: dict[str, list[TensorSpec]] = {}
        for planned in self.tensors:
            if planned.scope is scope and planned.spec.kind in kinds:
                members.setdefault(planned.spec.block, []).append(planned.spec)
        return members

    def buffers(self) -> list[Buffer]:
        """List all that one exchange moves: between all sites what is shared, within a site what is private."""
        both = (Kind.PARAMETER, Kind.STATISTIC)
        travels: list[tuple[str, str, Wire, tuple[Kind, ...]]] = [("weights", "", self.wire, both)]
        if self.exchange == "gradients":
            travels = [
                ("gradients", "", self.wire, (Kind.PARAMETER,)),
                ("statistics", "statistics.", "float32", (Kind.STATISTIC,)),
            ]
        travels += [("moments", f"{moment}.", "float32", (Kind.PARAMETER,)) for moment in self.moments]
        shared = [
            Buffer(purpose, prefix.removeprefix("statistics.") + block, _num_elements(specs), dtype, Scope.SHARED)
            for purpose, prefix, dtype, kinds in travels
            for block, specs in self.blocks(Scope.SHARED, kinds).items()
        ]
        private = [
            Buffer("private", prefix + block, _num_elements(specs), "float32", Scope.PRIVATE)
            for _, prefix, _, kinds in travels
            for block, specs in self.blocks(Scope.PRIVATE, kinds).items()
        ]
        return shared + private

    def num_exchanges(self, num_steps: int) -> int:
        """Return how often a run of so many steps exchanges: every `every` steps, and after the last."""
        return -(-num_steps // self.every)

    def bytes_per_exchange(self) -> int:
        """Return what one rank hands to all sites in one exchange."""
        return sum(buffer.num_bytes for buffer in self.buffers() if buffer.scope is Scope.SHARED)

    def items(self) -> dict[str, str]:
        """Say each tensor in one line, for the contract between sites."""
        said = {
            f"plan {planned.spec.name}": f"{planned.scope} {planned.spec.dtype} {list(planned.spec.shape)}"
            for planned in self.tensors
        }
        return said | {"plan order": " ".join(planned.spec.name for planned in self.tensors)}

    def as_json(self) -> dict[str, Any]:
        """Return the whole plan as plain values: what `plan.json` holds and the audit of a ledger reads."""
        return {
            "exchange": self.exchange,
            "wire": self.wire,
            "every": self.every,
            "moments": list(self.moments),
            "tensors": [
                {
                    "name": planned.spec.name,
                    "block": planned.spec.block,
                    "kind": str(planned.spec.kind),
                    "shape": list(planned.spec.shape),
                    "dtype": planned.spec.dtype,
                    "scope": str(planned.scope),
                }
                for planned in self.tensors
            ],
            "buffers": [
                {
                    "purpose": buffer.purpose,
                    "block": buffer.name,
                    "num_elements": buffer.num_elements,
                    "dtype": buffer.dtype,
                    "scope": str(buffer.scope),
                    "bytes_per_exchange": buffer.num_bytes,
                }
                for buffer in self.buffers()
            ],
        }

    def summary(self) -> list[BlockSummary]:
        """Sum up by block and scope. Bytes are what one rank hands to all sites in a step, on average."""
        rows: dict[tuple[str, Scope], list[TensorSpec]] = {}
        for planned in self.tensors:
            if planned.scope is not Scope.LOCAL:
                rows.setdefault((planned.spec.block, planned.scope), []).append(planned.spec)
        bytes_of_block: dict[str, float] = {}
        for buffer in self.buffers():
            if buffer.scope is Scope.SHARED:
                block = buffer.name.rpartition(".")[2]
                bytes_of_block[block] = bytes_of_block.get(block, 0.0) + buffer.num_bytes / self.every
        return [
            BlockSummary(
                block=block,
                scope=scope,
                num_tensors=len(members),
                num_parameters=_num_elements(spec for spec in members if spec.kind is Kind.PARAMETER),
                bytes_per_step=bytes_of_block[block] if scope is Scope.SHARED else 0.0,
            )
            for (block, scope), members in rows.items()
        ]


def _num_elements(specs: Iterable[TensorSpec]) -> int:
    return sum(spec.num_elements for spec in specs)


def build_plan(
    specs: Iterable[TensorSpec],
    private_patterns: Iterable[str],
    batchnorm: BatchNormPolicy = "with-block",
    every: int = 1,
    exchange: Exchange = "weights",
    wire: Wire = "float32",
    moments: Iterable[str] = (),
) -> SharingPlan:
    """Decide for every tensor of a model how far it travels.

    Args:
        specs: the tensors, in the model's order.
        private_patterns: block names, or globs over block names and tensor names.
        batchnorm: where running statistics go: as the parameters of their block, or all one way.
        every: steps from one exchange to the next.
        exchange, wire, moments: as in `SharingPlan`.

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

    return SharingPlan(
        tuple(PlannedTensor(spec, scope_of(spec)) for spec in specs), every, exchange, wire, tuple(moments)
    )


def _matches(spec: TensorSpec, pattern: str) -> bool:
    return fnmatchcase(spec.block, pattern) or fnmatchcase(spec.name, pattern)
