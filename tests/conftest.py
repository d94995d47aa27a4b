"""Markers and fixtures that all tests share."""

import os
from pathlib import Path

import pytest

from tests import janitor
from tests.launch import PROJECT


def pytest_configure() -> None:
    """Have a janitor clean up behind this run, however it ends."""
    janitor.start()


def pytest_unconfigure() -> None:
    """Let the janitor clean up before the run's last word."""
    janitor.finish()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real X-rays of two sites, or skip."""
    folder = Path(os.environ.get("CXR_REAL_DATA", PROJECT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real X-rays at {folder}; set CXR_REAL_DATA")
    return folder
