"""DICOM shades are as the standard and MIMIC-CXR-JPG's description say, written out here a second time."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from preprocess.pixels.dicom import decode_mimic, decode_voi, view_position
from tests.helpers.dicoms import DEEP, PIPELINES, load_dicom
from tests.helpers.synthetic import dicom_bytes


def _lut(first: int, entries: list[int], bits: int = 16) -> list[Dataset]:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item["LUTDescriptor"].VR = "US" if first >= 0 else "SS"
    item.add_new("LUTData", "OW", np.array(entries, "<u2").tobytes())
    return [item]


RNG = np.random.default_rng(3)
STEPS = [int(value) for value in 1000 * np.sqrt(np.arange(4096))]

WAYS: dict[str, dict[str, object]] = {
    "no window": {},
    "window": {"WindowCenter": 2000, "WindowWidth": 1000},
    "two windows": {"WindowCenter": [2000, 100], "WindowWidth": [1000, 10]},
    "window of 1": {"WindowCenter": 2000, "WindowWidth": 1},
    "rescaled": {"RescaleSlope": 2, "RescaleIntercept": -1024, "WindowCenter": 2000, "WindowWidth": 3000},
    "falling": {"RescaleSlope": -1, "RescaleIntercept": 4095},
    "exact": {"WindowCenter": 2000, "WindowWidth": 0.5, "VOILUTFunction": "LINEAR_EXACT"},
    "sigmoid": {"WindowCenter": 2000, "WindowWidth": 800, "VOILUTFunction": "SIGMOID"},
    "VOI LUT": {"VOILUTSequence": _lut(0, STEPS), "WindowCenter": 2000, "WindowWidth": 10},
    "VOI LUT from 500": {"VOILUTSequence": _lut(500, STEPS[:1000])},
    "modality LUT": {"ModalityLUTSequence": _lut(0, STEPS), "WindowCenter": 30000, "WindowWidth": 60000},
}


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("way", WAYS)
def test_voi_says_the_same_as_pydicoms_own_windowing(way: str, photometric: str) -> None:
    content = dicom_bytes(DEEP, BitsStored=12, PhotometricInterpretation=photometric, **WAYS[way])
    dataset = pydicom.dcmread(BytesIO(content))
    shown = apply_voi_lut(apply_modality_lut(DEEP, dataset), dataset).astype(float)
    # pydicom gives values of the file's own range; ours goes from 0 to 255 over what a window or a LUT can give.
    if "VOILUTSequence" in WAYS[way]:
        table = np.frombuffer(dataset.VOILUTSequence[0].LUTData, "<u2").astype(float)
        low, high = table.min(), table.max()
    elif "WindowCenter" in WAYS[way]:
        bits = 16 if "ModalityLUTSequence" in WAYS[way] else 12
        slope = float(WAYS[way].get("RescaleSlope", 1))  # type: ignore[arg-type]
        low = float(WAYS[way].get("RescaleIntercept", 0))  # type: ignore[arg-type]
        high = low + slope * (2**bits - 1)
    else:
        low, high = shown.min(), shown.max()
    expected = (shown - low) / (high - low) * 255
    if photometric == "MONOCHROME1":
        expected = 255 - expected
    actual = decode_voi(content, 1).astype(float)
    assert np.abs(actual - expected).max() <= 0.51
    assert actual.max() - actual.min() > 100


def _mimic_by_hand(values: np.ndarray, is_inverted: bool) -> np.ndarray:
    """MIMIC-CXR-JPG's description, step by step, without OpenCV; equalisation as OpenCV documents equalizeHist."""
    shifted = values.astype(float) - values.min()
    shades = np.floor(shifted / shifted.max() * 255).astype(int)
    if is_inverted:
        shades = 255 - shades
    counts = [int((shades == shade).sum()) for shade in range(256)]
    darkest = next(shade for shade in range(256) if counts[shade])
    rest = values.size - counts[darkest]
    below, table = 0, {darkest: 0}
    for shade in range(darkest + 1, 256):
        below += counts[shade]
        table[shade] = round(below * 255 / rest)
    return np.vectorize(table.get)(shades)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16])
def test_mimic_says_the_same_as_its_description(kind: type, photometric: str) -> None:
    values = np.exp(RNG.normal(4, 0.4, (57, 64))).astype(kind)
    # A window or a rescale must not enter.
    content = dicom_bytes(
        values,
        PhotometricInterpretation=photometric,
        WindowCenter=10,
        WindowWidth=5,
        RescaleSlope=-1,
        RescaleIntercept=0,
    )
    expected = _mimic_by_hand(values, photometric == "MONOCHROME1")
    # OpenCV sums up in float32: a shade that falls on a half may go either way.
    assert np.abs(decode_mimic(content, 1) - expected).max() <= 1
    assert (decode_mimic(content, 1) != expected).mean() < 0.02


@settings(deadline=None)
@given(bits=st.integers(8, 16), is_signed=st.booleans(), seed=st.integers(0, 99))
def test_all_depths_span_all_shades(bits: int, is_signed: bool, seed: int) -> None:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if is_signed else (0, 2**bits - 1)
    values = np.random.default_rng(seed).integers(low, high, (16, 16), endpoint=True)
    values = values.astype(np.int16 if is_signed else np.uint16)
    values[0, :2] = low, high
    content = dicom_bytes(values, BitsStored=bits)
    expected = (values - float(low)) / (high - low) * 255
    assert np.abs(decode_voi(content, 1) - expected).max() <= 0.51
    assert {0, 255} <= set(np.unique(decode_mimic(content, 1)).tolist())


def test_color_becomes_gray_by_luma() -> None:
    values = RNG.integers(0, 256, (20, 30, 3)).astype(np.uint8)
    expected = values @ np.array([0.299, 0.587, 0.114])
    assert np.abs(decode_voi(dicom_bytes(values), 1) - expected).max() <= 1.01
    with pytest.raises(ValueError, match="in color"):
        decode_mimic(dicom_bytes(values), 1)


def test_pixel_spacing_changes_nothing(tmp_path: Path) -> None:
    plain, spaced = dicom_bytes(DEEP), dicom_bytes(DEEP, PixelSpacing=[0.1, 0.3], ImagerPixelSpacing=[1, 9])
    np.testing.assert_array_equal(load_dicom(tmp_path, plain), load_dicom(tmp_path, spaced))


def test_the_view_is_read_without_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(dicom_bytes(DEEP, ViewPosition="LL"))
    assert view_position(path) == "LL"
    path.write_bytes(dicom_bytes(DEEP))
    assert view_position(path) == ""
    path.write_bytes(b"rubbish")
    assert view_position(path) == "" == view_position(tmp_path / "missing.dcm")


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_pixels_are_resized_by_area(tmp_path: Path, pipeline: str) -> None:
    halves = np.repeat(np.array([[0, 3000]], np.uint16), 32, axis=0).repeat(64, axis=1)
    actual = load_dicom(tmp_path, dicom_bytes(halves), pipeline)
    assert actual.shape == (32, 32) and (actual[:, :16] == 0).all() and (actual[:, 16:] == 255).all()
