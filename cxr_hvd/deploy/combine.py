"""One network of several sites' networks: the mean of their weights, or the mean of their answers.

Both are what a hospital can use that took no part: no site's private blocks are made for its images.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cxr_hvd.deploy.trained_network import TrainedNetwork
from cxr_hvd.errors import UsageError
from cxr_hvd.models.build import build_model
from cxr_hvd.training.network_record import NetworkRecord

AVERAGED = "averaged"
ENSEMBLE = "ensemble"


class Ensemble(nn.Module):
    """The mean of several networks' probabilities, label by label over those that were trained on it.

    Args:
        members: (B, 1 to 20, H, W) to logits (B, L).
        is_trained_ML: which of M members counts for which label; where none does, all do.
    """

    def __init__(self, members: Sequence[nn.Module], is_trained_ML: Tensor) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        counts_ML = torch.where(is_trained_ML.any(0), is_trained_ML, True).float()
        self.register_buffer("shares_ML", counts_ML / counts_ML.sum(0))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, L) of the mean probabilities."""
        probabilities_MBL = torch.stack([torch.sigmoid(member(images).float()) for member in self.members])
        mean_BL = (probabilities_MBL * self.shares_ML[:, None]).sum(0)  # type: ignore[index]
        tiny = torch.finfo(mean_BL.dtype).tiny
        return torch.log(mean_BL.clamp(min=tiny)) - torch.log1p(-mean_BL.clamp(max=1 - 1e-7))


def average_networks(networks: Sequence[TrainedNetwork]) -> TrainedNetwork:
    """Return the network whose tensors are the mean of several sites' networks.

    Shared tensors are alike and stay as they are. A label counts as trained where every site's was: the mean of a
    trained and a never trained output is neither. It has no thresholds: none were chosen for it.

    Raises:
        UsageError: they are not of one run.
    """
    first = _check_alike(networks)
    sums: dict[str, Tensor] = {}
    for network in networks:
        for name, tensor in network.model.state_dict().items():
            sums[name] = sums.get(name, 0.0) + tensor.double() / len(networks)
    model = build_model(first.record.model, len(first.label_names), seed=0)
    for name, tensor in model.state_dict().items():
        tensor.copy_(sums[name])
    trained = [label for label in first.label_names if all(network.is_trained(label) for network in networks)]
    return TrainedNetwork(model.eval(), _record(networks, AVERAGED, trained), first.source)


def ensemble_networks(networks: Sequence[TrainedNetwork]) -> TrainedNetwork:
    """Return the network that answers with the mean of several sites' probabilities.

    A label counts as trained where one site's was, and those alone answer for it. It has no thresholds.

    Raises:
        UsageError: they are not of one run.
    """
    first = _check_alike(networks)
    labels = first.label_names
    is_trained_ML = torch.tensor([[network.is_trained(label) for label in labels] for network in networks])
    trained = [label for label in labels if any(network.is_trained(label) for network in networks)]
    model = Ensemble([network.model for network in networks], is_trained_ML)
    return TrainedNetwork(model.eval(), _record(networks, ENSEMBLE, trained), first.source)


def _record(networks: Sequence[TrainedNetwork], name: str, trained_labels: list[str]) -> NetworkRecord:
    pixels = {network.record.pixels for network in networks}
    return networks[0].record.model_copy(
        update={
            "site": name,
            "trained_labels": trained_labels,
            "thresholds": {},
            "pixels": pixels.pop() if len(pixels) == 1 else networks[0].record.pixels,
        }
    )


def _check_alike(networks: Sequence[TrainedNetwork]) -> TrainedNetwork:
    """Return the first network of several; raise where they are of different runs or steps."""
    first = networks[0]
    for other in networks[1:]:
        for what in ("label_names", "name", "norm", "image_size", "plan_sha256", "step"):
            values = getattr(first.record, what), getattr(other.record, what)
            if values[0] != values[1]:
                raise UsageError(
                    f"{other.source}: expected {what} {values[0]} of {first.site}'s network, found {values[1]} of "
                    f"{other.site}'s: name networks of one run after equally many steps"
                )
    return first
