"""Whatever a table, a YAML or an image file holds, it is read or refused in one line: never a traceback."""

import gzip
import os
import random
from functools import cache
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cxr_hvd.errors import CxrHvdError
from cxr_hvd.study.layout import View
from preprocess.pixels import pipelines
from preprocess.records import BadImageError, ImageRecord, SourceOptions
from preprocess.sources import SOURCES
from preprocess.sources.columns import SHIPPED
from tests.helpers.synthetic import NAME, dicom_bytes, write_chexpert, write_csv, write_mimic_cxr

# More examples find more: CXR_FUZZ_EXAMPLES=10000 takes minutes.
FUZZ = settings(
    max_examples=int(os.environ.get("CXR_FUZZ_EXAMPLES", "100")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

ODD = ["", "\0", '"', "\n", "\r", ",", "\t", "..", "/", "\\", "\ufeff", "é", "\ud7ff", "nan", "-1", "1" * 5000]
CELLS = st.one_of(st.sampled_from(ODD), st.text(max_size=8))


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """For each source, its ROOT and the table to spoil."""
    root = tmp_path_factory.mktemp("fuzz")
    write_chexpert(root / "chexpert", 4)
    write_mimic_cxr(root / "mimic", 4)
    (root / "manifest").mkdir()
    rows = [["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "View Position"]]
    rows += [[f"{n}.png", "Edema|Mass", str(n), str(n // 2), "PA"] for n in range(6)]
    write_csv(root / "manifest" / "images.csv", rows)
    (root / "manifest" / "images").mkdir()
    for name in ("train_val_list.txt", "test_list.txt"):
        (root / "manifest" / name).write_text("0.png\n1.png\n2.png\n3.png\n4.png\n5.png")
    return {
        "chexpert": (root / "chexpert", root / "chexpert" / NAME / "train.csv"),
        "mimic-cxr": (root / "mimic", root / "mimic" / "mimic-cxr-2.0.0-metadata.csv.gz"),
        "mimic-cxr-dicom": (root / "mimic", root / "mimic" / "mimic-cxr-2.0.0-split.csv.gz"),
        "manifest": (root / "manifest" / "images.csv", root / "manifest" / "images.csv"),
    }


def _read(source: str, root: Path, columns: Path | None = None) -> None:
    try:
        SOURCES[source](root, SourceOptions(columns=columns or Path("nih-chestxray14")))
    except CxrHvdError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("source", ["chexpert", "mimic-cxr", "mimic-cxr-dicom", "manifest"])
@FUZZ
@given(data=st.data())
def test_no_table_is_a_traceback(tables: dict[str, tuple[Path, Path]], source: str, data: st.DataObject) -> None:
    root, table = tables[source]
    whole = table.read_bytes()
    text = gzip.decompress(whole) if table.suffix == ".gz" else whole
    try:
        lines = [line.split(b",") for line in text.splitlines()]
        for _ in range(data.draw(st.integers(1, 4))):
            row = data.draw(st.integers(0, len(lines) - 1))
            column = data.draw(st.integers(0, len(lines[row]) - 1))
            lines[row][column] = data.draw(CELLS).encode("utf-8", "surrogateescape")
        spoiled = b"\n".join(b",".join(line) for line in lines)
        for _ in range(data.draw(st.integers(0, 2))):
            start = data.draw(st.integers(0, len(spoiled)))
            spoiled = (
                spoiled[:start]
                + data.draw(st.binary(max_size=4))
                + spoiled[start + data.draw(st.integers(0, 40)) :]
            )
        packed = gzip.compress(spoiled) if table.suffix == ".gz" else spoiled
        table.write_bytes(packed[: data.draw(st.integers(0, len(packed)))] if data.draw(st.booleans()) else packed)
        _read(source, root)
    finally:
        table.write_bytes(whole)


@FUZZ
@given(content=st.binary(max_size=300))
def test_no_bytes_for_a_table_are_a_traceback(tables: dict[str, tuple[Path, Path]], content: bytes) -> None:
    for source in ("chexpert", "mimic-cxr", "manifest"):
        root, table = tables[source]
        whole = table.read_bytes()
        try:
            table.write_bytes(content)
            _read(source, root)
        finally:
            table.write_bytes(whole)


@FUZZ
@given(data=st.data())
def test_no_yaml_is_a_traceback(tables: dict[str, tuple[Path, Path]], tmp_path: Path, data: st.DataObject) -> None:
    lines = (SHIPPED / f"{data.draw(st.sampled_from(['nih-chestxray14', 'openi', 'vindr-cxr']))}.yaml").read_text()
    pieces = lines.splitlines()
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(pieces) - 1))
        words = [
            "*a",
            "&a [*a]",
            "- - -",
            "? x",
            "!!python/name:os.system",
            "images: {file: '{}'}",
            "  file: '{x}{'",
        ]
        pieces[place] = data.draw(st.one_of(st.sampled_from(words), st.text(max_size=30)))
    path = tmp_path / "y.yaml"
    path.write_bytes("\n".join(pieces).encode("utf-8", "surrogatepass"))
    for root in (tables["manifest"][0], tables["manifest"][0].parent):
        _read("manifest", root, path)


@cache
def _encoded(form: str) -> bytes:
    values = cv2.resize(np.random.default_rng(1).integers(0, 256, (6, 6)).astype(np.uint8), (70, 66))
    file = BytesIO()
    if form == "png16":
        return bytes(cv2.imencode(".png", values.astype(np.uint16) * 257)[1])
    if form.startswith("dicom"):
        syntax = {"dicom": "ExplicitVRLittleEndian", "dicom-rle": "RLELossless", "dicom-j2k": "JPEG2000Lossless"}[
            form
        ]
        return dicom_bytes(
            values.astype(np.uint16) * 16, syntax, BitsStored=12, WindowCenter=2000, WindowWidth=900
        )
    image = Image.fromarray(values).convert({"cmyk": "CMYK", "rgb": "RGB", "palette": "P"}.get(form, "L"))
    exif = image.getexif()
    exif[0x112] = 6
    image.save(file, "PNG" if form == "palette" else "JPEG", exif=exif, progressive=form == "progressive")
    return file.getvalue()


FORMS = ["gray", "progressive", "rgb", "cmyk", "palette", "png16", "dicom", "dicom-rle", "dicom-j2k"]


@pytest.mark.parametrize("form", FORMS)
@FUZZ
@given(seed=st.integers(0, 2**32), num_changes=st.integers(0, 8), cuts=st.booleans())
def test_no_image_is_a_traceback(tmp_path: Path, form: str, seed: int, num_changes: int, cuts: bool) -> None:
    content, chance = bytearray(_encoded(form)), random.Random(seed)
    for _ in range(num_changes):
        # Headers decide most: every other change is in the first bytes.
        place = chance.randrange(min(len(content), chance.choice([400, len(content)])))
        content[place] = chance.choice([0, 1, 0x7F, 0xFF, chance.randrange(256)])
    if cuts:
        del content[chance.randrange(len(content)) :]
    _load(tmp_path, bytes(content))


HEADS = [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", bytes(128) + b"DICM"]


@FUZZ
@given(content=st.binary(max_size=200), head=st.sampled_from(HEADS))
def test_no_bytes_for_an_image_are_a_traceback(tmp_path: Path, content: bytes, head: bytes) -> None:
    _load(tmp_path, head + content)


def _load(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "patient4711"
    path.write_bytes(content)
    for pipeline in pipelines.PIPELINES:
        try:
            assert pipelines.load_image(ImageRecord(path, View.PA, "t row 2"), 16, pipeline).shape == (16, 16)
        except BadImageError as error:
            assert "\n" not in error.reason and "4711" not in str(error) and "DOE" not in str(error)
