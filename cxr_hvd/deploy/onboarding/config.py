"""The configs of an onboarding: which blocks the new hospital trains, and for how long. Pure, but for two files.

Both trainings are ordinary runs of one site. The onboarded one is experiment D with `model.freeze` on all that the
others shared, so that nothing is left to be sent; the one from nothing is experiment A with fresh weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxr_hvd.config.file import load_config
from cxr_hvd.config.schema import Config
from cxr_hvd.deploy.onboarding.source import Source
from cxr_hvd.errors import UsageError
from cxr_hvd.files import write_text
from cxr_hvd.partial.choice import chosen_names
from cxr_hvd.partial.tensor_spec import Kind, TensorSpec
from cxr_hvd.training.run_folder import disk_errors
from cxr_hvd.yaml_text import dump_yaml

START = "start.safetensors"
FROM_NOTHING = "from-nothing"
NUM_VALIDATIONS = 4
"""So often in a training; the best network by them is judged."""


@dataclass(frozen=True)
class Budget:
    """How long both networks of an onboarding are trained; None: as the others were, or the config's default.

    Attributes:
        steps, epochs: one of them; an epoch is a pass over the site's training studies.
    """

    steps: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None


@dataclass(frozen=True)
class Division:
    """The tensors that the new hospital trains, and those that stay as the others made them.

    Attributes:
        trained: names of blocks, or of tensors where a block is divided.
        frozen: the same of all others.
        statistics: frozen running statistics that were private at the others: the site's own take their place.
    """

    trained: tuple[str, ...]
    frozen: tuple[str, ...]
    statistics: frozenset[str]


def divide(source: Source, more_private: Sequence[str] = ()) -> Division:
    """Divide the network of the others into what a new hospital trains and what it leaves.

    Args:
        more_private: a preset, or names and globs of blocks that are trained besides those that the others kept.

    Raises:
        CxrHvdError: nothing would be trained or nothing left, or a name matches nothing.
    """
    blocks = list(dict.fromkeys(spec.block for spec in source.specs))
    choice = more_private[0] if len(more_private) == 1 else tuple(more_private)
    added = chosen_names(source.specs, blocks, choice, "--private") if more_private else set()
    layers_left = {
        spec.name.rpartition(".")[0]
        for spec in source.specs
        if spec.kind is Kind.PARAMETER and spec.name not in source.private | added
    }

    def is_trained(spec: TensorSpec) -> bool:
        is_of_norm_left = spec.name.rpartition(".")[0] in layers_left
        if spec.kind is Kind.STATISTIC and (is_of_norm_left or source.batchnorm == "shared"):
            return False  # a norm that is left as it is gives what it gave
        return spec.name in source.private | added

    tensors = [spec for spec in source.specs if spec.kind is not Kind.COUNTER]
    trained = [spec for spec in tensors if is_trained(spec)]
    if not trained:
        raise UsageError(
            f"{source.path}: expected a network with private blocks, found none: all sites have one network; use "
            "it with cxr-hvd predict, or name blocks to train with --private head"
        )
    if len(trained) == len(tensors):
        raise UsageError(
            f"{source.path}: expected a network with shared blocks, found none: nothing of the others would stay; "
            "train alone with cxr-hvd train --site, or name the run's folder, where a file has norms of its site"
        )
    left = [spec for spec in tensors if not is_trained(spec)]
    statistics = {spec.name for spec in left if spec.kind is Kind.STATISTIC and spec.name in source.private}
    return Division(_names(trained, left), _names(left, trained), frozenset(statistics))


def _names(chosen: Sequence[TensorSpec], others: Sequence[TensorSpec]) -> tuple[str, ...]:
    """Name tensors by their blocks, and one by one where a block holds others, too."""
    divided = {spec.block for spec in others}
    return tuple(dict.fromkeys(spec.name if spec.block in divided else spec.block for spec in chosen))


def onboarding_tree(
    source: Source, division: Division, site: str, data: Path, num_studies: int, budget: Budget, run: Path
) -> dict[str, Any]:
    """Return the config of the onboarded network, for `run`. Pure."""
    base = source.config.model_dump(mode="json") if source.config else {}
    base |= {"experiment": "D", "sites": {site: {"data": str(data.resolve())}}}
    record = source.start.record
    base["model"] = {"name": record.name, "norm": record.norm, "image_size": record.image_size}
    base["model"] |= {"weights": str((run / START).resolve()), "freeze": list(division.frozen)}
    base["sharing"] = {"private": list(division.trained), "batchnorm": source.batchnorm}
    base["pixel_pipelines"] = record.pixel_pipelines
    base["training"] = _length(dict(base.get("training", {})), num_studies, budget)
    base["validation"] = {"every_epochs": 1}
    base["checkpoints"] = {}
    return base


def from_nothing_tree(onboarding: dict[str, Any]) -> dict[str, Any]:
    """Return the config of the network from nothing with the same budget: all blocks, fresh weights. Pure."""
    model = {name: value for name, value in onboarding["model"].items() if name not in ("weights", "freeze")}
    return {**onboarding, "experiment": "A", "model": model, "sharing": {}}


def _length(training: dict[str, Any], num_studies: int, budget: Budget) -> dict[str, Any]:
    if budget.steps is not None and budget.epochs is not None:
        raise UsageError("--steps and --epochs both say how long: choose one")
    batch_size = budget.batch_size or training.get("batch_size", 16)
    num_steps = budget.steps
    if num_steps is None:
        steps_of_pass = -(-num_studies // batch_size)
        num_steps = (budget.epochs or training.get("epochs", 10)) * steps_of_pass
    training |= {"batch_size": batch_size, "epochs": NUM_VALIDATIONS, "max_steps": num_steps}
    training["steps_per_epoch"] = -(-num_steps // NUM_VALIDATIONS)
    if budget.learning_rate is not None:
        training["learning_rate"] = budget.learning_rate
    if batch_size % training.get("accumulate", 1):
        training["accumulate"] = 1
    return training


def write_config(path: Path, tree: dict[str, Any], settings: Sequence[str]) -> Config:
    """Write a config beside its run, and return it with `section.key=value` settings laid over it.

    Raises:
        CxrHvdError: it is not valid, or cannot be written.
    """
    with disk_errors(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_text(path, dump_yaml(tree))
    return load_config(path, settings)
