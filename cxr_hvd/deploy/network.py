"""Load a trained network: a model, and what it can speak of.

    network = cxr_hvd.load_model("runs/D/chexpert")
    logits = network.model(images)                       # (B, 1 to 20, H, W), 0 to 1, of network.image_size

Owns which network is meant. What a network says of itself is in `training.network_record`.
"""

import os
from pathlib import Path
from typing import Literal

from cxr_hvd.deploy.combine import AVERAGED, ENSEMBLE, average_networks, ensemble_networks
from cxr_hvd.deploy.network_file import NETWORK_FILE, read_network
from cxr_hvd.deploy.trained_network import TrainedNetwork
from cxr_hvd.errors import CheckpointError, UsageError
from cxr_hvd.files import read_plain
from cxr_hvd.models.build import build_model
from cxr_hvd.training.checkpoint.record import read_checkpoint_record
from cxr_hvd.training.checkpoint.snapshot import load_judged_weights
from cxr_hvd.training.records import Verdict
from cxr_hvd.training.run_folder import LATEST, MAX_LOG_BYTES, RunFolder, sites_in

Checkpoint = Literal["auto", "best", "latest"]

COMBINATIONS = {AVERAGED: average_networks, ENSEMBLE: ensemble_networks}
"""What `site` may be besides a site's name."""


def load_model(
    path: str | os.PathLike[str],
    site: str | None = None,
    checkpoint: Checkpoint = "auto",
    function: str | None = None,
) -> TrainedNetwork:
    """Load a trained network. Not collective.

    Args:
        path: a run's folder (`runs/D`), a site's in it (`runs/D/chexpert`), a network file (`.safetensors`), or
            the folder of an export.
        site: whose network, where a run has several and they differ; `averaged`: private blocks are the mean of
            the sites'; `ensemble`: the mean of the sites' probabilities.
        checkpoint: of a run: `best` by validation, `latest`, or `auto`: the best where there is one.
        function: `package.module:function`, where a network file says that this builds the network.

    Raises:
        CxrHvdError: there is no such network, it is damaged, or it is of an earlier version that did not note what
            its network knows.
    """
    path = Path(path)
    file = path / NETWORK_FILE if (path / NETWORK_FILE).exists() else path
    if not file.is_dir():
        network = read_network(file, function)
        if site not in (None, network.site):
            raise UsageError(f"--site {site}: {file} holds the network of {network.site} alone")
        return network
    combine = COMBINATIONS.get(site or "")
    names = [] if (path / "config.yaml").is_file() else sites_in(path)
    if combine and names and site not in names:
        return combine([_load_from_run(RunFolder(path, name), checkpoint) for name in names])
    return _load_from_run(_site_folder(path, site), checkpoint)


def _load_from_run(folder: RunFolder, checkpoint: Checkpoint) -> TrainedNetwork:
    source = folder.judged_checkpoint() if checkpoint == "auto" else folder.checkpoints / checkpoint
    record = read_checkpoint_record(source).network
    if record is None:
        raise CheckpointError(
            f"{source}: expected a network that says which labels it was trained on, found one of an earlier "
            "version: go on with its run for a step (cxr-hvd train --resume auto), and it will"
        )
    config = folder.config()
    model = build_model(config.model, len(record.label_names), config.seed)
    step = load_judged_weights(source, model)
    record = record.model_copy(update={"step": step, "thresholds": _thresholds(folder, step)})
    return TrainedNetwork(model.eval(), record, source)


def _site_folder(path: Path, site: str | None) -> RunFolder:
    if (path / "config.yaml").is_file():
        if site not in (None, path.resolve().name):
            raise UsageError(f"--site {site}: {path} is the folder of {path.resolve().name}; name the run instead")
        return RunFolder(path.parent, path.resolve().name)
    names = sites_in(path)
    if site is None and len(names) > 1 and not _are_alike(path, names):
        raise UsageError(
            f"{path}: expected the site whose network is meant, since private blocks differ: --site "
            f"{' or --site '.join(names)}; or --site averaged or ensemble for all of them"
        )
    if site is not None and site not in names:
        raise UsageError(f"--site {site}: {path} has the networks of {', '.join(names)}")
    return RunFolder(path, site or names[0])


def _are_alike(run: Path, names: list[str]) -> bool:
    """Whether nothing was private, so that all sites have one network."""
    record = read_checkpoint_record(RunFolder(run, names[0]).checkpoints / LATEST).network
    return record is not None and not record.private_blocks and record.experiment != "A"


def _thresholds(folder: RunFolder, step: int) -> dict[str, float]:
    """Return the thresholds of the validation after so many steps; none where there was no such validation."""
    path = folder.path / "validation.jsonl"
    try:
        lines = read_plain(path, MAX_LOG_BYTES).decode().splitlines() if path.exists() else []
        rows = [Verdict.model_validate_json(line) for line in lines]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected a validation a line, found something else") from error
    return next((dict(row.thresholds) for row in reversed(rows) if row.step == step), {})
