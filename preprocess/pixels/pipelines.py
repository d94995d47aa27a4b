"""Load an image file as one (size, size) uint8 gray image, by a named pipeline.

A *pipeline* is a function from a file's bytes to gray shades. Its name goes into the
study file: files made by different pipelines do not mix, and within one file nothing else is decoded.

- `RASTER`: JPEG and PNG files, see preprocess/pixels/rasters.py.
- `dicom-voi`, `mimic-jpg-compat`: DICOM files, see preprocess/pixels/dicom.py.

After each comes the same plain resize to a square, by area where the image shrinks (OpenCV's linear resize does
not antialias) and linear where it grows. Aspect ratio is not kept: padding would draw black bars whose width
tells the detector, and with it the institution, to the model. Neither is physical size: the spacing of the
pixels is passed over. See docs/decisions/0010-pixel-pipelines.md.
"""

import errno
import os
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_hvd.files import open_plain
from preprocess.pixels import dicom, rasters
from preprocess.records import BadImageError, ImageRecord, StudyRecord, UnusableImageError

RASTER = "jpeg-gray8-reduced2x-area-stretch-1"
MAX_FILE_BYTES = 400_000_000

# From a file's bytes and the wanted size to (H, W) uint8 of at least that size where the file is as large;
# ValueError says what is wrong with the file in a few words.
Pipeline = Callable[[bytes, int], NDArray[np.uint8]]

PIPELINES: dict[str, Pipeline] = {
    RASTER: rasters.decode,
    "dicom-voi": dicom.decode_voi,
    "mimic-jpg-compat": dicom.decode_mimic,
}
_FORMATS = {RASTER: "JPEG or PNG"}
_COPY_AGAIN = "copy it again from its source or leave it out"


def load_study(study: StudyRecord, size: int, pipeline: str = RASTER) -> NDArray[np.uint8]:
    """Return all images of a study as (n, size, size) uint8, in the study's order.

    Raises:
        BadImageError: an image is missing, truncated, too large, or not what the pipeline reads.
    """
    return np.stack([load_image(image, size, pipeline) for image in study.images])


def load_image(
    image: ImageRecord, size: int, pipeline: str = RASTER, refuses_blank: bool = False
) -> NDArray[np.uint8]:
    """Return one image as (size, size) uint8 of 0 to 255.

    Args:
        image: which file. size: height and width wanted, in pixels. pipeline: a name in `PIPELINES`.
        refuses_blank: whether an image of one shade is bad.

    Raises:
        BadImageError: the file is missing, truncated, too large, or not what the pipeline reads, or is blank.
    """
    content = _read(image)
    try:
        shades_HW = PIPELINES[pipeline](content, size)
    except ValueError as error:
        remedy = error.remedy if isinstance(error, UnusableImageError) else _COPY_AGAIN
        raise BadImageError(
            image.where, f"expected a whole {_FORMATS.get(pipeline, 'DICOM')} file, found {error}; {remedy}"
        ) from error
    # A DICOM file says for itself whether it is a negative; its pipelines have inverted it.
    if image.is_negative and pipeline == RASTER:
        shades_HW = 255 - shades_HW
    shrinks = min(shades_HW.shape) >= size
    resized = cv2.resize(shades_HW, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    if refuses_blank and resized.min() == resized.max():
        raise BadImageError(image.where, "expected a radiograph, found one shade; leave the image out")
    return np.asarray(resized, dtype=np.uint8)


def _read(image: ImageRecord) -> bytes:
    try:
        with open_plain(image.path, follows_links=True) as file:
            num_bytes = os.fstat(file.fileno()).st_size
            if num_bytes > MAX_FILE_BYTES:
                raise BadImageError(
                    image.where, f"expected an image of at most {MAX_FILE_BYTES} bytes, found {num_bytes}"
                )
            return file.readall()
    except OSError as error:
        if error.errno == errno.EINVAL:  # reading a pipe or a device would wait for ever
            reason = "expected an image file, found a folder or a device; leave it out"
        else:
            reason = f"expected a readable image file, found none ({type(error).__name__}); {_COPY_AGAIN}"
        raise BadImageError(image.where, reason) from error
