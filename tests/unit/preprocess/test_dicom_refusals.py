"""DICOM files that are refused, and what is never shown of a patient."""

import logging
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, uid

from cxr_hvd.study.study_file import StudyFile
from preprocess.pixels import pipelines, rasters
from preprocess.pixels.dicom import _quiet, decode_mimic, decode_voi, view_position
from preprocess.records import BadImageError
from tests.helpers.commands import preprocess_here
from tests.helpers.dicoms import DEEP, PIPELINES, load_dicom
from tests.helpers.synthetic import SECRETS, dicom_bytes, write_dicom, write_mimic_cxr


def test_what_another_copy_would_not_mend_is_not_told_to_be_copied_again(tmp_path: Path) -> None:
    for what in ("multi-frame", "4 bits", "palette", "window of 0"):
        with pytest.raises(BadImageError, match="leave it out") as caught:
            load_dicom(tmp_path, BAD[what][0]())
        assert "copy it again" not in caught.value.reason
    with pytest.raises(BadImageError, match="copy it again"):
        load_dicom(tmp_path, BAD["cut"][0]())


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
    "two transfer syntaxes": (
        lambda: _replaced(b"1.2.840.10008.1.2.5", b"1.2.840.10008\\1.2.5")(dicom_bytes(DEEP, "RLELossless")),
        "unknown transfer syntax",
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
            load_dicom(tmp_path, content)
    output = f"{caught.value} {caught.value.__cause__} {caplog.text} {[str(one.message) for one in warned]}"
    output += "".join(capfd.readouterr())
    assert "\n" not in caught.value.reason and caught.value.where == "list.csv row 2"
    for secret in (*SECRETS.values(), "4711", "patient00001"):
        assert secret not in output


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
    assert (load_dicom(tmp_path, content) != load_dicom(tmp_path, content, "mimic-jpg-compat")).any()
    with pytest.raises(BadImageError, match="a DICOM file, which --pixels dicom-voi or mimic-jpg-compat reads"):
        load_dicom(tmp_path, content, pipelines.RASTER)


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
