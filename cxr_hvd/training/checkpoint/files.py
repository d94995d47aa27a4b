"""The files of a checkpoint are checked before they are believed: damaged, of another model, or no files at all.

Owns which tensors each file must hold. Checks headers alone: what lies behind them has no checksum. Which
checkpoint is taken is `resume`'s matter.
"""

from collections.abc import Iterable
from pathlib import Path

import safetensors
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from cxr_hvd.comm.sites import Topology
from cxr_hvd.errors import CheckpointError
from cxr_hvd.files import open_plain
from cxr_hvd.partial.plan import Scope, SharingPlan
from cxr_hvd.partial.tensor_spec import Kind, TensorSpec
from cxr_hvd.terminal import shown
from cxr_hvd.training.checkpoint.record import CheckpointRecord, read_checkpoint_record

NAMES_OF_DTYPE = {"float32": "F32", "float64": "F64", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}
DAMAGES = (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError)

TRAINED = (Scope.SHARED, Scope.PRIVATE)
Held = dict[str, tuple[list[int], str]]
"""Shape and type of each tensor of a file, as safetensors calls them."""


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        open_plain(path, follows_links=True).close()  # a pipe would hang who opens it
        return load_file(path)
    except DAMAGES as error:
        raise CheckpointError(
            f"{path}: cannot read it ({type(error).__name__}); use an earlier checkpoint"
        ) from error


def check_whole(checkpoint: Path, step: int, plan: SharingPlan, topology: Topology) -> None:
    """Raise where not all that this rank needs of a checkpoint is there, of this step, run and model.

    Raises:
        CheckpointError: it says what is wrong.
    """
    record, rank = read_checkpoint_record(checkpoint), topology.rank_in_site
    num_ranks = len(topology.ranks_of_site)
    if record.step != step:
        raise CheckpointError(f"it is of step {record.step}")
    if record.num_ranks_of_site != num_ranks:
        raise CheckpointError(f"it is of {record.num_ranks_of_site} ranks of its site, there are {num_ranks} now")
    shared, specs = set(plan.names(Scope.SHARED)), [planned.spec for planned in plan.tensors]
    held_by = {name: _held_by(checkpoint / f"{name}.safetensors") for name in _names_of(checkpoint, record, rank)}
    for name, held in held_by.items():
        file = f"{name}.safetensors"
        if name in ("shared", "private"):
            _check_tensors(file, held, [spec for spec in specs if (spec.name in shared) == (name == "shared")])
        elif name == f"weights-{rank}":
            _check_tensors(file, held, specs)
        elif name == f"mean-{rank}":
            _check_tensors(file, held, [spec for spec in specs if spec.name in held])
        elif name == f"optimizer-{rank}":
            _check_moments(file, held, plan)


def _names_of(checkpoint: Path, record: CheckpointRecord, rank: int) -> list[str]:
    names = ["shared", "private", f"optimizer-{rank}"]
    names += [f"exchange-{rank}"] if record.has_exchange else []
    names += [f"mean-{rank}"] if record.has_mean else []
    return names + ([f"weights-{rank}"] if (checkpoint / f"weights-{rank}.safetensors").exists() else [])


def _held_by(path: Path) -> Held:
    try:
        open_plain(path, follows_links=True).close()  # a pipe would hang who opens it
        with safe_open(path, "pt") as file:  # checks header and length
            slices = {name: file.get_slice(name) for name in list(file.keys())}
            return {name: (part.get_shape(), part.get_dtype()) for name, part in slices.items()}
    except DAMAGES as error:
        raise CheckpointError(f"{path.name} cannot be read ({type(error).__name__})") from error


def _check_tensors(file: str, held: Held, specs: Iterable[TensorSpec]) -> None:
    wanted = {spec.name: (list(spec.shape), NAMES_OF_DTYPE.get(spec.dtype, spec.dtype)) for spec in specs}
    for name in sorted(wanted.keys() | held.keys()):
        is_held, expected = held.get(name, "none"), wanted.get(name, "none")
        if is_held != expected:
            raise CheckpointError(f"{file}: tensor {shown(name)}: expected {expected}, found {shown(is_held)}")


def _check_moments(file: str, held: Held, plan: SharingPlan) -> None:
    """Raise where not every trained parameter has the same moments, each of its shape or a single number."""
    trained = [p.spec for p in plan.tensors if p.spec.kind is Kind.PARAMETER and p.scope in TRAINED]
    moments_of: dict[str, set[str]] = {spec.name: set() for spec in trained}
    shapes = {spec.name: list(spec.shape) for spec in trained}
    for name, (shape, _) in held.items():
        parameter, _, moment = name.rpartition("/")
        if parameter not in moments_of or shape not in ([], shapes[parameter]):
            raise CheckpointError(f"{file}: {shown(name)} of shape {shown(shape)} is of another model")
        moments_of[parameter].add(moment)
    if len({frozenset(moments) for moments in moments_of.values()}) > 1:
        raise CheckpointError(f"{file}: some parameters have moments that others have not")
