"""A trained network as one file that stands alone: its tensors as safetensors, its record in the metadata.

Nothing of a file is run. A network that a function of the user's builds is built only if the caller names that
function, too: a file from elsewhere must not choose which code runs here.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import safetensors
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from cxr_hvd.deploy.trained_network import TrainedNetwork
from cxr_hvd.errors import CheckpointError, WeightsError
from cxr_hvd.files import open_plain, replaced_file
from cxr_hvd.models.build import build_model
from cxr_hvd.models.weights import finite
from cxr_hvd.record import first_problem
from cxr_hvd.training.network_record import METADATA_KEY, NetworkRecord
from cxr_hvd.training.state import load_weights

NETWORK_FILE = "network.safetensors"
MAX_METADATA = 1 << 20


def write_network(path: Path, network: TrainedNetwork, tensors: Mapping[str, Tensor] | None = None) -> None:
    """Write a network as one file, whole or not at all.

    Args:
        tensors: these alone, where private blocks are to be left out; None: all of the network's.

    Raises:
        WeightsError: it cannot be written.
    """
    content = dict(network.model.state_dict() if tensors is None else tensors)
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in content.items()}
    try:
        with replaced_file(path) as unfinished:
            save_file(on_cpu, unfinished, network.record.metadata())
    except OSError as error:
        raise WeightsError(f"{path}: cannot write the network ({error.strerror or error})") from error


def read_network(path: str | os.PathLike[str], function: str | None = None) -> TrainedNetwork:
    """Read a network that `write_network` wrote.

    Args:
        function: `package.module:function`, where the file says that this builds the network.

    Raises:
        CxrHvdError: there is no such file, it is no network, or only a part of one.
    """
    record, tensors = read_network_file(Path(path))
    if ":" in record.name and record.name != function:
        raise WeightsError(
            f"{path}: expected a network of this program or its libraries, found one that {record.name} builds: "
            "look at that code, and name it to load_model(function=...) if you trust it"
        )
    model = build_model(record.model, len(record.label_names), seed=0)
    missing = {name for name in model.state_dict() if name not in tensors}
    if missing and record.private_blocks:
        raise WeightsError(
            f"{path}: expected a whole network, found none of its private blocks "
            f"({', '.join(record.private_blocks)}): ask for an export --with-private, or train own ones with "
            "cxr-hvd onboard"
        )
    try:
        load_weights(model, tensors)
    except CheckpointError as error:
        raise WeightsError(f"{path}: {error}") from error
    return TrainedNetwork(model.eval(), record, Path(path))


def read_network_file(path: Path) -> tuple[NetworkRecord, dict[str, Tensor]]:
    """Read what a file says of its network, and its tensors: all of them, or the shared ones alone.

    Raises:
        WeightsError: it cannot be read, is no network of this program, or a number in it is not finite.
    """
    try:
        open_plain(path, follows_links=True).close()  # a pipe would hang who opens it
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        text = metadata.get(METADATA_KEY, "")
        if not text or len(text) > MAX_METADATA:
            raise ValueError("a file that does not say what network it is")
        record = NetworkRecord.model_validate_json(text)
    except ValidationError as error:
        raise WeightsError(f"{path}: expected a record of a network, found {first_problem(error)}") from error
    except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or (
            str(error) if type(error) is ValueError else type(error).__name__
        )
        raise WeightsError(
            f"{path}: expected a network as cxr-hvd export writes, found {why}; a run's folder will do, too"
        ) from error
    return record, dict(finite(tensors, str(path)))
