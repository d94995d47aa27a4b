"""The 14 findings of CheXpert, and what to do with uncertain and unmentioned ones.

A study file keeps labels as its source gave them: 1 present, 0 absent, -1 uncertain, NaN not mentioned
(Irvin et al., "CheXpert", AAAI 2019). Policies turn them into targets when they are loaded, so that one file
serves every policy. `ignore` takes a label out of the loss and of every metric; see
docs/decisions/0006-unknown-labels.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

LABELS: tuple[str, ...] = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)

PRESENT, ABSENT, UNCERTAIN, BLANK = 1.0, 0.0, -1.0, float("nan")

UncertainPolicy = Literal["zeros", "ones", "ignore"]
BlankPolicy = Literal["zeros", "ignore"]


@dataclass(frozen=True)
class LabelPolicy:
    """What uncertain (-1) and blank (NaN) labels become, label by label.

    Attributes:
        uncertain: one policy for each label's name.
        blank: one policy for each label's name.
    """

    uncertain: Mapping[str, UncertainPolicy]
    blank: Mapping[str, BlankPolicy]

    def targets(
        self, labels_NL: NDArray[np.float32], label_names: tuple[str, ...]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Turn labels (N, L) of 1, 0, -1 and NaN into targets (N, L) of 0 and 1 and a mask of the known ones.

        Where the mask is False the target is 0 and counts nowhere.
        """
        uncertain_NL, blank_NL = labels_NL == UNCERTAIN, np.isnan(labels_NL)
        as_ones_L = np.array([self.uncertain[name] == "ones" for name in label_names])
        ignore_uncertain_L = np.array([self.uncertain[name] == "ignore" for name in label_names])
        ignore_blank_L = np.array([self.blank[name] == "ignore" for name in label_names])
        targets_NL = ((labels_NL == PRESENT) | (uncertain_NL & as_ones_L)).astype(np.float32)
        known_NL = ~((uncertain_NL & ignore_uncertain_L) | (blank_NL & ignore_blank_L))
        return targets_NL, known_NL
