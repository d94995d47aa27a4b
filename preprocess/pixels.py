"""From a JPEG file to one (size, size) uint8 gray image.

The pipeline has a name, `PIXELS`, that goes into the study file: files made by different pipelines do not mix.

- JPEG only, gray or color, decoded by OpenCV to 8-bit gray, at 1/2, 1/4 or 1/8 of the scale where the shorter
  side stays at least twice `size`: the DCT does the first halvings, which is most of the speed.
- Then a plain resize to a square, by area where the image shrinks (OpenCV's linear resize does not antialias)
  and linear where it grows. Aspect ratio is not kept: padding would draw black bars whose width tells the
  detector, and with it the institution, to the model.

OpenCV fills what a truncated file lacks with gray and says nothing. So the markers of the file are walked
first; the same walk reads the size, and a header that claims more than `MAX_PIXELS` is refused undecoded.
"""

import re

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_hvd.errors import DataError
from preprocess.records import ImageRecord, StudyRecord

PIXELS = "jpeg-gray8-reduced2x-area-stretch-1"
MAX_PIXELS = 100_000_000
MAX_FILE_BYTES = 400_000_000

_REDUCED = {
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    1: cv2.IMREAD_GRAYSCALE,
}
_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
_FRAMES = {0xC0, 0xC1, 0xC2}
# In a scan's data 0xFF is followed by 0x00 (a stuffed byte) or a restart marker; anything else ends the scan.
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7]")


def load(study: StudyRecord, size: int) -> NDArray[np.uint8]:
    """Return all images of a study as (n, size, size) uint8, in the study's order.

    Raises:
        DataError: an image is missing, truncated, no JPEG, or too large.
    """
    return np.stack([load_image(image, size) for image in study.images])


def load_image(image: ImageRecord, size: int) -> NDArray[np.uint8]:
    """Return one image as (size, size) uint8 of 0 to 255.

    Raises:
        DataError: the file is missing, truncated, no JPEG, or too large.
    """
    try:
        if (num_bytes := image.path.stat().st_size) > MAX_FILE_BYTES:
            raise DataError(
                f"{image.where}: expected an image of at most {MAX_FILE_BYTES} bytes, found {num_bytes}"
            )
        content = image.path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{image.where}: expected a readable image file, found none ({type(error).__name__}); "
            "copy it again from its source or remove the row"
        ) from error
    try:
        height, width = jpeg_size(content)
    except ValueError as error:
        raise DataError(
            f"{image.where}: expected a whole JPEG file, found {error}; "
            "copy it again from its source or remove the row"
        ) from error
    scale = next(scale for scale in _REDUCED if scale == 1 or min(height, width) // scale >= 2 * size)
    decoded_HW = cv2.imdecode(np.frombuffer(content, np.uint8), _REDUCED[scale])
    if decoded_HW is None:
        raise DataError(f"{image.where}: expected a JPEG file, found one that does not decode; copy it again")
    shrinks = min(decoded_HW.shape) >= size
    resized = cv2.resize(decoded_HW, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.uint8)


def jpeg_size(content: bytes) -> tuple[int, int]:
    """Walk the markers of a JPEG file (ITU-T T.81, annex B) to its end and return (height, width) in pixels.

    Raises:
        ValueError: what is wrong with it, in a few words.
    """
    if content[:2] != bytes([0xFF, _START]):
        raise ValueError("another format")
    position, size = 2, None
    while True:
        while content[position : position + 2] == b"\xff\xff":
            position += 1
        if len(content) < position + 2:
            raise ValueError("a truncated one")
        if content[position] != 0xFF:
            raise ValueError("a damaged one")
        marker = content[position + 1]
        if marker == _END:
            break
        length = int.from_bytes(content[position + 2 : position + 4], "big")
        if length < 2 or len(content) < position + 2 + length:
            raise ValueError("a truncated one")
        if marker in _FRAMES:
            frame = content[position + 4 : position + 9]
            size = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
            if frame[:1] != b"\x08" or min(size) < 1:
                raise ValueError("one without 8-bit samples or a size")
            if size[0] * size[1] > MAX_PIXELS:
                raise ValueError(f"one of {size[1]}x{size[0]} pixels, more than {MAX_PIXELS:,}")
        position += 2 + length
        if marker == _SCAN:
            end = _AFTER_SCAN.search(content, position)
            if end is None:
                raise ValueError("a truncated one")
            position = end.start()
    if size is None:
        raise ValueError("one without an image")
    return size
