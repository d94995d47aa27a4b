"""Decode JPEG and PNG files to 8-bit gray images; refuse those that are not whole before they are decoded.

OpenCV fills what a truncated file lacks with gray and says nothing. So the markers of a JPEG file and the
chunks of a PNG file are walked first; the same walk reads the size, and a header that claims more than
`MAX_PIXELS` is refused undecoded. What is refused is a `ValueError` that says in a few words what was found.

Color becomes gray by ITU-R BT.601 luma (0.299 R + 0.587 G + 0.114 B); CMYK goes by way of RGB; an alpha channel is
passed over. An EXIF orientation is applied, so that a film that was photographed lying stands upright.
"""

import re
import zlib

import cv2
import numpy as np
from numpy.typing import NDArray

MAX_PIXELS = 100_000_000

_REDUCED = {
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    1: cv2.IMREAD_GRAYSCALE,
}
_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
_FRAMES = {0xC0, 0xC1, 0xC2}
_OTHER_FRAMES = {0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7}
# In a scan's data 0xFF is followed by 0x00 (a stuffed byte) or a restart marker; anything else ends the scan.
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7]")

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_OTHERS = {
    b"GIF8": "a GIF file, which may be animated",
    b"BM": "a BMP file",
    b"II*\0": "a TIFF file",
    b"MM\0*": "a TIFF file",
    b"RIFF": "a WebP or another RIFF file",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 file",
    b"%PDF": "a PDF file",
}


def decode(content: bytes, size: int) -> NDArray[np.uint8]:
    """Return a JPEG or PNG file as (H, W) uint8, its shorter side at least `size` where the file's is.

    A JPEG of at least `2 * size` twice, four or eight times over is decoded at that fraction of its scale.
    Samples of 16 bits are stretched: the image's darkest becomes 0 and its brightest 255, because 12 bits of
    data in 16-bit samples are common, and the file does not say so.

    Raises:
        ValueError: what is wrong with the file, in a few words.
    """
    if content.startswith(_PNG):
        png_size(content)
        flags = cv2.IMREAD_ANYDEPTH
    elif content.startswith(_JPEG):
        shorter = min(jpeg_size(content))
        flags = next(_REDUCED[scale] for scale in _REDUCED if scale == 1 or shorter // scale >= 2 * size)
    else:
        raise ValueError(_describe_format(content))
    try:
        decoded_HW = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:
        raise ValueError("one that does not decode") from error
    if decoded_HW is None:
        raise ValueError("one that does not decode")
    if decoded_HW.dtype == np.uint16:
        return stretched(np.asarray(decoded_HW, np.uint16))
    return np.asarray(decoded_HW, np.uint8)


def stretched(values_HW: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Return the values (H, W) with their smallest as 0 and their largest as 255; all equal become 0."""
    low, high = int(values_HW.min()), int(values_HW.max())
    shades: NDArray[np.uint8] = np.rint(np.arange(high - low + 1) * (255 / max(1, high - low))).astype(np.uint8)
    return shades[values_HW - low]


def jpeg_size(content: bytes) -> tuple[int, int]:
    """Walk the markers of a JPEG file (ITU-T T.81, annex B) to its end and return (height, width) in pixels.

    Raises:
        ValueError: what is wrong with it, in a few words.
    """
    if not content.startswith(_JPEG):
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
        if marker in _OTHER_FRAMES:
            raise ValueError("a lossless, arithmetic or hierarchical one")
        if marker in _FRAMES:
            frame = content[position + 4 : position + 9]
            size = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
            if frame[:1] != b"\x08" or min(size) < 1:
                raise ValueError("one without 8-bit samples or a size")
            check_size(*size)
        position += 2 + length
        if marker == _SCAN:
            end = _AFTER_SCAN.search(content, position)
            if end is None:
                raise ValueError("a truncated one")
            position = end.start()
    if size is None:
        raise ValueError("one without an image")
    return size


def png_size(content: bytes) -> tuple[int, int]:
    """Walk the chunks of a PNG file (ISO/IEC 15948) with their checksums and return (height, width) in pixels.

    Raises:
        ValueError: what is wrong with it, in a few words.
    """
    if not content.startswith(_PNG):
        raise ValueError("another format")
    if content[12:16] != b"IHDR" or len(content) < 33:
        raise ValueError("one without a header")
    width, height = int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    if min(width, height) < 1:
        raise ValueError("one without a size")
    check_size(height, width)
    view, position, has_image = memoryview(content), len(_PNG), False
    while True:
        length = int.from_bytes(content[position : position + 4], "big")
        kind = content[position + 4 : position + 8]
        end = position + 12 + length
        if len(content) < end or len(kind) < 4:
            raise ValueError("a truncated one")
        if zlib.crc32(view[position + 4 : end - 4]) != int.from_bytes(content[end - 4 : end], "big"):
            raise ValueError("a damaged one")
        if kind == b"acTL":
            raise ValueError("an animated one")
        has_image |= kind == b"IDAT"
        if kind == b"IEND":
            break
        position = end
    if not has_image:
        raise ValueError("one without an image")
    return height, width


def check_size(height: int, width: int) -> None:
    """Refuse an image of more than `MAX_PIXELS` pixels.

    Raises:
        ValueError: how many it has.
    """
    if height * width > MAX_PIXELS:
        raise ValueError(f"one of {width}x{height} pixels, more than {MAX_PIXELS:,}")


def claimed_frame_size(frame: bytes) -> tuple[int, int] | None:
    """Return the (height, width) that a JPEG 2000, JPEG or JPEG-LS frame claims, or None."""
    # The codestream stands at the start, or in the boxes of a JP2 file; elsewhere these bytes are chance.
    start = frame.find(b"\xff\x4f\xff\x51") if frame[4:8] == b"jP  " else 0
    if frame[start : start + 4] == b"\xff\x4f\xff\x51":
        siz = np.frombuffer(frame[start + 8 : start + 24].ljust(16, b"\0"), ">u4")
        width, height, left, top = map(int, siz)
        return height - top, width - left
    position = 2
    while frame[:2] == b"\xff\xd8" and len(frame) >= position + 9 and frame[position] == 0xFF:
        marker = frame[position + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return (
                int.from_bytes(frame[position + 5 : position + 7], "big"),
                int.from_bytes(frame[position + 7 : position + 9], "big"),
            )
        position += 1 if marker == 0xFF else 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
    return None


def _describe_format(content: bytes) -> str:
    if content[128:132] == b"DICM":
        return "a DICOM file, which --pixels dicom-voi or mimic-jpg-compat reads"
    if not content:
        return "an empty file"
    return next((name for magic, name in _OTHERS.items() if content.startswith(magic)), "another format")
