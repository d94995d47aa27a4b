"""Debian packages that a test needs: installed where this is allowed, or the test is skipped with the reason."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

NO_START = "#!/bin/sh\nexit 101\n"


def need_packages(packages: Sequence[str], programs: Sequence[str]) -> None:
    """See to it that programs are there; skip, with the reason, where they are not and cannot be installed."""
    if reason := install(programs, packages):
        pytest.skip(f"needs {', '.join(programs)}: {reason}")


def install(programs: Sequence[str], packages: Sequence[str]) -> str | None:
    """Install packages of programs that are missing, starting no service; return why that failed, if it did."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if all(shutil.which(name, path=path) for name in programs):
        return None
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return f"not here, and only root on Debian can install {' '.join(packages)}"
    policy = Path("/usr/sbin/policy-rc.d")
    is_ours = not policy.exists()
    if is_ours:
        policy.write_text(NO_START)
        policy.chmod(0o755)
    try:
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
        errors = ""
        for command in (install, ["apt-get", "update", "-qq"], install):
            done = subprocess.run(command, env=quiet, capture_output=True, text=True, timeout=300, check=False)
            errors = (done.stderr or done.stdout).strip()
            if command is install and done.returncode == 0:
                return None
        return f"apt-get could not install it: {errors.splitlines()[-1] if errors else 'no reason given'}"
    except subprocess.TimeoutExpired:
        return "apt-get did not end in time"
    finally:
        if is_ours:
            policy.unlink(missing_ok=True)
