"""A killed job goes on where it stopped, and ends with the bytes of one that nobody disturbed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab.launch import Finished, environment, launch, run
from preprocess.parallel.blocks import IMAGES_PER_BLOCK
from tests.helpers.commands import preprocess_command
from tests.helpers.synthetic import NAME, write_chexpert, write_jpeg

LIMIT_S = 60


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the layout of CheXpert in data/, and whole.h5 of it, written in one go."""
    folder = tmp_path_factory.mktemp("site")
    write_chexpert(folder / "data", num_patients=60)
    job = run(preprocess_command(*_arguments(folder / "data", folder / "whole.h5")), LIMIT_S, **_settings(folder))
    assert job.exit_code == 0, job.output
    return folder


def _arguments(data: Path, out: Path, *more: object) -> list[object]:
    return ["chexpert", data, "--out", out, "--site", "north", "--keep-ids", *more]


def _settings(folder: Path) -> dict[str, str]:
    return {"SOURCE_DATE_EPOCH": "1700000000", "XDG_CONFIG_HOME": str(folder / "config")}


def _faulty(num_ranks: int, rank: int, point: str, number: int, folder: Path, arguments: list[object]) -> Finished:
    loaded = folder / "loaded"
    loaded.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.helpers.faulty", str(rank), point, str(number), *map(str, arguments)]
    return launch(num_ranks, command, limit_s=LIMIT_S, LOADED=str(loaded), **_settings(folder))


def _num_loaded(folder: Path) -> int:
    return sum(int(path.read_text()) for path in (folder / "loaded").iterdir())


def _hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("point", "number", "rank", "num_ranks", "then"),
    [
        pytest.param("load", 110, 0, 1, 1, marks=pytest.mark.slow),
        pytest.param("load", 70, 0, 2, 3, marks=pytest.mark.slow),
        ("load", 70, 1, 2, 1),
        ("merge", 2, 0, 2, 2),
        pytest.param("complete", 1, 0, 2, 1, marks=pytest.mark.slow),
        pytest.param("named", 1, 0, 2, 2, marks=pytest.mark.slow),
    ],
)
def test_a_killed_job_goes_on(
    site: Path, tmp_path: Path, point: str, number: int, rank: int, num_ranks: int, then: int
) -> None:
    out = tmp_path / "out.h5"
    arguments = _arguments(site / "data", out)
    killed = _faulty(num_ranks, rank, point, number, tmp_path, arguments)
    assert killed.exit_code != 0, killed.output
    assert out.exists() == (point == "named")
    blocks = list((tmp_path / ".out.h5.work").glob("*.block"))
    assert blocks
    again = _faulty(then, 0, "watch", 0, tmp_path, arguments)
    assert again.exit_code == 0, again.output
    assert out.read_bytes() == (site / "whole.h5").read_bytes()
    assert _hidden(tmp_path) == []
    # What was whole was not decoded again.
    total = len(list((site / "data").rglob("*.jpg")))
    assert _num_loaded(tmp_path) <= max(0, total - IMAGES_PER_BLOCK * (len(blocks) - 1))
    if point in ("complete", "named"):
        assert _num_loaded(tmp_path) == 0


def test_another_jobs_leftovers_are_not_used(site: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    other = _arguments(site / "data", out, "--seed", 5)
    assert _faulty(1, 0, "load", 110, tmp_path, other).exit_code != 0
    assert _faulty(1, 0, "watch", 0, tmp_path, _arguments(site / "data", out)).exit_code == 0
    assert out.read_bytes() == (site / "whole.h5").read_bytes()
    assert _num_loaded(tmp_path) == len(list((site / "data").rglob("*.jpg")))
    assert _hidden(tmp_path) == []


def test_a_damaged_block_and_a_changed_image_are_done_again(tmp_path: Path) -> None:
    write_chexpert(tmp_path / "data", num_patients=40)
    out, whole = tmp_path / "out.h5", tmp_path / "whole.h5"
    assert _faulty(1, 0, "complete", 1, tmp_path, _arguments(tmp_path / "data", out)).exit_code != 0
    blocks = sorted((tmp_path / ".out.h5.work").glob("*.block"))
    content = bytearray(blocks[1].read_bytes())
    content[1000] ^= 1
    blocks[1].write_bytes(content)
    blocks[2].write_bytes(blocks[2].read_bytes()[:-20])
    images = sorted((tmp_path / "data" / NAME / "train").rglob("*.jpg"))
    # Somewhere in the blocks that are whole, too.
    for image in images[3:60:14]:
        write_jpeg(image, seed=99)
    for one in (whole, out):
        assert _faulty(1, 0, "watch", 0, tmp_path, _arguments(tmp_path / "data", one)).exit_code == 0
    assert out.read_bytes() == whole.read_bytes()
    assert _num_loaded(tmp_path) >= 2 * IMAGES_PER_BLOCK


@pytest.mark.parametrize(
    "kib", [1000, pytest.param(3000, marks=pytest.mark.slow), pytest.param(14850, marks=pytest.mark.slow), None]
)
def test_a_full_disk_leaves_nothing_that_looks_whole(site: Path, tmp_path: Path, kib: int | None) -> None:
    out = tmp_path / "out.h5"
    if kib is None:
        # The last bytes do not fit.
        kib = ((site / "whole.h5").stat().st_size - 1) // 1024
    command = preprocess_command(*_arguments(site / "data", out))
    script = f"ulimit -f {kib}; exec " + " ".join(map(str, command))
    full = run(["bash", "-c", script], LIMIT_S, **_settings(tmp_path))
    assert full.exit_code == 1, full.output
    assert "Traceback" not in full.output and len(full.lines("study file here (File too large)")) == 1
    assert [path.name for path in tmp_path.iterdir() if path.suffix in (".h5", ".csv")] == []
    again = run(command, LIMIT_S, **_settings(tmp_path))
    assert again.exit_code == 0, again.output
    assert out.read_bytes() == (site / "whole.h5").read_bytes()
    assert _hidden(tmp_path) == []


def test_two_jobs_do_not_write_one_output_and_a_request_to_stop_is_kept(site: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    arguments = _arguments(site / "data", out)
    slow = [sys.executable, "-m", "tests.helpers.faulty", "0", "slow", "100", *map(str, arguments)]
    with subprocess.Popen(
        slow, env=environment(**_settings(tmp_path)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as first:
        deadline = time.monotonic() + 30
        while not list(tmp_path.glob(".out.h5.work/*.block")) and time.monotonic() < deadline:
            time.sleep(0.05)
        second = launch(2, preprocess_command(*arguments), limit_s=LIMIT_S, **_settings(tmp_path))
        assert first.poll() is None, "the first job was too quick for this test"
        os.kill(first.pid, signal.SIGTERM)
        output, _ = first.communicate(timeout=30)
    assert second.exit_code == 2, second.output
    assert len(second.lines("found another job at it (process ")) == 1, second.output
    assert first.returncode == 75, output
    assert "run the same again to go on" in output and "Traceback" not in output
    assert not out.exists()
    assert run(preprocess_command(*arguments), LIMIT_S, **_settings(tmp_path)).exit_code == 0
    assert out.read_bytes() == (site / "whole.h5").read_bytes()
