"""DICOM transfer syntaxes: compression changes nothing, and a missing decoder is named."""

from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.encaps import encapsulate

from preprocess.pixels.dicom import decode_mimic, decode_voi
from preprocess.records import BadImageError
from tests.helpers.dicoms import DEEP, load_dicom
from tests.helpers.synthetic import dicom_bytes


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEG2000Lossless"])
@pytest.mark.parametrize("values", [DEEP, (DEEP >> 4).astype(np.uint8)], ids=["12 bits", "8 bits"])
def test_compression_changes_nothing(values: np.ndarray, syntax: str) -> None:
    stored = 12 if values.itemsize == 2 else 8
    content = dicom_bytes(values, syntax, BitsStored=stored)
    plain = dicom_bytes(values, BitsStored=stored)
    for decode in (decode_voi, decode_mimic):
        np.testing.assert_array_equal(decode(content, 1), decode(plain, 1))


def _with_bits_above(values: np.ndarray, syntax: str, stored: int) -> bytes:
    """Return a DICOM file whose words of 16 bits hold more than the `stored` bits that its header names."""
    dataset = pydicom.dcmread(BytesIO(dicom_bytes(values, syntax)))
    dataset.BitsStored, dataset.HighBit = stored, stored - 1
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


@pytest.mark.parametrize("syntax", ["ExplicitVRLittleEndian", "RLELossless", "JPEG2000Lossless"])
@settings(deadline=None, max_examples=20)
@given(bits=st.integers(8, 15), is_signed=st.booleans(), seed=st.integers(0, 99))
def test_bits_above_the_stored_ones_are_no_pixels_in_any_transfer_syntax(
    syntax: str, bits: int, is_signed: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    low = -(2 ** (bits - 1)) if is_signed else 0
    values = rng.integers(low, low + 2**bits, (48, 48)).astype(np.int16 if is_signed else np.uint16)
    overlays = rng.integers(0, 2 ** (16 - bits), values.shape).astype(np.uint16) << bits
    marked = ((values.view(np.uint16) & (2**bits - 1)) | overlays).view(values.dtype)
    for decode in (decode_voi, decode_mimic):
        np.testing.assert_array_equal(
            decode(_with_bits_above(marked, syntax, bits), 1), decode(dicom_bytes(values, BitsStored=bits), 1)
        )


def test_bytes_that_look_like_a_codestream_are_read_all_the_same() -> None:
    values = np.tile(np.array([0xFF, 0x4F, 0xFF, 0x51, 3, 1, 4], np.uint8), (9, 2))
    np.testing.assert_array_equal(
        decode_voi(dicom_bytes(values, "RLELossless"), 1), decode_voi(dicom_bytes(values), 1)
    )


def _as_jpeg(values: np.ndarray, syntax: uid.UID = uid.JPEGBaseline8Bit) -> bytes:
    dataset = pydicom.dcmread(BytesIO(dicom_bytes(values)))
    dataset.PixelData = encapsulate([cv2.imencode(".jpg", values, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def test_a_jpeg_inside_is_read() -> None:
    values = np.linspace(0, 255, 64 * 48).reshape(48, 64).astype(np.uint8)
    assert np.abs(decode_voi(_as_jpeg(values), 1).astype(int) - values).max() <= 2


def test_a_compression_without_decoder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.is_available", property(lambda _: False))
    with pytest.raises(
        ValueError, match=r"^JPEG Lossless.* which no installed decoder reads \(extra 'dicom-jpeg'"
    ):
        decode_voi(_as_jpeg(np.zeros((8, 8), np.uint8), uid.JPEGLosslessSV1), 1)


def test_12_bit_jpeg_extended_names_the_extra_that_decodes_it(tmp_path: Path) -> None:
    content = _as_jpeg((DEEP >> 4).astype(np.uint8), uid.JPEGExtended12Bit)
    assert np.abs(decode_voi(content, 1).astype(int) - (DEEP >> 4)).max() <= 3  # Pillow reads 8 bits of it
    dataset = pydicom.dcmread(BytesIO(content))
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    with pytest.raises(
        BadImageError, match=r"\(extra 'dicom-jpeg'.*pip install 'cxr_hvd\[dicom-jpeg\]'"
    ) as caught:
        load_dicom(tmp_path, file.getvalue())
    assert "copy it again" not in caught.value.reason
