"""What a hospital that joins later is given: the others' networks, and which of their tensors each kept to itself.

Owns how that is read: from a run's folder, from one site's in it, from a network file or from an export. The file
of an export may lack the private blocks; these then start fresh, and there is no network to compare with.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from cxr_hvd.config.schema import Config
from cxr_hvd.deploy.combine import average_networks
from cxr_hvd.deploy.network import Checkpoint, load_model
from cxr_hvd.deploy.network_file import NETWORK_FILE, read_network_file
from cxr_hvd.deploy.trained_network import TrainedNetwork
from cxr_hvd.models.build import build_model
from cxr_hvd.partial.blocks import tensor_specs
from cxr_hvd.partial.plan import Scope
from cxr_hvd.partial.tensor_spec import Kind, TensorSpec
from cxr_hvd.training.run_folder import RunFolder, sites_in
from cxr_hvd.training.sharing import plan_sharing

FRESH_SEED = 1


@dataclass(frozen=True)
class Source:
    """The others' networks.

    Attributes:
        path: what the user named.
        networks: of each site, by its name; empty where only shared blocks came.
        start: their mean; what came with fresh private blocks, where only shared blocks did.
        specs: the tensors of any of them, in its order.
        private: names of the tensors that each site kept for itself.
        config: of their run; None where there is only a file.
    """

    path: Path
    networks: Mapping[str, TrainedNetwork]
    start: TrainedNetwork
    specs: tuple[TensorSpec, ...]
    private: frozenset[str]
    config: Config | None

    @property
    def sites(self) -> list[str]:
        """Who trained together."""
        return list(dict.fromkeys([*self.networks, *self.start.record.sites]))

    @property
    def batchnorm(self) -> str:
        """Where running statistics went: `sharing.batchnorm` of their run; a file does not say it."""
        return self.config.sharing.batchnorm if self.config else "with-block"

    @property
    def labels(self) -> list[str]:
        """Labels that any of the networks was trained on."""
        networks = [*self.networks.values()] or [self.start]
        return [
            label for label in self.start.label_names if any(network.is_trained(label) for network in networks)
        ]


def load_source(path: Path, checkpoint: Checkpoint = "auto") -> Source:
    """Load what the others hand over.

    Raises:
        CxrHvdError: there is no network, or it is damaged.
    """
    file = path / NETWORK_FILE if (path / NETWORK_FILE).exists() else path
    if not file.is_dir():
        return _from_file(path, file)
    if (path / "config.yaml").is_file():
        names, folder = [path.resolve().name], RunFolder(path.parent, path.resolve().name)
        networks = [load_model(path, checkpoint=checkpoint)]
    else:
        names = sites_in(path)
        folder = RunFolder(path, names[0])
        networks = [load_model(path, name, checkpoint) for name in names]
    config = folder.config()
    specs = tuple(tensor_specs(networks[0].model))
    planned = plan_sharing(config, specs).tensors
    private = {
        tensor.spec.name
        for tensor in planned
        if tensor.scope in (Scope.PRIVATE, Scope.LOCAL) and tensor.spec.kind is not Kind.COUNTER
    }
    by_name = dict(zip(names, networks, strict=True))
    return Source(path, by_name, average_networks(networks), specs, frozenset(private), config)


def _from_file(path: Path, file: Path) -> Source:
    """Load a network file: of one site whole, or shared blocks alone."""
    record, tensors = read_network_file(file)
    fresh = build_model(record.model, len(record.label_names), FRESH_SEED)
    specs = tuple(tensor_specs(fresh))
    private = {
        spec.name for spec in specs if spec.block in record.private_blocks and spec.kind is not Kind.COUNTER
    }
    if private - tensors.keys():
        _put_in(fresh, {name: tensor for name, tensor in tensors.items() if name not in private})
        return Source(path, {}, TrainedNetwork(fresh.eval(), record, file), specs, frozenset(private), None)
    network = load_model(path)
    return Source(path, {network.site: network}, network, specs, frozenset(private), None)


def _put_in(model: nn.Module, tensors: Mapping[str, object]) -> None:
    """Put the tensors of a part of a network into a fresh one; `read_network_file` has looked at them."""
    model.load_state_dict({**model.state_dict(), **tensors})
