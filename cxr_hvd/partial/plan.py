"""Which tensors all sites average and which stay at their site. Pure: names in, a plan out.

A block is a named part of the network (`stem`, `denseblock1`, ..., `head`). Private ones are chosen by a preset,
by block name, or by glob over block and tensor names. BatchNorm's running statistics are buffers, which an
optimizer never sees and a careless average forgets: where they go is said by policy (decision 0004).
"""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from cxr_hvd.ledger.plan_record import row_lengths
from cxr_hvd.partial.choice import chosen_names
from cxr_hvd.partial.fragments import assign_fragments, choose_delay, describe_fragments
from cxr_hvd.partial.tensor_spec import Kind, TensorSpec

BatchNormPolicy = Literal["with-block", "private", "shared"]
Exchange = Literal["weights", "gradients"]
Wire = Literal["float32", "bfloat16", "float16", "int8"]
Content = Literal["weights", "gradients", "statistics", "moments"]
BYTES_OF: dict[Wire, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
SCALE_BYTES = 4


class Scope(StrEnum):
    """How far a tensor travels.

    SHARED tensors are averaged over all sites. PRIVATE ones are averaged over the ranks of their own site, and
    with one rank a site they enter no collective at all. FROZEN ones are alike at all sites from the start, and
    no step changes them: nothing travels. LOCAL ones are counters that every rank advances alike, and what is
    frozen and private.
    """

    SHARED = "shared"
    PRIVATE = "private"
    FROZEN = "frozen"
    LOCAL = "local"


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor and how far it travels."""

    spec: TensorSpec
    scope: Scope


@dataclass(frozen=True)
class Buffer:
    """Tensors of one block that travel side by side, as one.

    Attributes:
        content: what travels of the tensors.
        block: the block that they belong to.
        specs: the tensors, in the model's order.
        dtype: the type that their numbers travel in.
        scope: how far.
        moment: which of the optimizer's running means travels, by its name in torch; empty elsewhere.
        fragment: which fragment of an overlapped average it travels in, from 0.
        piece: which piece of the block it is, where several fragments share the block; empty elsewhere.
    """

    content: Content
    block: str
    specs: tuple[TensorSpec, ...]
    dtype: Wire
    scope: Scope
    moment: str = ""
    fragment: int = 0
    piece: str = ""

    @property
    def purpose(self) -> str:
        """What travels, as the traffic table knows it."""
        return self.content if self.scope is Scope.SHARED else "private"

    @property
    def name(self) -> str:
        """The block; `MOMENT.BLOCK` or `statistics.BLOCK` where it has another buffer of that purpose.

        A piece of a block says which, as in `denseblock3 (2 of 3)`.
        """
        if self.moment:
            return f"{self.moment}.{self.block}"
        is_second = self.content == "statistics" and self.scope is Scope.PRIVATE
        return (f"statistics.{self.block}" if is_second else self.block) + self.piece

    @property
    def num_elements(self) -> int:
        return sum(spec.num_elements for spec in self.specs)

    @property
    def num_bytes(self) -> int:
        """What one rank hands over in one exchange."""
        num_scales = len(self.rows) if self.dtype == "int8" else 0
        return self.num_elements * BYTES_OF[self.dtype] + num_scales * SCALE_BYTES

    @property
    def rows(self) -> list[int]:
        """How many numbers have each of the scales in common that the int8 wire sends."""
        return [length for spec in self.specs for length in row_lengths(spec.shape)]

    def cut(self, fragments: Mapping[str, int]) -> Iterable["Buffer"]:
        """Cut it where one fragment ends and the next begins; `fragments` are by the tensors' names."""
        members: dict[int, list[TensorSpec]] = {}
        for spec in self.specs:
            members.setdefault(fragments[spec.name], []).append(spec)
        for number, (fragment, specs) in enumerate(members.items(), 1):
            piece = f" ({number} of {len(members)})" if len(members) > 1 else ""
            yield replace(self, specs=tuple(specs), fragment=fragment, piece=piece)


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
        overlap: whether averages travel in fragments while steps go on, and take `delay` steps (decision 0035).
    """

    tensors: tuple[PlannedTensor, ...]
    every: int = 1
    exchange: Exchange = "weights"
    wire: Wire = "float32"
    moments: tuple[str, ...] = ()
    overlap: bool = False

    @property
    def delay(self) -> int:
        """Steps from the begin of an overlapped average to its end, and to the next one's begin; 0 without."""
        return choose_delay(self.every) if self.overlap else 0

    @property
    def num_fragments(self) -> int:
        """In how many fragments an average travels: one after the other, each once in `every` steps."""
        return self.every // self.delay if self.overlap else 1

    def names(self, scope: Scope) -> tuple[str, ...]:
        """Return the names of the tensors of one scope, in the model's order."""
        return tuple(planned.spec.name for planned in self.tensors if planned.scope is scope)

    def buffers(self, scopes: Iterable[Scope] = (Scope.SHARED, Scope.PRIVATE)) -> list[Buffer]:
        """List all that one exchange moves: between all sites what is shared, within a site what is private.

        Exchanges, ledger, `plan.json` and tables all read this list: nothing else says what is sent.

        Returns:
            Scope by scope, content by content, and then block by block in the model's order; where averages
            overlap, a block that lies in several fragments has a buffer in each.
        """
        parameter, statistic = (Kind.PARAMETER,), (Kind.STATISTIC,)
        contents: list[tuple[Content, str, Wire, tuple[Kind, ...]]]
        if self.exchange == "gradients":
            contents = [("gradients", "", self.wire, parameter), ("statistics", "", "float32", statistic)]
        else:
            contents = [("weights", "", self.wire, parameter + statistic)]
        contents += [("moments", moment, "float32", parameter) for moment in self.moments]
        movable = (Kind.PARAMETER, Kind.STATISTIC)
        fragments = {
            name: fragment
            for scope in scopes
            for name, fragment in assign_fragments(self._blocks(scope, movable), self.num_fragments).items()
        }
        return [
            buffer
            for scope in scopes
            for content, moment, wire, kinds in contents
            for block, specs in self._blocks(scope, kinds).items()
            for buffer in Buffer(
                content, block, specs, wire if scope is Scope.SHARED else "float32", scope, moment
            ).cut(fragments)
        ]

    def _blocks(self, scope: Scope, kinds: Container[Kind]) -> dict[str, tuple[TensorSpec, ...]]:
        """Return the tensors of one scope and of these kinds, block by block, in the model's order."""
        blocks: dict[str, tuple[TensorSpec, ...]] = {}
        for planned in self.tensors:
            if planned.scope is scope and planned.spec.kind in kinds:
                blocks[planned.spec.block] = (*blocks.get(planned.spec.block, ()), planned.spec)
        return blocks

    @property
    def pace(self) -> str:
        """How often, and how, an average travels, in words."""
        pace = "every step" if self.every == 1 else f"every {self.every} steps"
        return f"{pace}, {describe_fragments(self.num_fragments, self.delay)}" if self.overlap else pace

    def __str__(self) -> str:
        """Return what leaves a rank, block by block, as a table of plain text."""
        width = max([len("block"), *(len(row.block) for row in self.summary())])
        lines = [
            f"each rank hands over {self.bytes_per_exchange() / 1e6:,.1f} MB of {self.exchange} {self.pace}",
            f"{'block':<{width}}  scope    tensors   parameters   bytes a step",
        ]
        for row in self.summary():
            counts = f"{row.num_tensors:>7}  {row.num_parameters:>11,}  {row.bytes_per_step:>13,.0f}"
            lines.append(f"{row.block:<{width}}  {row.scope:<7}  {counts}")
        return "\n".join(lines)

    def num_exchanges(self, num_steps: int) -> int:
        """Return how often a run of so many steps exchanges: every `every` steps, and after the last."""
        return -(-num_steps // self.every)

    def bytes_per_exchange(self) -> int:
        """Return what one rank hands to all sites in one exchange."""
        return sum(buffer.num_bytes for buffer in self.buffers((Scope.SHARED,)))

    def items(self) -> dict[str, str]:
        """Say each tensor in one line, for the contract between sites."""
        lines = {
            f"plan {planned.spec.name}": f"{planned.scope} {planned.spec.dtype} {list(planned.spec.shape)}"
            for planned in self.tensors
        }
        return lines | {"plan order": " ".join(planned.spec.name for planned in self.tensors)}

    def summary(self) -> list[BlockSummary]:
        """Sum up by block and scope. Bytes are what one rank hands to all sites in a step, on average."""
        rows: dict[tuple[str, Scope], list[TensorSpec]] = {}
        for planned in self.tensors:
            if planned.spec.kind is not Kind.COUNTER:
                rows.setdefault((planned.spec.block, planned.scope), []).append(planned.spec)
        bytes_of_block: dict[str, float] = {}
        for buffer in self.buffers((Scope.SHARED,)):
            num_bytes = buffer.num_bytes / self.every
            bytes_of_block[buffer.block] = bytes_of_block.get(buffer.block, 0.0) + num_bytes
        return [
            BlockSummary(
                block=block,
                scope=scope,
                num_tensors=len(members),
                num_parameters=sum(spec.num_elements for spec in members if spec.kind is Kind.PARAMETER),
                bytes_per_step=bytes_of_block[block] if scope is Scope.SHARED else 0.0,
            )
            for (block, scope), members in rows.items()
        ]


def build_plan(
    specs: Iterable[TensorSpec],
    private: str | Iterable[str] = "none",
    batchnorm: BatchNormPolicy = "with-block",
    every: int = 1,
    exchange: Exchange = "weights",
    wire: Wire = "float32",
    moments: Iterable[str] = (),
    frozen: Iterable[str] = (),
    overlap: bool = False,
) -> SharingPlan:
    """Decide for every tensor of a model how far it travels.

    Args:
        specs: the tensors, in the model's order.
        private: a preset, or block names and globs over block and tensor names.
        batchnorm: where running statistics go: as the parameters of their block, or all one way.
        every: steps from one exchange to the next.
        exchange, wire, moments, overlap: as in `SharingPlan`.
        frozen: block names and globs of the tensors that no step changes.

    Raises:
        ConfigError: a name or glob matches nothing.
    """
    specs = tuple(specs)
    blocks = list(dict.fromkeys(spec.block for spec in specs))
    private_names = chosen_names(specs, blocks, private, "sharing.private")
    frozen_names = chosen_names(specs, blocks, tuple(frozen), "model.freeze")
    statistic_scopes: Mapping[str, Scope] = {"private": Scope.PRIVATE, "shared": Scope.SHARED}

    def scope_of(spec: TensorSpec) -> Scope:
        scope = Scope.PRIVATE if spec.name in private_names else Scope.SHARED
        if spec.kind is Kind.STATISTIC:
            scope = statistic_scopes.get(batchnorm, scope)
        if spec.name in frozen_names and spec.kind is not Kind.COUNTER:
            return Scope.FROZEN if scope is Scope.SHARED else Scope.LOCAL
        return Scope.LOCAL if spec.kind is Kind.COUNTER else scope

    return SharingPlan(
        tuple(PlannedTensor(spec, scope_of(spec)) for spec in specs),
        every,
        exchange,
        wire,
        tuple(moments),
        overlap,
    )
