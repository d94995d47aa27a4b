"""Decode DICOM files to 8-bit gray images, in two ways that must not be mixed: `decode_voi` and `decode_mimic`.

Only the attributes that pixels need are read (`_TAGS`), so no name, identifier, date or text of a patient is ever
in memory as such; pydicom's warnings and messages, which quote values, are silenced; an error says what kind of
thing was found in a few words of this module. What is refused is a `ValueError`.

Passed over, and so part of no image: pixel spacing, patient orientation, overlays, annotations, shutters. Only
single frames of 8 to 16 bits are read. The size that a compressed frame claims is compared with Rows and Columns
before it is decoded. pydicom is imported when the first file comes.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray

from preprocess.pixels import grayscale
from preprocess.pixels.rasters import check_size, claimed_frame_size
from preprocess.records import UnusableImageError

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

_TAGS = [
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData", "LossyImageCompression"),
    *("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept", "RescaleType"),
    *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
]
_BLANK = 0.999  # of all pixels in one shade: there is nothing to see


def decode_voi(content: bytes, size: int) -> NDArray[np.uint8]:
    """Return a DICOM image as its maker meant it to be seen: (H, W) uint8, air dark.

    Modality LUT or rescale, then the first VOI LUT, or else the first window (DICOM PS3.3 C.11.1 and C.11.2), or
    else, where the file has neither, the range from its smallest to its largest value; MONOCHROME1 is inverted.
    Color (8 bits) becomes gray by BT.601 luma.

    Raises:
        ValueError: what is wrong with the file, in a few words.
    """
    dataset = _dataset(content)
    values_HW = _values(dataset)
    if values_HW.ndim == 3:
        return np.asarray(cv2.cvtColor(values_HW.astype(np.uint8), cv2.COLOR_RGB2GRAY), np.uint8)
    # All values that occur, once: the image is then a look-up.
    low, high = int(values_HW.min()), int(values_HW.max())
    with _reading("look-up tables that cannot be applied"):
        shares = grayscale.brightness(dataset, np.arange(low, high + 1, dtype=np.int32))
    if not np.isfinite(shares).all():
        raise UnusableImageError("one with a window or a rescale that is no number")
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shares = 1 - shares
    shades_V = np.rint(shares * 255).astype(np.uint8)
    places_HW = values_HW.astype(np.int32) - low
    counts_V = np.bincount(places_HW.ravel())
    # With a window outside its values a film is blank, but perhaps for a burnt-in letter.
    num_of_shade, num_of_value = np.bincount(shades_V, weights=counts_V).max(), counts_V.max()
    if num_of_shade == places_HW.size > num_of_value or num_of_shade >= _BLANK * places_HW.size > num_of_value:
        raise UnusableImageError("one whose window or look-up table makes a single shade of all its values")
    return shades_V[places_HW]


def decode_mimic(content: bytes, size: int) -> NDArray[np.uint8]:
    """Return a DICOM image as MIMIC-CXR-JPG has it, before its JPEG compression: (H, W) uint8.

    Johnson et al., "MIMIC-CXR-JPG" (PhysioNet 2019), Methods: the stored values less their smallest, divided by
    what is then the largest, times 255, truncated; inverted where MONOCHROME1; histogram-equalised by OpenCV. No
    modality or VOI LUT enters.

    Raises:
        ValueError: what is wrong with the file, in a few words.
    """
    dataset = _dataset(content)
    values_HW = _values(dataset)
    if values_HW.ndim == 3:
        raise UnusableImageError("one in color, which MIMIC-CXR does not have")
    # All values that occur, once: the image is then a look-up.
    low, high = int(values_HW.min()), int(values_HW.max())
    shades = (np.arange(high - low + 1) / max(1, high - low) * 255).astype(np.uint8)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shades = 255 - shades
    return np.asarray(cv2.equalizeHist(shades[values_HW.astype(np.int32) - low]), np.uint8)


def view_position(path: Path) -> str:
    """Return a file's ViewPosition (0018,5101) in capitals, or an empty string where there is none to read."""
    return _header(path, "ViewPosition")[0].upper()


def study_header(path: Path) -> tuple[str, str]:
    """Return a file's StudyInstanceUID (0020,000D), which is only to be compared, and its ViewPosition.

    Either is empty where there is none to read.
    """
    uid, view = _header(path, "StudyInstanceUID", "ViewPosition")
    return uid, view.upper()


def _header(path: Path, *tags: str) -> tuple[str, ...]:
    import pydicom

    try:
        with path.open("rb") as file, _quiet():
            if _is_deflated(file):
                return ("",) * len(tags)
            dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=[*tags])
            return tuple(str(dataset.get(tag) or "").strip() for tag in tags)
    # pydicom raises many kinds on damaged files; the image is refused, with a reason, when its pixels are read.
    except Exception:
        return ("",) * len(tags)


def _dataset(content: bytes) -> "Dataset":
    """Read what the pixels need, and check all that can be checked before they are decoded."""
    import pydicom
    from pydicom.uid import UID

    if content[128:132] != b"DICM":
        raise ValueError("another format")
    file = BytesIO(content)
    with _reading("one that is damaged or truncated"):
        is_deflated = _is_deflated(file)
    if is_deflated:
        raise UnusableImageError(
            "one with a deflated data set, whose size cannot be known beforehand", "write it again without deflate"
        )
    with _reading("one that is damaged or truncated"):
        dataset = pydicom.dcmread(file, specific_tags=_TAGS)
        syntax = dataset.file_meta.get("TransferSyntaxUID")
        rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
        frames, samples = int(dataset.get("NumberOfFrames") or 1), int(dataset.get("SamplesPerPixel") or 0)
        photometric = str(dataset.get("PhotometricInterpretation"))
        allocated, stored = int(dataset.get("BitsAllocated") or 0), int(dataset.get("BitsStored") or 0)
        high_bit = int(dataset.get("HighBit", stored - 1))
        has_pixels = "PixelData" in dataset
    if not syntax:
        raise ValueError("one without a transfer syntax")
    if not isinstance(syntax, UID):  # a backslash makes a list of it
        raise ValueError("an unknown transfer syntax")
    if not has_pixels or min(rows, columns) < 1:
        raise ValueError("one without pixels")
    if frames != 1:
        raise UnusableImageError(f"one of {frames} frames")
    check_size(rows, columns)
    if allocated not in (8, 16) or not 8 <= stored <= allocated or high_bit != stored - 1:
        raise UnusableImageError(
            f"one with {stored} of {allocated} bits up to bit {high_bit}, not 8 to 16 from bit 0"
        )
    is_gray = samples == 1 and photometric in ("MONOCHROME1", "MONOCHROME2")
    is_color = samples == 3 and allocated == 8 and photometric.startswith(("RGB", "YBR"))
    if not (is_gray or is_color):
        raise UnusableImageError("one that is neither MONOCHROME1, MONOCHROME2 nor 8-bit color")
    _check_syntax(dataset, syntax)
    return dataset


def _is_deflated(file: BinaryIO) -> bool:
    """Say whether a file's data set is deflated (PS3.5 A.5); the file is left at its start.

    Only the meta information is read, as `pydicom.dcmread` does, which then inflates a data set of any size.
    """
    from pydicom.filereader import _read_file_meta_info, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    read_preamble(file, force=False)
    syntax = _read_file_meta_info(file).get("TransferSyntaxUID")
    file.seek(0)
    return bool(syntax == DeflatedExplicitVRLittleEndian)


def _check_syntax(dataset: "Dataset", syntax: "UID") -> None:
    """Refuse a compression that nothing here decodes, and a frame of another size than the header's."""
    from pydicom.encaps import get_frame
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import JPEGExtended12Bit, JPEGLSTransferSyntaxes, JPEGTransferSyntaxes

    if not syntax.is_transfer_syntax or syntax.is_private:
        raise ValueError("an unknown transfer syntax")
    if not syntax.is_compressed:
        return
    with _reading("one without readable frames"):
        frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
        try:
            decoder = get_decoder(syntax)
            is_available = decoder.is_available
            # Pillow, which comes with this program, reads no more than the 8 bits of JPEG Extended.
            if syntax == JPEGExtended12Bit and dataset.BitsStored > 8:
                is_available = bool({*decoder.available_plugins} - {"pillow"})
        except NotImplementedError:
            is_available = False
    if not is_available:
        extra = "extra 'dicom-jpeg', or " if syntax in (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes) else ""
        raise UnusableImageError(
            f"{syntax.name} compression, which no installed decoder reads ({extra}decompress it)",
            "pip install 'cxr_hvd[dicom-jpeg]', then run again" if extra else "decompress it or leave it out",
        )
    claimed = claimed_frame_size(frame)
    if claimed is not None and claimed != (dataset.Rows, dataset.Columns):
        raise ValueError("a compressed frame of another size than its header's")


def _values(dataset: "Dataset") -> NDArray[Any]:
    """Return the stored values (H, W), or RGB (H, W, 3)."""
    from pydicom.pixels.utils import pixel_array
    from pydicom.uid import RLELossless

    # pylibjpeg-rle is faster, but panics on damaged data, past `except Exception` and onto standard error.
    plugin = "pydicom" if dataset.file_meta.TransferSyntaxUID == RLELossless else ""
    with _reading("pixels that do not decode or are cut short"):
        values: NDArray[Any] = pixel_array(dataset, decoding_plugin=plugin)
    if values.shape[:2] != (dataset.Rows, dataset.Columns) or values.dtype.kind not in "iu":
        raise ValueError("pixels of another shape than the header's")
    # Bits above the highest are no pixels (PS3.5 8.1.1): once they held overlays. Decoders leave some of them.
    num_unused = max(0, 8 * values.itemsize - int(dataset.BitsStored))
    return (values << num_unused) >> num_unused


@contextmanager
def _reading(finding: str) -> Iterator[None]:
    """Turn whatever pydicom or a decoder raises into a `ValueError` that quotes nothing of the file."""
    try:
        with _quiet():
            yield
    # Each plug-in raises kinds of its own, and on damaged files anything: all mean that this file is bad.
    except Exception as error:
        raise ValueError(f"{finding} ({type(error).__name__})") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep pydicom's warnings and log messages, which quote values of the file, to itself."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "pylibjpeg", "openjpeg", "libjpeg", "rle")]
    before = [logger.disabled for logger in loggers]
    try:
        for logger in loggers:
            logger.disabled = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, was in zip(loggers, before, strict=True):
            logger.disabled = was
