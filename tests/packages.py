"""Debian packages that a test needs: installed where this is allowed, or the test is skipped."""

import os
import shutil
import subprocess
from collections.abc import Sequence

import pytest

LIMIT_S = 300


def need_packages(packages: Sequence[str], programs: Sequence[str]) -> None:
    """See to it that programs are there; skip, with the reason, where they are not and cannot be installed."""
    missing = [name for name in programs if shutil.which(name) is None]
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip(f"needs {', '.join(missing)}, and only root on Debian can install {' '.join(packages)} here")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run(
            ["apt-get", "-qq", *command], env=quiet, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    if done.returncode or any(shutil.which(name) is None for name in missing):
        pytest.skip(f"needs {', '.join(missing)}, and apt-get says: {(done.stdout + done.stderr)[-300:]}")
