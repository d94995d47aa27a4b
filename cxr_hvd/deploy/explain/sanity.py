"""Whether a map shows what the network learnt: that of a network with fresh weights must be another.

Maps that stay alike when the weights are drawn anew show edges of the image, and nothing of the network (Adebayo
et al., "Sanity checks for saliency maps", NeurIPS 2018).
"""

import numpy as np
from scipy.stats import spearmanr
from torch import nn

from cxr_hvd.deploy.explain.maps import Map
from cxr_hvd.deploy.trained_network import TrainedNetwork
from cxr_hvd.models.build import build_model

ALIKE = 0.5
"""From this rank correlation on, above 0 or below, two maps are called alike."""

SEED_OF_FRESH = 20181202


def fresh_model(network: TrainedNetwork) -> nn.Module:
    """Return a network of the same kind with fresh weights."""
    return build_model(network.record.model, len(network.label_names), SEED_OF_FRESH).eval()


def correlation(map_HW: Map, other_HW: Map) -> float | None:
    """Return Spearman's rank correlation of two maps, -1 to 1; None where one of them is flat."""
    if np.ptp(map_HW) == 0 or np.ptp(other_HW) == 0:
        return None
    return float(spearmanr(map_HW.ravel(), other_HW.ravel()).statistic)
