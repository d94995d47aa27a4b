"""A trained network with all that its answers need."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from cxr_hvd.training.network_record import NetworkRecord


@dataclass(frozen=True)
class TrainedNetwork:
    """A network with all that its answers need.

    Attributes:
        model: images (B, 1 to 20, H, W), 0 to 1, to logits (B, L); in evaluation mode, on the CPU.
        record: what it is: labels, those that were trained, thresholds, pixel pipeline, blocks, site.
        source: what it was read from.
    """

    model: nn.Module
    record: NetworkRecord
    source: Path

    @property
    def label_names(self) -> tuple[str, ...]:
        """Its outputs, in order."""
        return tuple(self.record.label_names)

    @property
    def image_size(self) -> int:
        """The side of its images in pixels."""
        return self.record.image_size

    @property
    def site(self) -> str:
        """Whose it is; `averaged` or `ensemble` where it is made of several sites'."""
        return self.record.site

    @property
    def step(self) -> int:
        """Steps that it was trained for."""
        return self.record.step

    @property
    def thresholds(self) -> dict[str, float]:
        """From which probability on a label is present; labels for which none was chosen are left out."""
        return self.record.thresholds

    def is_trained(self, label: str) -> bool:
        """Whether any study that trained this output knew the label: else its answers mean nothing."""
        return label in self.record.trained_labels

    def __str__(self) -> str:
        trained = len(self.record.trained_labels)
        return (
            f"network of {self.site} after {self.step} steps of experiment {self.record.experiment}: "
            f"{self.record.name}, {self.image_size} px, {trained} of {len(self.label_names)} labels trained"
        )
