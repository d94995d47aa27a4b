"""Explain a network's answers for studies: maps of each label and image, with the same of a fresh network beside.

Owns which labels are shown and how maps of a study are put together.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cxr_hvd.config.sections import Labels
from cxr_hvd.data.loader import plain_batches
from cxr_hvd.data.studies import StudySet
from cxr_hvd.deploy.combine import ENSEMBLE
from cxr_hvd.deploy.explain.choice import ChosenStudy
from cxr_hvd.deploy.explain.maps import Map, grad_cam, layer_of_grad_cam, occlusion
from cxr_hvd.deploy.explain.sanity import correlation, fresh_model
from cxr_hvd.deploy.trained_network import TrainedNetwork
from cxr_hvd.errors import UsageError, nearest
from cxr_hvd.models.forward import forward
from cxr_hvd.study.layout import Split, View

Method = Literal["grad-cam", "occlusion"]
METHODS: tuple[Method, ...] = ("grad-cam", "occlusion")
NUM_LABELS = 3


@dataclass(frozen=True)
class LabelMap:
    """Where a network looks for one label of a study.

    Attributes:
        method: how the map was made.
        label: of which label.
        probability: 0 to 1.
        threshold: from which probability on it is present; None where none was chosen.
        maps_MHW: of each image. Of Grad-CAM all are the same.
        correlations: of each map with that of a network with fresh weights; None where one of them has one value.
    """

    method: Method
    label: str
    probability: float
    threshold: float | None
    maps_MHW: Map
    correlations: tuple[float | None, ...]


@dataclass(frozen=True)
class StudyMaps:
    """A study's images, and its maps.

    Attributes:
        file, study: which study, as in `answers.Answer`.
        images_MHW: shades as the network sees them.
        views: of each image.
        maps: by method and label.
    """

    file: str
    study: str
    images_MHW: NDArray[np.uint8]
    views: tuple[str, ...]
    maps: tuple[LabelMap, ...]


def check_question(network: TrainedNetwork, labels: Sequence[str], methods: Sequence[Method]) -> None:
    """Raise where a network cannot be asked about a label, or not in this way."""
    for label in labels:
        if label not in network.label_names:
            raise UsageError(f"--label {label}: no label is called so{nearest(label, list(network.label_names))}")
        if not network.is_trained(label):
            raise UsageError(
                f"--label {label}: no study that trained this network says anything of it: choose of "
                f"{', '.join(network.record.trained_labels)}"
            )
    if network.site == ENSEMBLE and "grad-cam" in methods:
        raise UsageError(
            "--site ensemble: Grad-CAM looks into one network: name a site, averaged, or --method occlusion"
        )


def explain_studies(
    network: TrainedNetwork,
    studies: Sequence[ChosenStudy],
    labels: Sequence[str] = (),
    methods: Sequence[Method] = METHODS,
    on_batch: Callable[[], None] = lambda: None,
) -> Iterator[StudyMaps]:
    """Yield the maps of studies.

    Args:
        labels: which; none: of each study the `NUM_LABELS` trained ones with the highest probability.
        on_batch: called before each pass of the network.

    Raises:
        CxrHvdError: an image cannot be read, or a label was never trained.
    """
    check_question(network, labels, methods)
    fresh = fresh_model(network)
    for study in studies:
        on_batch()
        file, index = study.file, study.index
        split = Split(int(file.splits[index]))
        study_set = StudySet([file], split, Labels().policy(network.label_names))
        position = int(np.searchsorted(file.indices(split), index))
        [batch] = plain_batches(study_set, [position], 1, network.image_size)
        images_1MHW = batch.images[:, : int(file.num_images[index])].clone()
        yield StudyMaps(
            file=study.given,
            study=study.name,
            images_MHW=np.round(images_1MHW[0].numpy() * 255).astype(np.uint8),
            views=tuple(View(view).name for view in file.views[index, : images_1MHW.shape[1]].tolist()),
            maps=tuple(_maps_of_study(network, fresh, images_1MHW, labels, methods, on_batch)),
        )


def _maps_of_study(
    network: TrainedNetwork,
    fresh: nn.Module,
    images_1MHW: Tensor,
    labels: Sequence[str],
    methods: Sequence[Method],
    on_batch: Callable[[], None],
) -> Iterator[LabelMap]:
    with torch.inference_mode():
        probabilities_L = torch.sigmoid(forward(network.model, images_1MHW, "fp32"))[0].tolist()
    probability_of = dict(zip(network.label_names, probabilities_L, strict=True))
    chosen = labels or sorted(network.record.trained_labels, key=probability_of.__getitem__)[::-1][:NUM_LABELS]
    columns = [network.label_names.index(label) for label in chosen]
    for method in methods:
        both_KMHW = [
            _maps_of_method(method, model, images_1MHW, columns, network.record.batch_size, on_batch)
            for model in (network.model, fresh)
        ]
        for label, maps_MHW, others_MHW in zip(chosen, *both_KMHW, strict=True):
            yield LabelMap(
                method=method,
                label=label,
                probability=probability_of[label],
                threshold=network.thresholds.get(label),
                maps_MHW=maps_MHW,
                correlations=tuple(map(correlation, maps_MHW, others_MHW)),
            )


def _maps_of_method(
    method: Method,
    model: nn.Module,
    images_1MHW: Tensor,
    columns: Sequence[int],
    batch_size: int,
    on_batch: Callable[[], None],
) -> Map:
    """Return maps (len(columns), M, H, W)."""
    if method == "occlusion":
        return occlusion(model, images_1MHW, batch_size, on_batch)[:, columns].swapaxes(0, 1)
    maps_KHW = grad_cam(model, images_1MHW, layer_of_grad_cam(model, images_1MHW), columns)
    return np.repeat(maps_KHW[:, None], images_1MHW.shape[1], axis=1)
