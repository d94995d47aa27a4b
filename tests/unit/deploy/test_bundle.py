"""The scripts of an exported folder: their images are the project's, and no name from elsewhere becomes code."""

import ast
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from cxr_hvd.data.augment import fill_plain
from cxr_hvd.deploy.export.bundle import build_inference, build_metadata, render_scripts
from cxr_hvd.study.layout import View
from preprocess.pixels.pipelines import RASTER, load_image
from preprocess.records import ImageRecord
from tests.helpers.networks import record_of

REQUIRED = (
    *("schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version"),
    *("task", "description", "authors", "copyright", "network_data_format"),
)
"""What MONAI's schema of 2024-07-25 wants."""


def script(name: str, **changes: object) -> Any:
    """Return a script of an export as a module."""
    module = ModuleType(name)
    exec(render_scripts(record_of(pixels=RASTER, **changes))[f"{name}.py"], module.__dict__)
    return module


@pytest.mark.parametrize("image_size", [32, 256])
@pytest.mark.parametrize(
    ("name", "shape", "is_wide"),
    [
        ("large.jpg", (2100, 2300), False),
        ("color.jpg", (1200, 900, 3), False),
        ("small.jpg", (200, 320), False),
        ("gray.png", (700, 640), False),
        ("deep.png", (300, 400), True),
    ],
)
def test_an_image_becomes_what_the_pixel_pipeline_makes_of_it(
    tmp_path: Path, image_size: int, name: str, shape: tuple[int, ...], is_wide: bool
) -> None:
    rng = np.random.default_rng(1)
    small = rng.integers(0, 4096 if is_wide else 256, (*(side // 8 for side in shape[:2]), *shape[2:]))
    image = cv2.resize(small.astype(np.uint16 if is_wide else np.uint8), (shape[1], shape[0]))
    cv2.imwrite(str(tmp_path / name), image)
    expected_HW = load_image(ImageRecord(tmp_path / name, View.PA, "row 1"), 256)
    expected_CHW = np.zeros((20, image_size, image_size), np.float32)
    fill_plain(np.stack([expected_HW, expected_HW]), expected_CHW)
    images_CHW = script("preprocess", image_size=image_size).load_study([tmp_path / name] * 2)
    assert images_CHW.dtype == np.float32 and np.array_equal(images_CHW, expected_CHW)


def test_what_it_does_not_read_is_refused(tmp_path: Path) -> None:
    preprocess = script("preprocess")
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "a.gif").write_bytes(b"GIF89a")
    for name, why in (("a.dcm", "DICOM is not read here"), ("a.gif", "expected a JPEG or PNG file")):
        with pytest.raises(ValueError, match=why):
            preprocess.load_study([tmp_path / name])
    with pytest.raises(ValueError, match="expected 1 to 20 images"):
        preprocess.load_study([])


def test_a_name_from_elsewhere_becomes_no_code() -> None:
    evil = '"""\nimport os\nos.abort()\n"""'.replace("\n", ";")
    for text in render_scripts(record_of(pixels=evil)).values():
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)]
        assert "abort" not in {node.attr for node in calls}


def test_scripts_need_numpy_and_opencv_alone() -> None:
    for text in render_scripts(record_of()).values():
        imports = [node for node in ast.parse(text).body if isinstance(node, ast.Import)]
        names = {alias.name.split(".")[0] for node in imports for alias in node.names}
        assert names <= {"numpy", "cv2", *sys.stdlib_module_names}


def test_the_metadata_holds_what_monai_wants() -> None:
    metadata = build_metadata(record_of(), [], {"a": "0" * 64}, ["north"])
    assert set(REQUIRED) <= metadata.keys()
    formats = metadata["network_data_format"]
    image, answer = formats["inputs"]["image"], formats["outputs"]["pred"]
    assert (image["num_channels"], image["spatial_shape"], image["value_range"]) == (20, [32, 32], [0, 1])
    assert list(answer["channel_def"].values()) == record_of().label_names
    assert {"network_def", "evaluator", "inferer", "dataset", "device", "bundle_root"} <= build_inference().keys()
