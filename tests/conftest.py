"""Markers and fixtures that all tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from lab import janitor
from lab.launch import PROJECT

# One thread a process: tests run in several processes, and threads that wait for each other on busy cores crawl.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A test says whether something is right, never whether the machine was quick.
settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")


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


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Have torch compute with one thread, for sums that must come out in the same order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
