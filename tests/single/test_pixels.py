"""Pixels: what is decoded, at which scale, and what is refused."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_hvd.errors import DataError
from cxr_hvd.study.study_file import View
from preprocess import pixels
from preprocess.records import ImageRecord
from tests.synthetic import write_jpeg


def _record(path: Path) -> ImageRecord:
    return ImageRecord(path, View.PA, "train.csv row 2")


def _encoded(height: int, width: int, *options: int, channels: int = 1) -> bytes:
    ramp = np.linspace(0, 255, height * width * channels).reshape(height, width, channels).astype(np.uint8)
    return cv2.imencode(".jpg", ramp, options)[1].tobytes()


@pytest.mark.parametrize(("height", "width"), [(31, 40), (256, 256), (390, 320), (700, 1100), (2544, 3056)])
def test_an_image_fills_the_square(tmp_path: Path, height: int, width: int) -> None:
    path = tmp_path / "ramp.jpg"
    path.write_bytes(_encoded(height, width))
    image = pixels.load_image(_record(path), 256)
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
    assert np.abs(pixels.load_image(_record(path), 256).astype(int) - full).max() <= 3


@pytest.mark.parametrize("progressive", [0, 1])
@pytest.mark.parametrize("restart", [0, 4])
@given(cut=st.integers(1, 4000))
def test_every_truncation_is_noticed(progressive: int, restart: int, cut: int) -> None:
    content = _encoded(
        97, 83, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive, cv2.IMWRITE_JPEG_RST_INTERVAL, restart, channels=3
    )
    assert pixels.jpeg_size(content) == (97, 83)
    with pytest.raises(ValueError):
        pixels.jpeg_size(content[: max(0, len(content) - cut)])


@given(st.binary(max_size=200))
def test_rubbish_is_refused_and_never_crashes(rubbish: bytes) -> None:
    with pytest.raises(ValueError):
        pixels.jpeg_size(b"\xff\xd8" + rubbish[:1].replace(b"\xff", b"") + rubbish)


def test_bytes_after_the_end_are_harmless(tmp_path: Path) -> None:
    path = tmp_path / "padded.jpg"
    path.write_bytes(_encoded(40, 50) + bytes(100))
    assert pixels.load_image(_record(path), 32).shape == (32, 32)


def _claim(content: bytes, height: int, width: int) -> bytes:
    frame = content.index(b"\xff\xc0")
    return content[: frame + 5] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + content[frame + 9 :]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "another format"),
        (b"\x89PNG\r\n", "another format"),
        (_encoded(40, 50)[:-30], "a truncated one"),
        (_claim(_encoded(40, 50), 60000, 60000), "60000x60000 pixels"),
        (_claim(_encoded(40, 50), 0, 50), "without 8-bit samples or a size"),
    ],
)
def test_refusals_name_the_row_and_no_path(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "patient00001.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        pixels.load_image(_record(path), 64)
    assert str(caught.value).startswith("train.csv row 2: ")
    assert "patient00001" not in str(caught.value)


def test_a_missing_file_is_refused_by_its_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.csv row 2: expected a readable image file, found none") as caught:
        pixels.load_image(_record(tmp_path / "patient00001.jpg"), 64)
    assert "patient00001" not in str(caught.value)


def test_equal_files_give_equal_pixels(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_jpeg(tmp_path / f"{name}.jpg", 3, 400, 300)
    images = [pixels.load_image(_record(tmp_path / f"{name}.jpg"), 64) for name in ("a", "b")]
    assert (images[0] == images[1]).all()
