"""Made-up hospitals, their style: what is a site's own, that is its machine and how common each finding is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SiteStyle:
    """What is a site's own: acquisition, and how common findings are.

    Attributes:
        size_px: height and width of its files.
        exposure, gamma: of the tone curve; ranges that each image draws from.
        noise: standard deviation, in gray values. blur_px: of the file, in its pixels.
        collimation: the widest black border, as a fraction of the width.
        marker: text of the side marker.
        lateral: how likely each further image of a study is a lateral one.
        images_per_study: weights of 1, 2, 3 ... images.
        prevalence: of each finding but No Finding and Lung Opacity, which follow from the others.
        healthy: the share of studies without a finding.
        zoom: how large the body is on the film; a range that each image draws from.
        flattening: how much of the slow changes from dark to light the machine evens out, 0 to 1.
    """

    size_px: tuple[int, int]
    exposure: tuple[float, float]
    gamma: tuple[float, float]
    noise: float
    blur_px: float
    collimation: float
    marker: str
    lateral: float
    images_per_study: tuple[float, ...]
    prevalence: dict[str, float]
    healthy: float
    zoom: tuple[float, float] = (1.0, 1.08)
    flattening: float = 0.0


STYLES = {
    "chexpert": SiteStyle(
        size_px=(390, 320), exposure=(0.95, 1.10), gamma=(0.85, 1.05), noise=5.0, blur_px=0.6, collimation=0.03,
        marker="L", lateral=0.75, images_per_study=(0.72, 0.24, 0.04), healthy=0.15,
        prevalence={
            "Enlarged Cardiomediastinum": 0.15, "Cardiomegaly": 0.22, "Lung Opacity": 0.15, "Lung Lesion": 0.15,
            "Edema": 0.25, "Consolidation": 0.15, "Pneumonia": 0.15, "Atelectasis": 0.22, "Pneumothorax": 0.20,
            "Pleural Effusion": 0.35, "Pleural Other": 0.12, "Fracture": 0.15, "Support Devices": 0.45,
        },
    ),
    "mimic-cxr": SiteStyle(
        size_px=(448, 448), exposure=(0.80, 0.98), gamma=(1.10, 1.40), noise=9.0, blur_px=1.2, collimation=0.08,
        marker="R", lateral=0.45, healthy=0.30,
        images_per_study=(0.62, 0.22, 0.08, 0.04, 0.015, 0.01, 0.004, 0.004, 0.003, 0.002, 0.002),
        prevalence={
            "Enlarged Cardiomediastinum": 0.12, "Cardiomegaly": 0.30, "Lung Opacity": 0.20, "Lung Lesion": 0.12,
            "Edema": 0.18, "Consolidation": 0.12, "Pneumonia": 0.22, "Atelectasis": 0.30, "Pneumothorax": 0.12,
            "Pleural Effusion": 0.28, "Pleural Other": 0.12, "Fracture": 0.12, "Support Devices": 0.30,
        },
    ),
}  # fmt: skip
