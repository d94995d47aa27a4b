"""The studies of a split as a `torch.utils.data.Dataset`, for training loops that have their own `DataLoader`.

It gives the studies as evaluation sees them: images in the file's order. `cxr-hvd train` has a loader of its own
(loader.py), which augments images and draws their order within a study anew in each pass. Here the first is left
to `transform`, and the second is not done.
"""

import operator
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cxr_hvd.config.file import parse_section
from cxr_hvd.config.sections import Labels
from cxr_hvd.data.augment import fill_plain
from cxr_hvd.data.studies import StudySet
from cxr_hvd.errors import StudyFileError, UsageError, nearest
from cxr_hvd.study.labels import BlankPolicy, UncertainPolicy
from cxr_hvd.study.layout import MAX_IMAGES, Split
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.terminal import shown

Item = tuple[Tensor, Tensor, Tensor]


class StudyDataset(Dataset[Item]):
    """The studies of one split of a study file; item i is (images, targets, known).

    - images: (20, H, W) float32, 0 to 1: the study's images in the file's order, zeros after its last. They are
      compared with their digests when they are first read in a process.
    - targets: (L,) float32 of 0 and 1.
    - known: (L,) bool; where False, the target is 0 and should count nowhere, in no loss and in no metric.

    It works in a `DataLoader` with any number of workers, forked or spawned; `ConcatDataset` joins several files.

    Args:
        file: the study file or its path.
        split: `train`, `validate` or `test`.
        transform: takes one image (1, H, W) float32 of 0 to 1 and returns one (1, H', W'). It is called for each
            image of a study by itself, as the published study augments them, so that one of
            `torchvision.transforms.v2` draws anew for each. Padding comes after it and is zero.
        uncertain, blank: what uncertain (-1) and blank labels become, as `labels` in the config: one policy, or
            one for each label that is named.
        image_size: pixels a side to which stored images are scaled; None leaves them as they are.

    Attributes:
        file: the study file; whoever gave its path may close it here.
        split: of the studies.
        label_names: names of the L labels, in order.

    Raises:
        StudyFileError: the file cannot be used, or has no such studies; from an item, where an image is damaged.
        UsageError: there is no such split, `image_size` is more than the file's, or `transform` returns no image.
        ConfigError: there is no such policy or label.
    """

    def __init__(
        self,
        file: str | os.PathLike[str] | StudyFile,
        split: str | Split = "train",
        *,
        transform: Callable[[Tensor], Tensor] | None = None,
        uncertain: UncertainPolicy | Mapping[str, UncertainPolicy] = "zeros",
        blank: BlankPolicy | Mapping[str, BlankPolicy] = "zeros",
        image_size: int | None = None,
    ) -> None:
        policies: dict[str, Any] = {
            name: dict(policy) if isinstance(policy, Mapping) else policy
            for name, policy in (("uncertain", uncertain), ("blank", blank))
        }
        labels = parse_section(Labels, policies, "StudyDataset")
        self.split = _parse_split(split)
        self.file = file if isinstance(file, StudyFile) else StudyFile(file)
        self._image_size = self._check_size(image_size)
        self._transform = transform
        self.label_names = self.file.header.label_names
        self._studies = StudySet([self.file], self.split, labels.policy(self.label_names))
        if not len(self):
            name = self.split.name
            raise StudyFileError(
                f"{self.file.path}: expected {name} studies, found none; draw some with --{name.lower()} N"
            )
        self.file.locate_images()  # after this, workers that are forked need no HDF5

    def __len__(self) -> int:
        return len(self._studies)

    def __getitem__(self, index: int) -> Item:
        position = range(len(self))[operator.index(index)]
        stored_NHW = self._studies.images(position)
        images_NHW = np.empty((len(stored_NHW), self._image_size, self._image_size), dtype=np.float32)
        fill_plain(stored_NHW, images_NHW)
        images = torch.from_numpy(images_NHW)
        if self._transform:
            images = torch.cat([self._transformed(image) for image in images.unsqueeze(1)])
        padded = torch.zeros((MAX_IMAGES, *images.shape[1:]))
        padded[: len(images)] = images
        targets_NL, known_NL = self._studies.labels([position])
        return padded, targets_NL[0], known_NL[0]

    @property
    def targets(self) -> Tensor:
        """(N, L) float32 of 0 and 1 of all studies, for example to weigh labels or studies."""
        return torch.from_numpy(self._studies.targets)

    @property
    def known(self) -> Tensor:
        """(N, L) bool of all studies; where False, the target is 0 and counts nowhere."""
        return torch.from_numpy(self._studies.known)

    def __repr__(self) -> str:
        size = self._image_size
        return (
            f"StudyDataset({shown(self.file.path.name)!r}, {self.split.name}: {len(self):,} studies, images "
            f"({MAX_IMAGES}, {size}, {size}), {len(self.label_names)} labels, "
            f"transform={shown(self._transform)})"
        )

    def _transformed(self, image: Tensor) -> Tensor:
        """Return an image (1, H, W) as `transform` makes it."""
        assert self._transform
        result = self._transform(image)
        is_image = isinstance(result, Tensor) and result.ndim == 3 and len(result) == 1
        if not is_image or result.dtype != torch.float32:
            what = f"{tuple(result.shape)} {result.dtype}" if isinstance(result, Tensor) else type(result).__name__
            raise UsageError(
                f"StudyDataset: transform: expected an image (1, H, W) of torch.float32 from one of shape "
                f"{tuple(image.shape)}, found {what}"
            )
        return result

    def _check_size(self, image_size: int | None) -> int:
        """Return the side of the images in pixels, which is the file's or smaller."""
        stored = self.file.header.image_size
        if image_size is not None and not 1 <= image_size <= stored:
            raise UsageError(
                f"StudyDataset: image_size: expected 1 to {stored} px, which {self.file.path.name} has, "
                f"found {image_size}"
            )
        return image_size or stored


def _parse_split(split: str | Split) -> Split:
    """Return the split of a name, in whatever case it is written."""
    if isinstance(split, Split):
        return split
    names = [member.name.lower() for member in Split]
    if (name := str(split).lower()) not in names:
        raise UsageError(
            f"StudyDataset: split: expected {', '.join(names)}, found {shown(split)!r}{nearest(name, names)}"
        )
    return Split[name.upper()]
