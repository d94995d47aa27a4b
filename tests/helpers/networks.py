"""Trained networks for tests, without a training run: fresh tiny networks of two sites of experiment D."""

from pathlib import Path

import torch

from cxr_hvd.deploy.trained_network import TrainedNetwork
from cxr_hvd.models.build import build_model
from cxr_hvd.models.layout import block_of
from cxr_hvd.study.labels import LABELS
from cxr_hvd.training.network_record import NetworkRecord

SITES = ("north", "south")
PRIVATE = ("stem", "denseblock1", "denseblock4", "head")
SHARED = ("transition1", "denseblock2", "transition2", "denseblock3", "transition3")


def record_of(site: str = "north", **changes: object) -> NetworkRecord:
    """Return the record of a tiny network of 32 pixels that experiment D trained on all labels."""
    values = {
        "experiment": "D",
        "site": site,
        "sites": list(SITES),
        "label_names": list(LABELS),
        "known_labels": {name: list(LABELS) for name in SITES},
        "trained_labels": list(LABELS),
        "pixels": "test-1",
        "name": "tiny",
        "norm": "batch",
        "image_size": 32,
        "blocks": [*SHARED, *PRIVATE],
        "private_blocks": list(PRIVATE),
        "config_sha256": "0" * 64,
        "plan_sha256": "1" * 64,
        "batch_size": 4,
        "step": 4,
        "thresholds": {"Pneumonia": 0.5},
    }
    return NetworkRecord.model_validate({**values, **changes})


def tiny_network(site: str = "north", **changes: object) -> TrainedNetwork:
    """Return a network of a site: private blocks differ from site to site, shared ones do not."""
    record = record_of(site, **changes)
    network, shared = (build_model(record.model, len(record.label_names), seed) for seed in (SITES.index(site), 9))
    tensors = network.state_dict()
    for name, tensor in shared.state_dict().items():
        if block_of(name) in SHARED:
            tensors[name].copy_(tensor)
    return TrainedNetwork(network.eval(), record, Path(f"{site}.safetensors"))


def noise(num_studies: int = 5, num_images: int = 3, seed: int = 0) -> torch.Tensor:
    """Return images (B, n, 32, 32), 0 to 1."""
    return torch.rand((num_studies, num_images, 32, 32), generator=torch.Generator().manual_seed(seed))
