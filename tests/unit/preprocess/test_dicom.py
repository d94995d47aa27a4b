"""DICOM files: shades as the standard and MIMIC-CXR-JPG's description say, written out here a second time."""

import logging
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, uid
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from cxr_hvd.study.layout import View
from cxr_hvd.study.study_file import StudyFile
from preprocess.pixels import pipelines, rasters
from preprocess.pixels.dicom import _quiet, decode_mimic, decode_voi, view_position
from preprocess.records import BadImageError, ImageRecord
from tests.helpers.commands import preprocess_here
from tests.helpers.synthetic import SECRETS, dicom_bytes, write_dicom, write_mimic_cxr

RNG = np.random.default_rng(3)
DEEP = np.sort(RNG.integers(0, 4096, (48, 64)), axis=None).astype(np.uint16).reshape(48, 64)
PIPELINES = ("dicom-voi", "mimic-jpg-compat")


def _load(tmp_path: Path, content: bytes, pipeline: str = "dicom-voi", size: int = 32) -> np.ndarray:
    path = tmp_path / "patient00001.dcm"
    path.write_bytes(content)
    return pipelines.load_image(ImageRecord(path, View.PA, "list.csv row 2"), size, pipeline)


def _lut(first: int, entries: list[int], bits: int = 16) -> list[Dataset]:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item["LUTDescriptor"].VR = "US" if first >= 0 else "SS"
    item.add_new("LUTData", "OW", np.array(entries, "<u2").tobytes())
    return [item]


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
    found = decode_voi(content, 1).astype(float)
    assert np.abs(found - expected).max() <= 0.51
    assert found.max() - found.min() > 100


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
        _load(tmp_path, file.getvalue())
    assert "copy it again" not in caught.value.reason


def test_what_another_copy_would_not_mend_is_not_told_to_be_copied_again(tmp_path: Path) -> None:
    for what in ("multi-frame", "4 bits", "palette", "window of 0"):
        with pytest.raises(BadImageError, match="remove the row") as caught:
            _load(tmp_path, BAD[what][0]())
        assert "copy it again" not in caught.value.reason
    with pytest.raises(BadImageError, match="copy it again"):
        _load(tmp_path, BAD["cut"][0]())


def test_only_a_deflated_file_is_refused_as_deflated(tmp_path: Path) -> None:
    deflated, plain = "1.2.840.10008.1.2.1.99", uid.ExplicitVRLittleEndian
    mentions = dicom_bytes(DEEP, AvailableTransferSyntaxUID=[plain, deflated], ViewPosition="AP")
    np.testing.assert_array_equal(decode_voi(mentions, 1), decode_voi(dicom_bytes(DEEP), 1))
    path = tmp_path / "film.dcm"
    path.write_bytes(mentions)
    assert view_position(path) == "AP"
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    with pytest.raises(ValueError, match="deflated"):
        decode_voi(path.read_bytes(), 1)
    assert view_position(path) == ""


def test_color_becomes_gray_by_luma() -> None:
    values = RNG.integers(0, 256, (20, 30, 3)).astype(np.uint8)
    expected = values @ np.array([0.299, 0.587, 0.114])
    assert np.abs(decode_voi(dicom_bytes(values), 1) - expected).max() <= 1.01
    with pytest.raises(ValueError, match="in color"):
        decode_mimic(dicom_bytes(values), 1)


def test_pixel_spacing_changes_nothing(tmp_path: Path) -> None:
    plain, spaced = dicom_bytes(DEEP), dicom_bytes(DEEP, PixelSpacing=[0.1, 0.3], ImagerPixelSpacing=[1, 9])
    np.testing.assert_array_equal(_load(tmp_path, plain), _load(tmp_path, spaced))


def _without_preamble(content: bytes) -> bytes:
    return content[132:]


def _without_syntax(content: bytes) -> bytes:
    dataset = pydicom.dcmread(BytesIO(content))
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    element = b"\x02\x00\x10\x00UI\x14\x001.2.840.10008.1.2.1\0"
    assert element in content
    start = content.index(element)
    length = int.from_bytes(content[140:144], "little") - len(element)
    return content[:140] + length.to_bytes(4, "little") + content[144:start] + content[start + len(element) :]


def _replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    assert len(old) == len(new)

    def change(content: bytes) -> bytes:
        assert content.count(old) >= 1
        return content.replace(old, new)

    return change


def _other_size(content: bytes) -> bytes:
    start = content.index(b"\xff\x4f\xff\x51") + 8
    return content[:start] + (50_000).to_bytes(4, "big") * 2 + content[start + 8 :]


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "no preamble": (lambda: _without_preamble(dicom_bytes(DEEP)), "another format"),
    "no transfer syntax": (lambda: _without_syntax(dicom_bytes(DEEP)), "without a transfer syntax"),
    "unknown transfer syntax": (
        lambda: _replaced(b"1.2.840.10008.1.2.1\0", b"1.2.840.99998.1.2.1\0")(dicom_bytes(DEEP)),
        "unknown transfer syntax|damaged or truncated",
    ),
    "video": (
        lambda: _replaced(b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.4.99")(
            dicom_bytes(DEEP, "JPEG2000Lossless")
        ),
        "unknown transfer syntax",
    ),
    "multi-frame": (lambda: dicom_bytes(np.tile(DEEP, (2, 1)), Rows=48, NumberOfFrames=2), "one of 2 frames"),
    "no pixels": (lambda: dicom_bytes(DEEP, PixelData=None), "without pixels"),
    "cut": (lambda: dicom_bytes(DEEP)[:-1000], "cut short|damaged or truncated"),
    "absurd size": (lambda: dicom_bytes(DEEP, Rows=50_000, Columns=50_000), "50000x50000 pixels, more than"),
    "absurd frame": (lambda: _other_size(dicom_bytes(DEEP, "JPEG2000Lossless")), "another size than its header"),
    "too few pixels": (lambda: dicom_bytes(DEEP, Rows=4000), "cut short"),
    "4 bits": (lambda: dicom_bytes(DEEP, BitsStored=4), "4 of 16 bits"),
    "32 bits": (lambda: dicom_bytes(DEEP.astype(np.uint32)), "32 of 32 bits"),
    "palette": (lambda: dicom_bytes(DEEP, PhotometricInterpretation="PALETTE COLOR"), "neither MONOCHROME1"),
    "window of 0": (lambda: dicom_bytes(DEEP, WindowCenter=1, WindowWidth=0), "no number"),
    "odd function": (
        lambda: dicom_bytes(DEEP, WindowCenter=1, WindowWidth=9, VOILUTFunction="CUBIC"),
        "no number",
    ),
    "a name as a number": (
        lambda: _replaced(b"DS\x08\x0012345678", b"DS\x08\x00DOE^JOHN")(
            dicom_bytes(DEEP, WindowCenter="12345678", WindowWidth=9)
        ),
        "look-up tables|damaged",
    ),
    "empty LUT": (lambda: dicom_bytes(DEEP, VOILUTSequence=[Dataset()]), "look-up tables"),
    "a JPEG": (lambda: b"\xff\xd8\xff\xe0" + bytes(300), "another format"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_files_are_refused_and_nobody_is_named(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    make, message = BAD[what]
    content = make()
    caplog.clear()
    capfd.readouterr()
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(BadImageError, match=message) as caught:
            _load(tmp_path, content)
    said = f"{caught.value} {caught.value.__cause__} {caplog.text} {[str(one.message) for one in warned]}"
    said += "".join(capfd.readouterr())
    assert "\n" not in caught.value.reason and caught.value.where == "list.csv row 2"
    for secret in (*SECRETS.values(), "4711", "patient00001"):
        assert secret not in said


def test_an_absurd_header_is_refused_before_pixels_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pydicom.pixels.utils.pixel_array", lambda *_: pytest.fail("decoded"))
    for make in (BAD["absurd size"][0], BAD["absurd frame"][0]):
        with pytest.raises(ValueError, match=r"size|pixels"):
            decode_voi(make(), 1)


@pytest.mark.parametrize("syntax", ["ExplicitVRLittleEndian", "RLELossless", "JPEG2000Lossless"])
@settings(deadline=None)
@given(data=st.data())
def test_damaged_files_are_refused_or_read_and_never_crash(syntax: str, data: st.DataObject) -> None:
    content = bytearray(dicom_bytes(DEEP, syntax, WindowCenter=2000, WindowWidth=1000))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    for decode in (decode_voi, decode_mimic):
        try:
            shades = decode(bytes(content), 1)
        except ValueError as error:
            assert not any(secret in str(error) for secret in SECRETS.values())
        else:
            assert shades.dtype == np.uint8 and shades.ndim == 2


def test_the_two_ways_and_raster_files_do_not_mix(tmp_path: Path) -> None:
    content = dicom_bytes(DEEP)
    assert (_load(tmp_path, content) != _load(tmp_path, content, "mimic-jpg-compat")).any()
    with pytest.raises(BadImageError, match="a DICOM file, which --pixels dicom-voi or mimic-jpg-compat reads"):
        _load(tmp_path, content, pipelines.RASTER)


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
    found = _load(tmp_path, dicom_bytes(halves), pipeline)
    assert found.shape == (32, 32) and (found[:, :16] == 0).all() and (found[:, 16:] == 255).all()


def test_limits_are_those_of_rasters() -> None:
    rasters.check_size(10_000, 10_000)
    with pytest.raises(ValueError):
        rasters.check_size(10_000, 10_001)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_no_bytes_of_the_patient_reach_a_file_or_the_screen(tmp_path: Path, pipeline: str) -> None:
    root = write_mimic_cxr(tmp_path / "data", 20, write_image=write_dicom, suffix="dcm")
    damaged = min(root.rglob("*.dcm"))
    damaged.write_bytes(damaged.read_bytes()[:-100])
    out = tmp_path / "out"
    out.mkdir()
    options = ("--pixels", pipeline, "--max-bad", "5%", "--key", tmp_path / "site.key")
    done = preprocess_here("mimic-cxr-dicom", root, "--out", out / "a.h5", *options)
    assert done.exit_code == 0, done.output
    with StudyFile(out / "a.h5") as file:
        assert file.header.pixels == pipeline
        pages = [page.tobytes() for index in range(len(file)) for page in file.images(index)]
    written = b"".join(path.read_bytes() for path in out.iterdir()) + done.output.encode()
    # A ramp of shades from 49 to 48 and back spells 10000001.
    for page in pages:
        assert page in written
        written = written.replace(page, b"")
    assert b"row" in written
    # The patients, studies and images of the tables, too.
    names = {part for path in root.rglob("*.dcm") for part in (path.parts[-3], path.parts[-2][1:], path.stem)}
    for secret in {*SECRETS.values(), *names, *(name.lstrip("p") for name in names)}:
        assert secret.encode() not in written


def test_what_pydicom_says_is_not_heard(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with _quiet():
            logging.getLogger("pydicom").warning("DOE^JOHN")
            warnings.warn("DOE^JOHN", stacklevel=1)
    assert not warned and "DOE" not in caplog.text
    logging.getLogger("pydicom").warning("heard again")
    assert "heard again" in caplog.text
