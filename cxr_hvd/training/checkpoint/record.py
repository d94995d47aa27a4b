"""`state.json` of a checkpoint: what it says besides tensors, in one form for its writer and its readers."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from cxr_hvd.config.sections import SiteName
from cxr_hvd.errors import CheckpointError
from cxr_hvd.files import read_plain
from cxr_hvd.record import Record, Step, first_problem
from cxr_hvd.training.history import History
from cxr_hvd.training.loss_scale import LossScaleState
from cxr_hvd.training.network_record import NetworkRecord

STATE_FILE = "state.json"
MAX_STATE_BYTES = 1 << 16
MAX_RANKS = 1 << 16


class CheckpointRecord(Record):
    """The same on all ranks of a site; what a checkpoint of an earlier version does not say has its neutral value.

    Attributes:
        step: steps that were done when it was taken.
        site: whose it is.
        num_ranks_of_site: how many ranks wrote it.
        has_exchange: whether each rank kept what its averager needs.
        has_mean: whether each rank kept a running mean of the weights.
        num_skipped_in_a_row: steps without an update, up to this one.
        loss_scale: of fp16; None otherwise.
        validation: the validations before it.
        network: what the network is; None in checkpoints of earlier versions.
        is_common: whether the sites' shared tensors are alike; None in checkpoints of earlier versions, where they
            are after an average.
    """

    step: Step
    site: SiteName
    num_ranks_of_site: Annotated[int, Field(ge=1, le=MAX_RANKS)]
    has_exchange: bool = False
    has_mean: bool = False
    num_skipped_in_a_row: Step = 0
    loss_scale: LossScaleState | None = None
    validation: History = History()
    network: NetworkRecord | None = None
    is_common: bool | None = None


def read_checkpoint_record(checkpoint: Path) -> CheckpointRecord:
    """Read `state.json` of a checkpoint.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
    """
    try:
        return CheckpointRecord.model_validate_json(read_plain(checkpoint / STATE_FILE, MAX_STATE_BYTES))
    except OSError as error:
        why = str(error.strerror)
    except ValidationError as error:
        why = first_problem(error)
    raise CheckpointError(f"{checkpoint}: expected a checkpoint with {STATE_FILE}, found none to read ({why})")
