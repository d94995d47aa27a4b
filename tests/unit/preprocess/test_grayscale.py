"""Look-up tables and windows of DICOM: where they begin, and what they must not do to a film."""

from io import BytesIO

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, uid

from preprocess.pixels.dicom import decode_voi
from preprocess.records import UnusableImageError
from tests.helpers.synthetic import dicom_bytes

SIGNED = np.arange(-2048, 2048, dtype=np.int16).reshape(64, 64)
UNSIGNED = np.arange(40_000, 44_096, dtype=np.uint16).reshape(64, 64)
RAMP = np.rint(np.arange(4096) / 4095 * 255).astype(np.uint8).reshape(64, 64)
ENTRIES = np.arange(4096, dtype="<u2")


def _lut(first: int, vr: str) -> list[Dataset]:
    """Return a LUT of 4096 rising entries from the 16 bits `first`, written as US or as SS."""
    item = Dataset()
    word = int(np.array(first & 0xFFFF, np.uint16).view(np.int16)) if vr == "SS" else first & 0xFFFF
    item.add_new("LUTDescriptor", vr, [4096, word, 16])
    item.add_new("LUTData", "OW", ENTRIES.tobytes())
    item.ModalityLUTType = "US"
    return [item]


@pytest.mark.parametrize("syntax", ["ExplicitVRLittleEndian", "ImplicitVRLittleEndian"])
@pytest.mark.parametrize("vr", ["US", "SS"])
@pytest.mark.parametrize("sequence", ["VOILUTSequence", "ModalityLUTSequence"])
def test_a_luts_first_input_has_the_sign_of_the_pixels_whatever_its_type(
    sequence: str, vr: str, syntax: str
) -> None:
    for values, first, bits in ((SIGNED, -2048, 12), (UNSIGNED, 40_000, 16)):
        dataset = pydicom.dcmread(BytesIO(dicom_bytes(values, BitsStored=bits, **{sequence: _lut(first, vr)})))
        dataset.file_meta.TransferSyntaxUID = getattr(uid, syntax)
        file = BytesIO()
        dataset.save_as(file, enforce_file_format=True)
        np.testing.assert_array_equal(decode_voi(file.getvalue(), 1), RAMP)


@pytest.mark.parametrize("vr", ["US", "SS"])
def test_a_voi_lut_after_a_rescale_has_the_sign_of_what_the_rescale_can_give(vr: str) -> None:
    unsigned = (SIGNED + 2048).astype(np.uint16)
    lower = dicom_bytes(
        unsigned, BitsStored=12, RescaleSlope=1, RescaleIntercept=-2048, VOILUTSequence=_lut(-2048, vr)
    )
    np.testing.assert_array_equal(decode_voi(lower, 1), RAMP)
    # Signed pixels that a rescale makes unsigned, and the entries of a modality LUT: 40000 is no negative number.
    higher = dicom_bytes(SIGNED, RescaleSlope=1, RescaleIntercept=42_048, VOILUTSequence=_lut(40_000, vr))
    np.testing.assert_array_equal(decode_voi(higher, 1), RAMP)
    modality = _lut(-2048, vr)
    modality[0].LUTData = (ENTRIES + 40_000).astype("<u2").tobytes()
    both = dicom_bytes(SIGNED, BitsStored=12, ModalityLUTSequence=modality, VOILUTSequence=_lut(40_000, vr))
    np.testing.assert_array_equal(decode_voi(both, 1), RAMP)


@settings(deadline=None, max_examples=40)
@given(
    photometric=st.sampled_from(["MONOCHROME1", "MONOCHROME2"]),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    center=st.integers(-100_000, 100_000),
    width=st.integers(1, 5000),
)
def test_a_film_of_many_values_keeps_some_of_them_or_is_set_aside(
    photometric: str, function: str, center: int, width: int
) -> None:
    content = dicom_bytes(
        UNSIGNED,
        PhotometricInterpretation=photometric,
        WindowCenter=center,
        WindowWidth=width,
        VOILUTFunction=function,
    )
    try:
        image = decode_voi(content, 1)
    except UnusableImageError as error:
        assert "a single shade" in str(error)
    else:
        assert image.min() < image.max()


@pytest.mark.parametrize(
    "attributes",
    [
        {"WindowCenter": 2048, "WindowWidth": 4096},
        {"WindowCenter": 60_000, "WindowWidth": 100, "PhotometricInterpretation": "MONOCHROME1"},
        {"RescaleSlope": 0, "RescaleIntercept": 7},
        {"VOILUTSequence": _lut(0, "US")},
        {"ModalityLUTSequence": _lut(0, "US")},
    ],
    ids=["window below", "window above", "slope of 0", "VOI LUT below", "modality LUT below"],
)
def test_what_makes_one_shade_of_a_film_sets_it_aside(attributes: dict[str, object]) -> None:
    with pytest.raises(UnusableImageError, match="a single shade of all its values"):
        decode_voi(dicom_bytes(UNSIGNED, **attributes), 1)


def test_a_burnt_in_letter_makes_no_film_of_a_blank_one() -> None:
    film = np.tile(UNSIGNED, (2, 2))
    film[:2, :3] = 0
    with pytest.raises(UnusableImageError, match="a single shade of all its values"):
        decode_voi(dicom_bytes(film, WindowCenter=2048, WindowWidth=4096), 1)
    assert decode_voi(dicom_bytes(film, WindowCenter=42_048, WindowWidth=4096), 1).std() > 50


def test_a_film_that_is_blank_by_itself_is_read() -> None:
    blank = np.full((64, 64), 700, np.uint16)
    assert decode_voi(dicom_bytes(blank, WindowCenter=9, WindowWidth=5), 1).std() == 0
    blank[0, 0] = 4000
    assert decode_voi(dicom_bytes(blank), 1).max() == 255
