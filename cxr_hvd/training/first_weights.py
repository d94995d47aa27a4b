"""The weights that a run starts from: those of a file, or of an earlier run, read at each site by itself.

A run that goes on from a checkpoint reads them no more: it takes their digest from its own records, so that the
file may be gone by then.
"""

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from torch import nn

from cxr_hvd.errors import CheckpointError, UsageError, WeightsError
from cxr_hvd.files import read_plain
from cxr_hvd.models.weights import Weights, finite, fit_weights, read_weights
from cxr_hvd.models.weights_table import WeightsTable
from cxr_hvd.record import first_problem
from cxr_hvd.study.labels import LABELS
from cxr_hvd.training.checkpoint.record import STATE_FILE, read_checkpoint_record
from cxr_hvd.training.checkpoint.snapshot import load_judged_tensors
from cxr_hvd.training.records import RunEnvironment
from cxr_hvd.training.run_folder import RunFolder, sites_in

MAX_RECORD_BYTES = 1 << 20
OF_RUN = "of each site's own run"


@dataclass(frozen=True)
class FirstWeights:
    """What a run starts from.

    Attributes:
        digest: SHA-256 of the tensors of `model.weights`; empty where the config names none.
        table: what became of them; None where nothing was read.
        is_of_run: whether they are those of the site's own earlier run.
        trained_labels: labels whose outputs they have learnt, as far as their source says so.
    """

    digest: str = ""
    table: WeightsTable | None = None
    is_of_run: bool = False
    trained_labels: tuple[str, ...] = ()

    @property
    def compared(self) -> str:
        """What all sites must have alike: a file's tensors, but of a run only what its sites have alike.

        That the network's shared tensors are alike is compared in any case. Private ones of a run are each site's
        own: so a site goes on from its own network, and one that was onboarded joins in from its own.
        """
        return OF_RUN if self.is_of_run else self.digest


def load_first_weights(
    path: Path | None, model: nn.Module, label_names: tuple[str, ...], folder: RunFolder, may_resume: bool
) -> FirstWeights:
    """Put the weights of `model.weights` into a model, unless its run goes on from a checkpoint. Not collective.

    Args:
        path: a file, or the folder of a site's run; None leaves the model as it is.
        model: with fresh weights, on the CPU.
        label_names: what its outputs are, in order.
        folder: the site's, of this run.
        may_resume: whether the run goes on where there is a checkpoint.

    Raises:
        CxrHvdError: it cannot be read, is of another network, or a number in it is not finite.
    """
    if path is None:
        return FirstWeights()
    if may_resume and folder.steps():
        record = _read_environment(folder)
        return FirstWeights(
            record.weights, is_of_run=record.weights_of_run, trained_labels=tuple(record.weights_trained_labels)
        )
    is_of_run = path.is_dir()
    weights = read_run_weights(path) if is_of_run else read_weights(path)
    table = fit_weights(model, weights, label_names)
    has_labels = weights.label_names == label_names  # else the head is not taken
    return FirstWeights(table.digest, table, is_of_run, weights.trained_labels if has_labels else ())


def read_run_weights(path: Path) -> Weights:
    """Read the network of an earlier run: the running mean of its weights where one was kept.

    Args:
        path: a site's folder (`runs/A/guangzhou`), a run of one site (`runs/A`), or a checkpoint's folder. Of a
            run the best checkpoint counts, or the latest where nothing was validated.

    Raises:
        CxrHvdError: it is none, is damaged, or holds several sites' networks.
    """
    if (path / STATE_FILE).is_file():
        checkpoint, folder = path, RunFolder(path.resolve().parents[2], path.resolve().parents[1].name)
    else:
        folder = _site_folder(path)
        checkpoint = folder.judged_checkpoint()
    step, tensors = load_judged_tensors(checkpoint)
    source = f"{checkpoint}, step {step}"
    as_float32 = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    network = read_checkpoint_record(checkpoint).network
    trained_labels = tuple(network.trained_labels) if network else ()
    return Weights(source, finite(as_float32, source), _label_names(folder), trained_labels)


def _site_folder(path: Path) -> RunFolder:
    if not (path / "config.yaml").is_file():
        names = sites_in(path)
        if len(names) > 1:
            raise UsageError(
                f"model.weights: {path} holds the networks of {', '.join(names)}, which differ: name one, such as "
                f"{path / names[0]}"
            )
        path = path / names[0]
    return RunFolder(path.parent, path.resolve().name)


def _label_names(folder: RunFolder) -> tuple[str, ...]:
    """Return the labels of a run's network; runs that did not note them had CheXpert's."""
    if not (folder.path / "environment.json").is_file():  # a checkpoint that was copied out of its run
        raise WeightsError(
            f"{folder.path}: expected the folder of a run with environment.json, found none: name the run's folder"
        )
    return tuple(_read_environment(folder).label_names or LABELS)


def _read_environment(folder: RunFolder) -> RunEnvironment:
    path = folder.path / "environment.json"
    try:
        return RunEnvironment.model_validate_json(read_plain(path, MAX_RECORD_BYTES))
    except OSError as error:
        why = str(error.strerror)
    except ValidationError as error:
        why = first_problem(error)
    raise CheckpointError(f"{path}: expected the record of a run, found none to read ({why})")
