"""Map the stored values of a DICOM file to brightness: modality LUT or rescale, then VOI LUT or window.

Formulas of DICOM PS3.3, C.11.1 and C.11.2. A function here takes the values once, not the image: there are at most
65,536 of 16 bits. Inversion (MONOCHROME1) is left to the caller.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pydicom import Dataset


def brightness(dataset: "Dataset", stored: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return how bright (0 to 1) each stored value (ascending) is, after modality and VOI transformation."""
    is_signed = bool(dataset.PixelRepresentation)
    if dataset.get("ModalityLUTSequence"):
        values, _ = _looked_up(dataset, dataset.ModalityLUTSequence[0], stored, is_signed)
        is_signed = False
    else:
        slope, intercept = _first(dataset.get("RescaleSlope")), _first(dataset.get("RescaleIntercept"))
        slope, intercept = (1.0 if slope is None else slope), (intercept or 0.0)
        values = stored.astype(np.float64) * slope + intercept
        is_signed = (_possible(dataset) * slope + intercept).min() < 0
    if dataset.get("VOILUTSequence"):
        # What a LUT calls white is its largest entry: its descriptor often claims more bits than it uses.
        values, table = _looked_up(dataset, dataset.VOILUTSequence[0], np.rint(values), is_signed)
        return np.asarray(values - table.min()) / max(1, int(table.max()) - int(table.min()))
    center, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    if center is None or width is None:
        lowest, highest = values.min(), values.max()
        return np.asarray((values - lowest) / ((highest - lowest) or 1.0))
    function = str(dataset.get("VOILUTFunction") or "LINEAR")
    if function == "SIGMOID" and width > 0:
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700))))
    if function == "LINEAR_EXACT" and width > 0:
        return np.clip((values - center) / width + 0.5, 0, 1)
    if function == "LINEAR" and width > 1:
        return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)
    if function == "LINEAR" and width == 1:
        return (values > center - 0.5).astype(np.float64)
    return np.full(len(values), np.nan)


def _possible(dataset: "Dataset") -> NDArray[np.float64]:
    """Return the smallest and the largest value that the file could store."""
    num_bits = int(dataset.BitsStored)
    lowest = -(2 ** (num_bits - 1)) if dataset.PixelRepresentation else 0
    return np.array([lowest, lowest + 2**num_bits - 1], np.float64)


def _looked_up(
    dataset: "Dataset", item: "Dataset", values: NDArray[Any], is_signed: bool
) -> tuple[NDArray[np.float64], NDArray[np.uint16]]:
    """Return the entries of a LUT (PS3.3 C.11.1.1) for the values, and all its entries.

    The LUT's first input is 16 bits, signed where its inputs can be (`is_signed`), whatever type the file gives
    it: PS3.3 C.11.1.1.1 for a modality LUT, C.11.2.1.1 for a VOI LUT.
    """
    num_entries, first = (int(value) & 0xFFFF for value in item.LUTDescriptor[:2])
    num_entries = num_entries or 65_536
    if is_signed and first >= 0x8000:
        first -= 0x10000
    data = item.LUTData
    if isinstance(data, bytes):
        # Entries of 8 bits may lie two in a word.
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        data = np.frombuffer(data, np.uint8 if len(data) < 2 * num_entries else f"{order}u2")
    table = np.asarray(data, np.uint16)[:num_entries]
    return table[np.clip(values - first, 0, len(table) - 1).astype(np.int64)].astype(np.float64), table


def _first(value: Any) -> float | None:
    """Return the first of one or several decimal strings, or None where there is none.

    Raises:
        ValueError: it is text, and not a number.
    """
    if value is None or value == "" or not np.size(value):
        return None
    return float(np.ravel(np.asarray(value, np.float64))[0])
