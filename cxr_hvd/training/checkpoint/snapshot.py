"""What a checkpoint keeps: a rank's snapshot of its training state laid out in files, and read back.

The site's leader keeps the weights in `shared.safetensors` and `private.safetensors`; each rank of the site
keeps its `optimizer-RANK.safetensors`, `exchange-RANK.safetensors` where a short wire keeps rounding errors,
`mean-RANK.safetensors` where a running mean of the weights is kept, and, between two averages, when ranks of a
site differ, `weights-RANK.safetensors`. `state.json` says the rest. No pickle is written or read.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from cxr_hvd.comm.sites import Topology
from cxr_hvd.errors import CheckpointError
from cxr_hvd.partial.plan import Scope, SharingPlan
from cxr_hvd.training.checkpoint.files import load_tensors
from cxr_hvd.training.checkpoint.record import CheckpointRecord, read_checkpoint_record
from cxr_hvd.training.history import History
from cxr_hvd.training.network_record import NetworkRecord
from cxr_hvd.training.state import StateSnapshot, TrainingState, load_weights

Files = dict[str, dict[str, Tensor]]
"""From the name of a file to the tensors that it holds."""

SHARED_FILE, PRIVATE_FILE = "shared.safetensors", "private.safetensors"
WEIGHT_FILES = (SHARED_FILE, PRIVATE_FILE)


@dataclass(frozen=True)
class Snapshot:
    """One rank's part of a checkpoint, before it is written.

    Attributes:
        record: the same on all ranks of the site; its leader writes it.
        files: tensors that nobody changes any more.
    """

    record: CheckpointRecord
    files: Files


def take_snapshot(
    state: TrainingState,
    topology: Topology,
    plan: SharingPlan,
    step: int,
    history: History,
    network: NetworkRecord | None = None,
) -> Snapshot:
    """Copy what this rank keeps after so many steps of a run. Not collective.

    Args:
        step: steps that are done.
        history: the validations so far.
        network: what the network is.
    """
    content = state.snapshot(has_weights=topology.is_site_leader or not state.averager.is_common)
    record = CheckpointRecord(
        step=step,
        site=topology.site,
        num_ranks_of_site=len(topology.ranks_of_site),
        has_exchange=bool(content.exchange),
        has_mean=content.mean is not None,
        num_skipped_in_a_row=content.num_skipped_in_a_row,
        loss_scale=content.loss_scale,
        validation=history,
        network=network and network.model_copy(update={"step": step}),
        is_common=content.is_common,
    )
    return Snapshot(record, lay_out(content, topology, plan))


def lay_out(content: StateSnapshot, topology: Topology, plan: SharingPlan) -> Files:
    """Deal a rank's snapshot out to the files that it writes. Pure."""
    rank, shared = topology.rank_in_site, set(plan.names(Scope.SHARED))
    files: Files = {}
    if topology.is_site_leader:
        files[SHARED_FILE] = {name: t for name, t in content.weights.items() if name in shared}
        files[PRIVATE_FILE] = {name: t for name, t in content.weights.items() if name not in shared}
    elif content.weights:
        files[file_of_rank("weights", rank)] = content.weights
    files[file_of_rank("optimizer", rank)] = content.optimizer
    if content.exchange:
        files[file_of_rank("exchange", rank)] = content.exchange
    if content.mean is not None:
        files[file_of_rank("mean", rank)] = content.mean
    return files


def read_snapshot(checkpoint: Path, record: CheckpointRecord, rank_in_site: int) -> StateSnapshot:
    """Read what `lay_out` put into a rank's files.

    Raises:
        CheckpointError: a file cannot be read.
    """

    def load(kind: str) -> dict[str, Tensor]:
        return load_tensors(checkpoint / file_of_rank(kind, rank_in_site))

    has_own_weights = (checkpoint / file_of_rank("weights", rank_in_site)).exists()
    return StateSnapshot(
        weights=load("weights") if has_own_weights else _load_weights(checkpoint),
        optimizer=load("optimizer"),
        exchange=load("exchange") if record.has_exchange else {},
        mean=load("mean") if record.has_mean else None,
        loss_scale=record.loss_scale,
        num_skipped_in_a_row=record.num_skipped_in_a_row,
        is_common=bool(record.is_common),
    )


def restore_snapshot(checkpoint: Path, rank_in_site: int, state: TrainingState) -> CheckpointRecord:
    """Put a rank's part of a checkpoint back into its training state; return the checkpoint's record.

    Raises:
        CheckpointError: a file cannot be read, or is of another model or run.
    """
    record = read_checkpoint_record(checkpoint)
    content = read_snapshot(checkpoint, record, rank_in_site)
    try:
        state.restore(content, record.step)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from error
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{checkpoint}: is of another model or run ({type(error).__name__}); use an earlier checkpoint"
        ) from error
    return record


def load_judged_weights(checkpoint: Path, model: nn.Module) -> int:
    """Put into a model what of a checkpoint is to be judged or used; return its number of steps.

    That is the running mean of the weights where one was kept, else the weights.

    Raises:
        CheckpointError: a file cannot be read, or is of another model.
    """
    step, tensors = load_judged_tensors(checkpoint)
    try:
        load_weights(model, tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from error
    return step


def load_judged_tensors(checkpoint: Path) -> tuple[int, dict[str, Tensor]]:
    """Read what of a checkpoint is to be judged or used; return its number of steps, and the tensors.

    Raises:
        CheckpointError: a file cannot be read.
    """
    record = read_checkpoint_record(checkpoint)
    tensors = _load_weights(checkpoint)
    if record.has_mean:
        tensors |= load_tensors(checkpoint / file_of_rank("mean", 0))
    return record.step, tensors


def file_of_rank(kind: str, rank_in_site: int) -> str:
    """Return the name of a file that each rank of the site writes for itself."""
    return f"{kind}-{rank_in_site}.safetensors"


def _load_weights(checkpoint: Path) -> dict[str, Tensor]:
    """Read the weights that a site's leader kept."""
    shared, private = (load_tensors(checkpoint / name) for name in WEIGHT_FILES)
    return shared | private
