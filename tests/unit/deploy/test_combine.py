"""Networks of several sites as one: the mean of weights, and the mean of answers of those that know the label."""

import pytest
import torch

from cxr_hvd.deploy.combine import average_networks, ensemble_networks
from cxr_hvd.errors import UsageError
from cxr_hvd.models.layout import block_of
from cxr_hvd.study.labels import LABELS
from tests.helpers.networks import PRIVATE, noise, tiny_network


def test_an_average_has_the_mean_of_private_tensors_and_the_shared_ones_as_they_are() -> None:
    networks = [tiny_network("north"), tiny_network("south")]
    averaged = average_networks(networks)
    north, south, mean = (network.model.state_dict() for network in (*networks, averaged))
    for name, tensor in mean.items():
        is_private = block_of(name) in PRIVATE
        assert is_private or torch.equal(tensor, north[name])
        if tensor.is_floating_point():
            assert torch.equal(tensor, ((north[name].double() + south[name].double()) / 2).float())
    assert any(not torch.equal(north[name], south[name]) for name in mean)
    assert (averaged.site, averaged.thresholds) == ("averaged", {})


def test_an_ensemble_asks_those_that_were_trained_on_the_label() -> None:
    others = [label for label in LABELS if label != "Fracture"]
    nobody = [label for label in others if label != "Edema"]
    networks = [tiny_network("north", trained_labels=nobody), tiny_network("south", trained_labels=others)]
    ensemble = ensemble_networks(networks)
    north, south = (torch.sigmoid(network.model(noise())) for network in networks)
    answers = torch.sigmoid(ensemble.model(noise()))
    for column, label in enumerate(LABELS):
        expected = south[:, column] if label == "Edema" else (north[:, column] + south[:, column]) / 2
        assert torch.allclose(answers[:, column], expected, atol=1e-6)
    assert ensemble.record.trained_labels == others and ensemble.site == "ensemble"
    # Of an average, a label is known only where both outputs were trained.
    assert average_networks(networks).record.trained_labels == nobody


def test_an_ensemble_of_sure_networks_stays_finite() -> None:
    network = tiny_network()
    for sign in (-1, 1):
        network.model.state_dict()["classifier.bias"].fill_(sign * 200.0)
        logits = ensemble_networks([network, network]).model(noise())
        assert bool(logits.isfinite().all()) and bool((logits.sign() == sign).all())


@pytest.mark.parametrize(
    "change", [{"label_names": list(reversed(LABELS))}, {"image_size": 64}, {"step": 5}, {"plan_sha256": "2" * 64}]
)
def test_networks_of_different_runs_are_not_combined(change: dict[str, object]) -> None:
    networks = [tiny_network("north"), tiny_network("south", **change)]
    for combine in (average_networks, ensemble_networks):
        with pytest.raises(UsageError, match=f"expected {next(iter(change))} .*name networks of one run"):
            combine(networks)
