"""From scores and known labels to AUROC and accuracy, label by label, by scikit-learn.

What cannot be computed is None and shown as "undefined", never as 0.5: an AUROC needs both classes. Accuracy
stands beside that of answering "absent" always, since most labels are absent most of the time.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

THRESHOLD = 0.5


@dataclass(frozen=True)
class LabelMetrics:
    """One label over the studies in which it is known; None where undefined.

    Attributes:
        label: its name.
        num_studies, num_present: studies in which it is known, and of those in which it is present.
        auroc: area under the ROC curve, 0 to 1.
        accuracy: share of right answers at a probability of 0.5.
        all_negative_accuracy: share of right answers of always saying "absent".
    """

    label: str
    num_studies: int
    num_present: int
    auroc: float | None
    accuracy: float | None
    all_negative_accuracy: float | None


@dataclass(frozen=True)
class Metrics:
    """All labels of one test set. Means are over the labels that are defined; None where none is."""

    labels: tuple[LabelMetrics, ...]
    num_studies: int
    macro_auroc: float | None
    mean_accuracy: float | None
    mean_all_negative_accuracy: float | None

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def compute_metrics(
    probabilities_NL: NDArray[np.float32],
    targets_NL: NDArray[np.float32],
    known_NL: NDArray[np.bool_],
    label_names: tuple[str, ...],
) -> Metrics:
    """Judge probabilities (N, L), 0 to 1, against targets (N, L) of 0 and 1 where `known_NL` is True."""
    labels = tuple(
        _label_metrics(name, probabilities_NL[known, column], targets_NL[known, column])
        for column, name in enumerate(label_names)
        for known in [known_NL[:, column]]
    )
    return Metrics(
        labels=labels,
        num_studies=len(targets_NL),
        macro_auroc=_mean([each.auroc for each in labels]),
        mean_accuracy=_mean([each.accuracy for each in labels]),
        mean_all_negative_accuracy=_mean([each.all_negative_accuracy for each in labels]),
    )


def _label_metrics(
    name: str, probabilities_N: NDArray[np.float32], targets_N: NDArray[np.float32]
) -> LabelMetrics:
    num_studies, num_present = len(targets_N), int(targets_N.sum())
    has_both_classes = 0 < num_present < num_studies
    return LabelMetrics(
        label=name,
        num_studies=num_studies,
        num_present=num_present,
        auroc=float(roc_auc_score(targets_N, probabilities_N)) if has_both_classes else None,
        accuracy=float(np.mean((probabilities_N >= THRESHOLD) == targets_N)) if num_studies else None,
        all_negative_accuracy=float(np.mean(targets_N == 0)) if num_studies else None,
    )


def _mean(values: list[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None
