"""Start a network from a file of trained weights, by the names of tensors.

Owns what a file's tensor becomes in a network: its name without what wrappers put before it, and its first
convolution for 20 images. How a file of torch is read is `torch_archive`'s matter; a run's folder is read in
`training/first_weights.py`. Why so: docs/decisions/0025-weights-from-a-file.md.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
from safetensors import safe_open
from torch import Tensor, nn

from cxr_hvd.errors import WeightsError
from cxr_hvd.files import open_plain
from cxr_hvd.models.torch_archive import read_torch_archive
from cxr_hvd.models.weights_table import WeightsTable
from cxr_hvd.study.layout import MAX_IMAGES
from cxr_hvd.terminal import shown

TORCH_ENDINGS = (".pt", ".pth", ".ckpt", ".bin")
PREFIXES = ("module.", "model.", "_orig_mod.")
"""What DataParallel, Lightning and torch.compile put before a tensor's name."""

LABEL_NAMES = "label_names"
"""Key of a safetensors file's metadata: the labels of its outputs in their order, as a JSON list."""

NETWORK = "network"
"""Key of the metadata of this program's own files: a JSON object that holds `label_names` and `trained_labels`."""

TRAINED_LABELS = "trained_labels"

_OLD_DENSENET = re.compile(r"(norm|relu|conv)\.([12])(?=\.)")
_LABEL_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)


@dataclass(frozen=True)
class Weights:
    """Tensors of a trained network.

    Attributes:
        source: where they are from, for people.
        tensors: by name, contiguous, on the CPU; floating-point ones are float32.
        label_names: what its outputs are, in order; None where that is not known.
        trained_labels: those whose outputs were trained, as far as the file says so.
    """

    source: str
    tensors: Mapping[str, Tensor]
    label_names: tuple[str, ...] | None = None
    trained_labels: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 over names, types, shapes and numbers; the order of the file does not count."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
            digest.update(tensor.numpy().data)
        return digest.hexdigest()


def read_weights(path: Path) -> Weights:
    """Read a `.safetensors` file, or one that `torch.save` wrote; nothing in it is run.

    Raises:
        WeightsError: it cannot be read, is of another kind, or a number in it is not finite.
    """
    if path.suffix == ".safetensors":
        tensors, label_names, trained_labels = _read_safetensors(path)
    elif path.suffix in TORCH_ENDINGS:
        tensors, label_names, trained_labels = read_torch_archive(path), None, None
    else:
        raise WeightsError(
            f"{path}: expected a file that ends in .safetensors, {', '.join(TORCH_ENDINGS)}, or the folder of a "
            "run, found something else; rename it if it is one of them"
        )
    return Weights(str(path), finite(tensors, str(path)), label_names, trained_labels or ())


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...] | None, tuple[str, ...] | None]:
    try:
        open_plain(path, follows_links=True).close()  # a pipe would hang who opens it
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
            metadata = file.metadata() or {}
            network = json.loads(metadata.get(NETWORK, "null"))
            label_names = json.loads(metadata.get(LABEL_NAMES, "null"))
    except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise WeightsError(f"{path}: expected a file of safetensors, found {why}") from error
    trained_labels = None
    if isinstance(network, dict):
        label_names, trained_labels = network.get(LABEL_NAMES), network.get(TRAINED_LABELS)
    as_float32 = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    return as_float32, _names(label_names), _names(trained_labels)


def _names(value: object) -> tuple[str, ...] | None:
    """Return a list of names from a file; None where it is something else."""
    is_list = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return tuple(value) if isinstance(value, list) and is_list else None


def finite(tensors: Mapping[str, Tensor], source: str) -> Mapping[str, Tensor]:
    """Return tensors whose numbers are all finite.

    Raises:
        WeightsError: one is not, in float32; it is named.
    """
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise WeightsError(
                f"{source}: tensor {shown(name)}: expected finite numbers, found others (in float32); take "
                "another file"
            )
    return tensors


def fit_weights(model: nn.Module, weights: Weights, label_names: Sequence[str]) -> WeightsTable:
    """Put the tensors of a file into a model, in place, where name and shape fit.

    - A tensor's name counts without what wrappers put before it (`PREFIXES`), and with `norm.1` of torchvision's
      early DenseNets read as `norm1`.
    - A convolution of the file for 1 or 3 channels becomes one for 20 images where the model has that: each of
      the 20 channels gets the sum over the file's channels. A study of one image, in whichever channel, then gives
      what the gray image in all channels gave in the original. The first convolution is linear: a study of n
      images gives the sum of what each gives alone, and the norm behind it adapts in training.
    - Layers with an output for each label are taken only if the file's labels are known to be the model's, in
      the same order: labels are never bound by position.
    - What the file lacks, or has in another shape, keeps its first values.

    Args:
        model: on the CPU.
        label_names: what the model's outputs are, in order.

    Raises:
        WeightsError: no parameter fits, or two tensors of the file would be one of the model's.
    """
    targets = {name: t for name, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    names = _names_in_model(weights, targets)
    label_tensors = set(_label_tensors(model, len(label_names)))
    loaded, widened, fresh = [], [], {}
    for name, target in targets.items():
        tensor = weights.tensors[names[name]] if name in names else None
        if tensor is None:
            fresh[name] = "not in the file"
        elif name in label_tensors and weights.label_names != tuple(label_names):
            fresh[name] = "for other labels" if weights.label_names else "the file does not name its labels"
        elif _is_widened(tensor, target):
            target.data.copy_(tensor.sum(1, keepdim=True).expand_as(target))
            widened.append(name)
        elif tensor.shape != target.shape or tensor.is_floating_point() != target.is_floating_point():
            fresh[name] = f"{list(tensor.shape)} in the file, {list(target.shape)} here"
        else:
            target.data.copy_(tensor)
            loaded.append(name)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    num_loaded = sum(sizes.get(name, 0) for name in (*loaded, *widened))
    if not num_loaded:
        raise WeightsError(
            f"{weights.source}: expected weights of this network, found none that fit by name and shape "
            f"(for example {shown(next(iter(weights.tensors), 'nothing'))}; here "
            f"{next(iter(targets), 'nothing')}): choose another model.name or file"
        )
    not_used = [name for name in weights.tensors if name not in names.values()]
    not_used += [names[name] for name in fresh if name in names]
    return WeightsTable(
        source=weights.source,
        digest=weights.digest,
        loaded=tuple(loaded),
        widened=tuple(widened),
        fresh=fresh,
        not_used=tuple(not_used),
        num_loaded=num_loaded,
        num_parameters=sum(sizes.values()),
    )


def _names_in_model(weights: Weights, targets: Mapping[str, Tensor]) -> dict[str, str]:
    """Return for each tensor of a model that the file has its name in the file."""
    names: dict[str, str] = {}
    for name in weights.tensors:
        name_in_model = next((variant for variant in _variants(name) if variant in targets), None)
        if name_in_model is None:
            continue
        if name_in_model in names:
            raise WeightsError(
                f"{weights.source}: expected one tensor for {shown(name_in_model)}, found two: "
                f"{shown(names[name_in_model])} and {shown(name)}; save the one that is meant alone"
            )
        names[name_in_model] = name
    return names


def _variants(name: str) -> Iterator[str]:
    """Yield a name as it is, and then with less and less before it; each also without DenseNet's old dots."""
    while True:
        yield name
        yield _OLD_DENSENET.sub(r"\1\2", name)
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
        if prefix is None:
            return
        name = name.removeprefix(prefix)


def _label_tensors(model: nn.Module, num_labels: int) -> Iterator[str]:
    """Yield the names of the tensors of layers with an output for each label."""
    for path, module in model.named_modules():
        if isinstance(module, _LABEL_LAYERS) and module.weight.shape[0] == num_labels:
            yield from (f"{path}.{name}" if path else name for name, _ in module.named_parameters(recurse=False))


def _is_widened(tensor: Tensor, target: Tensor) -> bool:
    is_for_few = tensor.dim() == target.dim() == 4 and tensor.shape[1] in (1, 3) and tensor.is_floating_point()
    others_fit = tensor.shape[:1] + tensor.shape[2:] == target.shape[:1] + target.shape[2:]
    return is_for_few and target.shape[1] == MAX_IMAGES and others_fit
