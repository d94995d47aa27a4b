"""The whole installation, from downloaded packages and without a network."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cli.test_install import INSTALL, copy_tree

pytestmark = [pytest.mark.slow, pytest.mark.night]


@pytest.mark.timeout(3600)
def test_whole_install_without_a_network(tmp_path: Path) -> None:
    # With the loopback interface, as every machine has it: Open MPI refuses to work without any.
    isolate = ["unshare", "--net", "--map-root-user", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*isolate, "true"], check=False).returncode != 0:
        pytest.skip("this machine does not allow a process without a network (unshare --net)")
    folder = tmp_path / "packages"
    fetched = subprocess.run([INSTALL, "--download", folder], capture_output=True, text=True, check=False)
    if fetched.returncode != 0 and "--offline" in fetched.stderr:
        pytest.skip("there is no network to download from")
    assert fetched.returncode == 0, fetched.stderr
    shutil.rmtree(folder / "horovod", ignore_errors=True)  # the source has to suffice

    root = copy_tree(tmp_path / "tree")
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "UV_CACHE_DIR": str(tmp_path / "uv")}
    command = [*isolate, root / "tools/install.sh", "--offline", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stdout
    program = "import horovod.torch as h, torch; assert h.mpi_built() and h.gloo_built()"
    subprocess.run([root / ".venv/bin/python", "-c", program], check=True)
    shutil.rmtree(tmp_path, ignore_errors=True)  # 9 GB
