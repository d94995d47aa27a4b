"""Preprocessing on several ranks: the same bytes as on one, and one rank's failure ends all."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launch import Finished, launch
from tests.preprocessing import preprocess_command
from tests.synthetic import NAME, Rows, write_chexpert, write_mimic_cxr

LIMIT_S = 60


def _preprocess(num_ranks: int, folder: Path, source: str, data: Path, out: Path, *more: object) -> Finished:
    command = preprocess_command(source, data, "--out", out, "--site", "north", *more)
    return launch(
        num_ranks, command, limit_s=LIMIT_S, SOURCE_DATE_EPOCH="1700000000", XDG_CONFIG_HOME=str(folder / "config")
    )


WRITERS: dict[str, Callable[[Path], Path]] = {"chexpert": write_chexpert, "mimic-cxr": write_mimic_cxr}


@pytest.mark.parametrize(("source", "numbers"), [("chexpert", (1, 2, 3)), ("mimic-cxr", (1, 3))])
def test_any_number_of_ranks_writes_the_same_bytes(tmp_path: Path, source: str, numbers: tuple[int, ...]) -> None:
    data = WRITERS[source](tmp_path / "data")
    contents = []
    for num_ranks in numbers:
        out = tmp_path / f"{num_ranks}.h5"
        job = _preprocess(num_ranks, tmp_path, source, data, out)
        assert job.exit_code == 0, job.output
        contents.append(out.read_bytes())
    assert len(set(contents)) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *[f"{num}.h5" for num in numbers],
        "config",
        "data",
    ]


def _truncate(data: Path) -> None:
    image = sorted((data / NAME / "train").rglob("*.jpg"))[7]
    image.write_bytes(image.read_bytes()[:-40])


def _remove(data: Path) -> None:
    sorted((data / NAME / "train").rglob("*.jpg"))[7].unlink()


def _misspell(rows: Rows) -> Rows:
    return [["Edemaa" if cell == "Edema" else cell for cell in rows[0]], *rows[1:]]


def _leave(rows: Rows) -> Rows:
    rows[4][0] = f"{NAME}/train/../../../secret.jpg"
    return rows


def _many(rows: Rows) -> Rows:
    return [rows[0], *[[f"{NAME}/train/patient00001/study1/view{n}_frontal.jpg", *rows[1][1:]] for n in range(21)]]


BAD: dict[str, tuple[Callable[[Path], object], list[object], int, str]] = {
    "misspelt column": (lambda root: write_chexpert(root, change=_misspell), [], 1, "expected a column 'Edema'"),
    "path out": (
        lambda root: write_chexpert(root, change=_leave),
        [],
        1,
        "train.csv row 5: expected a path in",
    ),
    "21 images": (lambda root: write_chexpert(root, change=_many), [], 1, "expected at most 20 images"),
    "truncated image": (lambda root: _truncate(write_chexpert(root)), [], 1, "a truncated one"),
    "missing image": (lambda root: _remove(write_chexpert(root)), [], 1, "expected a readable image file"),
    "empty split": (write_chexpert, ["--train", 5, "--validate", 0, "--test", 5], 2, "empty split"),
    "no such folder": (lambda root: None, [], 1, "check ROOT"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_input_ends_every_rank_with_one_line(tmp_path: Path, what: str) -> None:
    make, arguments, exit_code, message = BAD[what]
    make(tmp_path / "data")
    out = tmp_path / "out.h5"
    out.write_bytes(b"an earlier file")
    job = _preprocess(2, tmp_path, "chexpert", tmp_path / "data", out, "--overwrite", *arguments)
    assert job.exit_code == exit_code, job.output
    assert "Traceback" not in job.output and "patient0" not in job.output
    told = job.lines("cxr-preprocess: error:")
    assert len(told) == 2, job.output
    assert [message in line for line in told].count(True) == 1
    assert ["failed and said why" in line for line in told].count(True) == 1
    assert out.read_bytes() == b"an earlier file"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


ONE_FAILS = """
import time
from cxr_hvd.errors import DataError
from preprocess.run import opened_ranks, together

def work():
    if ranks.rank == 1:
        raise ERROR("rank 1 is ill")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        ranks.check_peers()
        time.sleep(0.01)

with opened_ranks("test") as ranks:
    together(ranks, work)
"""


@pytest.mark.parametrize("error", ["DataError", "RuntimeError"])
def test_busy_ranks_notice_that_another_failed(error: str) -> None:
    job = launch(3, [sys.executable, "-c", ONE_FAILS.replace("ERROR", error)], limit_s=50)
    assert job.exit_code == 1
    assert len(job.lines("rank 1 is ill")) == 1, job.output
    assert job.lines("rank 1 failed and said why")


def test_phantom_is_not_for_a_launcher(tmp_path: Path) -> None:
    job = launch(2, preprocess_command("phantom", tmp_path / "new", "--studies", 2), limit_s=LIMIT_S)
    assert job.exit_code == 2 and "run it without mpirun" in job.output
