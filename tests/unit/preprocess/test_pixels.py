"""Pixels: what is decoded, at which scale, and what is refused."""

import os
import struct
import time
import zlib
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cxr_hvd.study.layout import View
from preprocess.pixels import pipelines, rasters
from preprocess.records import BadImageError, ImageRecord
from tests.helpers.synthetic import write_jpeg


def _record(path: Path) -> ImageRecord:
    return ImageRecord(path, View.PA, "train.csv row 2")


def _encoded(height: int, width: int, *options: int, channels: int = 1) -> bytes:
    ramp = np.linspace(0, 255, height * width * channels).reshape(height, width, channels).astype(np.uint8)
    return cv2.imencode(".jpg", ramp, options)[1].tobytes()


@pytest.mark.parametrize(("height", "width"), [(31, 40), (256, 256), (390, 320), (700, 1100), (2544, 3056)])
def test_an_image_fills_the_square(tmp_path: Path, height: int, width: int) -> None:
    path = tmp_path / "ramp.jpg"
    path.write_bytes(_encoded(height, width))
    image = pipelines.load_image(_record(path), 256)
    assert (image.shape, image.dtype) == ((256, 256), np.uint8)
    # A ramp from dark at the top to bright at the bottom stays one.
    rows = image.mean(axis=1)
    assert rows[0] < 6 and rows[-1] > 249 and (np.diff(rows) > -1).all()


def test_reduced_decoding_says_the_same_as_full_decoding(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (40, 50)).astype(np.uint8)
    path = tmp_path / "large.jpg"
    cv2.imwrite(str(path), cv2.resize(coarse, (2500, 2100), interpolation=cv2.INTER_CUBIC))
    full = cv2.resize(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), (256, 256), interpolation=cv2.INTER_AREA)
    assert np.abs(pipelines.load_image(_record(path), 256).astype(int) - full).max() <= 3


@pytest.mark.parametrize("progressive", [0, 1])
@pytest.mark.parametrize("restart", [0, 4])
@settings(deadline=None)
@given(cut=st.integers(1, 4000))
def test_every_truncation_is_noticed(progressive: int, restart: int, cut: int) -> None:
    content = _encoded(
        97, 83, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive, cv2.IMWRITE_JPEG_RST_INTERVAL, restart, channels=3
    )
    assert rasters.jpeg_size(content) == (97, 83)
    with pytest.raises(ValueError):
        rasters.jpeg_size(content[: max(0, len(content) - cut)])


@given(st.binary(max_size=200))
def test_rubbish_is_refused_and_never_crashes(rubbish: bytes) -> None:
    with pytest.raises(ValueError):
        rasters.jpeg_size(b"\xff\xd8" + rubbish[:1].replace(b"\xff", b"") + rubbish)


def test_bytes_after_the_end_are_harmless(tmp_path: Path) -> None:
    path = tmp_path / "padded.jpg"
    path.write_bytes(_encoded(40, 50) + bytes(100))
    assert pipelines.load_image(_record(path), 32).shape == (32, 32)


def _claim(content: bytes, height: int, width: int) -> bytes:
    frame = content.index(b"\xff\xc0")
    return content[: frame + 5] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + content[frame + 9 :]


def _lossless() -> bytes:
    return _encoded(40, 50).replace(b"\xff\xc0", b"\xff\xc3", 1)


def _twelve_bits() -> bytes:
    content = _encoded(40, 50)
    frame = content.index(b"\xff\xc0")
    return content[: frame + 4] + b"\x0c" + content[frame + 5 :]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"nothing at all", "another format"),
        (b"\x89PNG\r\n", "another format"),
        (b"GIF89a" + bytes(30), "a GIF file, which may be animated"),
        (bytes(128) + b"DICM" + bytes(30), "a DICOM file, which --pixels dicom-voi"),
        (_encoded(40, 50)[:-30], "a truncated one"),
        (_claim(_encoded(40, 50), 50000, 50000), "50000x50000 pixels, more than 100,000,000"),
        (_lossless(), "a lossless, arithmetic or hierarchical one"),
        (_twelve_bits(), "without 8-bit samples"),
        (_claim(_encoded(40, 50), 0, 50), "without 8-bit samples or a size"),
    ],
)
def test_refusals_name_the_row_and_no_path(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "patient00001.jpg"
    path.write_bytes(content)
    with pytest.raises(BadImageError, match=message) as caught:
        pipelines.load_image(_record(path), 64)
    assert caught.value.where == "train.csv row 2"
    assert str(caught.value) == f"{caught.value.where}: {caught.value.reason}"
    assert "patient00001" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_refused_by_its_row(tmp_path: Path) -> None:
    with pytest.raises(
        BadImageError, match=r"train\.csv row 2: expected a readable image file, found none"
    ) as caught:
        pipelines.load_image(_record(tmp_path / "patient00001.jpg"), 64)
    assert "patient00001" not in str(caught.value)


def test_equal_files_give_equal_pixels(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_jpeg(tmp_path / f"{name}.jpg", 3, 400, 300)
    images = [pipelines.load_image(_record(tmp_path / f"{name}.jpg"), 64) for name in ("a", "b")]
    assert (images[0] == images[1]).all()


def _saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = BytesIO()
    image.save(file, form, **options)  # type: ignore[arg-type]
    return file.getvalue()


def _loaded(tmp_path: Path, content: bytes, size: int = 64) -> np.ndarray:
    path = tmp_path / "patient00001"
    path.write_bytes(content)
    return pipelines.load_image(_record(path), size).astype(int)


RNG = np.random.default_rng(5)
COARSE = RNG.integers(0, 256, (8, 8, 4)).astype(np.uint8)
SMOOTH = cv2.resize(COARSE, (64, 64), interpolation=cv2.INTER_LINEAR)
LUMA = np.array([0.299, 0.587, 0.114])


COLORS = [("PNG", mode) for mode in ("L", "RGB", "RGBA", "LA", "P", "1")] + [
    ("JPEG", m) for m in ("L", "RGB", "CMYK")
]


@pytest.mark.parametrize(("form", "mode"), COLORS)
def test_every_color_becomes_gray_by_luma(tmp_path: Path, form: str, mode: str) -> None:
    # Half the resolution of color is lost in a JPEG, so the picture is smooth.
    image = {"CMYK": Image.fromarray(SMOOTH, "CMYK"), "RGBA": Image.fromarray(SMOOTH, "RGBA")}.get(mode)
    image = image or Image.fromarray(SMOOTH, "RGBA").convert("RGB").convert(mode)
    planes = SMOOTH.astype(float)
    if mode == "CMYK":
        expected = ((255 - planes[..., :3]) * (255 - planes[..., 3:]) / 255) @ LUMA
    elif mode in ("RGB", "RGBA"):
        expected = planes[..., :3] @ LUMA
    else:
        expected = np.asarray(image.convert("RGB")).astype(float) @ LUMA
    actual = _loaded(tmp_path, _saved(image, form, **({"quality": 100} if form == "JPEG" else {})))
    assert np.abs(actual - expected).max() <= (4 if form == "JPEG" else 1.01)


@pytest.mark.parametrize("bits", [12, 16])
def test_deep_pngs_are_stretched_from_their_darkest_to_their_brightest(tmp_path: Path, bits: int) -> None:
    values = RNG.integers(100, 2**bits, (64, 64)).astype(np.uint16)
    expected = (values - values.min().astype(float)) / (int(values.max()) - int(values.min())) * 255
    actual = _loaded(tmp_path, cv2.imencode(".png", values)[1].tobytes())
    assert np.abs(actual - expected).max() <= 0.51
    assert (_loaded(tmp_path, cv2.imencode(".png", np.full_like(values, 900))[1].tobytes()) == 0).all()


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize(("orientation", "turn"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_exif_orientation_is_applied(tmp_path: Path, form: str, orientation: int, turn: int) -> None:
    quarters = np.kron(np.array([[0, 80], [160, 240]], np.uint8), np.ones((32, 32), np.uint8))
    image = Image.fromarray(quarters)
    exif = image.getexif()
    exif[0x112] = orientation
    actual = _loaded(tmp_path, _saved(image, form, exif=exif))
    assert np.abs(actual - np.rot90(quarters, turn).astype(int)).max() <= 2


@settings(deadline=None)
@given(cut=st.integers(1, 3000))
def test_every_truncated_png_is_noticed(cut: int) -> None:
    content = _saved(Image.fromarray(SMOOTH, "RGBA"))
    assert rasters.png_size(content) == (64, 64)
    with pytest.raises(ValueError):
        rasters.png_size(content[: max(0, len(content) - cut)])


@settings(deadline=None)
@given(place=st.integers(0, 5000), bit=st.integers(0, 7))
def test_every_flipped_bit_of_a_png_is_noticed(place: int, bit: int) -> None:
    content = bytearray(_saved(Image.fromarray(SMOOTH[..., 0])))
    content[place % len(content)] ^= 1 << bit
    with pytest.raises(ValueError):
        rasters.png_size(bytes(content))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(height: int, width: int, depth: int = 8, data: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


FRAMES = [Image.fromarray(SMOOTH[..., channel]) for channel in range(2)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_png(50_000, 50_000), "50000x50000 pixels, more than 100,000,000"),
        (_png(0, 10), "one without a size"),
        (_png(10, 10, depth=7), "one that does not decode"),
        (_png(10, 10)[:40], "a truncated one"),
        (_saved(FRAMES[0], save_all=True, append_images=FRAMES[1:]), "an animated one"),
        (_saved(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), "a GIF file, which may be animated"),
        (_saved(FRAMES[0], "TIFF"), "a TIFF file"),
        (_saved(FRAMES[0], "WEBP"), "a WebP or another RIFF file"),
    ],
)
def test_other_files_are_refused_with_a_reason(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(BadImageError, match=message):
        _loaded(tmp_path, content)


def test_an_absurd_header_is_refused_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    for content in (_png(50_000, 50_000), _claim(_encoded(40, 50), 50_000, 50_000)):
        started = time.monotonic()
        with pytest.raises(BadImageError, match="50000x50000"):
            _loaded(tmp_path, content)
        assert time.monotonic() - started < 1


@pytest.mark.parametrize("what", ["folder", "pipe", "device"])
def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path, what: str) -> None:
    path = tmp_path / "x.jpg"
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(BadImageError, match="found a folder or a device"):
        pipelines.load_image(_record(path), 64)


def test_a_file_of_many_bytes_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines, "MAX_FILE_BYTES", 1000)
    with pytest.raises(BadImageError, match="expected an image of at most 1000 bytes"):
        _loaded(tmp_path, bytes(1001))
