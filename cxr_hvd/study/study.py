"""One study as a record: its images, its labels by name, its views and its split, and no identifier."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cxr_hvd.study.labels import ABSENT, PRESENT, UNCERTAIN
from cxr_hvd.study.layout import Sex, Split, View


@dataclass(frozen=True, eq=False, repr=False)
class Study:
    """One study of a study file, as it is stored.

    Attributes:
        images: (n, H, W) uint8, one for each view; n is 1 to 20.
        labels: 1 present, 0 absent, -1 uncertain, NaN not mentioned, by name.
        views: from which side each image was taken.
        split: what the study is for.
        sex: of the patient.
        age: of the patient at the time of the study, in whole years; 90 is 90 or more, None unknown.
    """

    images: NDArray[np.uint8]
    labels: Mapping[str, float]
    views: tuple[View, ...]
    split: Split
    sex: Sex = Sex.UNKNOWN
    age: int | None = None

    def __repr__(self) -> str:
        """Show counts only: a saved notebook keeps what it prints, and findings belong to a patient."""
        values = list(self.labels.values())
        num_present, num_absent, num_uncertain = (values.count(value) for value in (PRESENT, ABSENT, UNCERTAIN))
        num_blank = len(values) - num_present - num_absent - num_uncertain
        height, width = self.images.shape[1:]
        return (
            f"Study({self.split.name}, {len(self.images)} x {height} x {width} px: "
            f"{', '.join(view.name for view in self.views)}; labels: {num_present} present, {num_absent} absent, "
            f"{num_uncertain} uncertain, {num_blank} blank)"
        )
