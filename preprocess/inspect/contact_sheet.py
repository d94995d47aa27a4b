"""Draw a few random studies of a study file as small pictures, to see what no table tells.

Rotated, inverted, cropped or empty films, burned-in text: look before you train. Studies are drawn by seed.
"""

import base64
from dataclasses import dataclass

import cv2
import numpy as np

from cxr_hvd.study.layout import Split, View
from cxr_hvd.study.study_file import StudyFile

TILES_PER_SPLIT = 12
_TILE_PX = 160


@dataclass(frozen=True)
class Tile:
    """One study: its first image as a data URL, its index, views, and the labels that are present."""

    url: str
    index: int
    views: tuple[str, ...]
    labels: tuple[str, ...]


def draw_tiles(file: StudyFile, split: Split, seed: int, num: int = TILES_PER_SPLIT) -> list[Tile]:
    """Return up to `num` random studies of a split, in the file's order."""
    indices = file.indices(split)
    rng = np.random.default_rng([seed, int(split)])
    return [_tile(file, int(index)) for index in np.sort(rng.permutation(indices)[:num])]


def _tile(file: StudyFile, index: int) -> Tile:
    image_HW = file.images(index)[0]
    small = cv2.resize(image_HW, (_TILE_PX, _TILE_PX), interpolation=cv2.INTER_AREA)
    png = cv2.imencode(".png", small)[1].tobytes()
    views = file.views[index, : file.num_images[index]]
    return Tile(
        url="data:image/png;base64," + base64.b64encode(png).decode("ascii"),
        index=index,
        views=tuple(View(view).name for view in views.tolist()),
        labels=tuple(
            name for name, value in zip(file.header.label_names, file.labels[index], strict=True) if value == 1
        ),
    )
