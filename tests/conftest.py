"""Markers and fixtures that all tests share."""

import os
from pathlib import Path

import pytest

from tests.launch import PROJECT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real X-rays of two sites, or skip."""
    folder = Path(os.environ.get("CXR_REAL_DATA", PROJECT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real X-rays at {folder}; set CXR_REAL_DATA")
    return folder
