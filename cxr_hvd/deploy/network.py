"""Load a trained network from its run: a model, and what it can speak of.

    network = cxr_hvd.load_model("runs/D/chexpert")
    logits = network.model(images)                       # (B, 1 to 20, H, W), 0 to 1, of network.image_size

Owns which network of a run is meant. What a checkpoint says of itself is in `training.network_record`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from cxr_hvd.config.schema import Config
from cxr_hvd.errors import CheckpointError, UsageError
from cxr_hvd.files import read_plain
from cxr_hvd.models.build import build_model
from cxr_hvd.training.checkpoint.record import read_checkpoint_record
from cxr_hvd.training.checkpoint.snapshot import load_judged_weights
from cxr_hvd.training.network_record import NetworkRecord
from cxr_hvd.training.records import Verdict
from cxr_hvd.training.run_folder import LATEST, MAX_LOG_BYTES, RunFolder, sites_in

Checkpoint = Literal["auto", "best", "latest"]


@dataclass(frozen=True)
class TrainedNetwork:
    """A network with all that its answers need.

    Attributes:
        model: images (B, 1 to 20, H, W), 0 to 1, to logits (B, L); in evaluation mode, on the CPU.
        record: what it is: labels, those that were trained, pixel pipeline, blocks, site.
        config: of its run.
        thresholds: from which probability on a label is present, chosen on its site's VALIDATE studies; labels
            for which there is none are left out.
        step: steps that it was trained for.
        source: the checkpoint that it was read from.
    """

    model: nn.Module
    record: NetworkRecord
    config: Config
    thresholds: Mapping[str, float]
    step: int
    source: Path

    @property
    def label_names(self) -> tuple[str, ...]:
        """Its outputs, in order."""
        return tuple(self.record.label_names)

    @property
    def image_size(self) -> int:
        """The side of its images in pixels."""
        return self.record.image_size

    def is_trained(self, label: str) -> bool:
        """Whether any study that trained this output knew the label: else its answers mean nothing."""
        return label in self.record.trained_labels

    def __str__(self) -> str:
        trained = len(self.record.trained_labels)
        return (
            f"network of {self.record.site} after {self.step} steps of experiment {self.record.experiment}: "
            f"{self.record.name}, {self.image_size} px, {trained} of {len(self.label_names)} labels trained"
        )


def load_model(
    path: str | os.PathLike[str], site: str | None = None, checkpoint: Checkpoint = "auto"
) -> TrainedNetwork:
    """Load the network of a run. Not collective.

    Args:
        path: a run's folder (`runs/D`), or a site's in it (`runs/D/chexpert`).
        site: whose network, where the run has several and they differ.
        checkpoint: `best` by validation, `latest`, or `auto`: the best where there is one.

    Raises:
        CxrHvdError: there is no such network, it is damaged, or it is of an earlier version that did not note what
            its network knows.
    """
    folder = _site_folder(Path(path), site)
    config = folder.config()
    source = folder.judged_checkpoint() if checkpoint == "auto" else folder.checkpoints / checkpoint
    record = read_checkpoint_record(source).network
    if record is None:
        raise CheckpointError(
            f"{source}: expected a network that says which labels it was trained on, found one of an earlier "
            "version: go on with its run for a step (cxr-hvd train --resume auto), and it will"
        )
    model = build_model(config.model, len(record.label_names), config.seed)
    step = load_judged_weights(source, model)
    return TrainedNetwork(model.eval(), record, config, _thresholds(folder, step), step, source)


def _site_folder(path: Path, site: str | None) -> RunFolder:
    if (path / "config.yaml").is_file():
        if site not in (None, path.resolve().name):
            raise UsageError(f"--site {site}: {path} is the folder of {path.resolve().name}; name the run instead")
        return RunFolder(path.parent, path.resolve().name)
    names = sites_in(path)
    if site is None and len(names) > 1 and not _are_alike(path, names):
        raise UsageError(
            f"{path}: expected the site whose network is meant, since private blocks differ: --site "
            f"{' or --site '.join(names)}"
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
