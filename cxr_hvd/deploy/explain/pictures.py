"""Maps laid over images, as PNG."""

import cv2
import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from cxr_hvd.deploy.explain.maps import Map

MIN_PX = 320
OPACITY = 0.6
ONE_SIDED, TWO_SIDED = "inferno", "RdBu_r"


def overlay_png(image_HW: NDArray[np.uint8], map_HW: Map, is_signed: bool) -> bytes:
    """Return the PNG of an image with a map on it: the stronger the map, the less of the image.

    Args:
        image_HW: shades of gray.
        map_HW: of the same shape, scaled here to its largest absolute value; all 0 leaves the image alone.
        is_signed: whether it has two sides, red for above 0 and blue for below; else yellow is most.
    """
    top = float(np.abs(map_HW).max())
    strength_HW = np.abs(map_HW) / top if top > 0 else np.zeros_like(map_HW)
    scaled_HW = map_HW / top if top > 0 else strength_HW
    colors_HW3 = mpl.colormaps[TWO_SIDED if is_signed else ONE_SIDED](
        (scaled_HW + 1) / 2 if is_signed else scaled_HW
    )[..., :3]
    opacity_HW1 = OPACITY * strength_HW[..., None]
    gray_HW3 = np.repeat(image_HW[..., None] / 255, 3, axis=2)
    return gray_png(np.round(255 * ((1 - opacity_HW1) * gray_HW3 + opacity_HW1 * colors_HW3)).astype(np.uint8))


def gray_png(picture: NDArray[np.uint8]) -> bytes:
    """Return the PNG of a picture (H, W) or (H, W, 3) in RGB, at least `MIN_PX` wide."""
    factor = -(-MIN_PX // picture.shape[1])
    large = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    bgr = large if large.ndim == 2 else large[..., ::-1]
    return cv2.imencode(".png", bgr)[1].tobytes()
