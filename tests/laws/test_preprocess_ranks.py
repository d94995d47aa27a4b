"""Preprocessing on several ranks: the same bytes as on one, and one rank's failure ends all."""

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from signal import SIGSEGV

import pytest

from cxr_hvd.study.study_file import StudyFile
from lab.launch import Finished, launch
from tests.helpers.commands import preprocess_command
from tests.helpers.synthetic import NAME, Rows, write_chexpert, write_mimic_cxr

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
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".csv") == [
        *[f"{num}.h5" for num in numbers],
        "config",
        "data",
    ]
    assert {path.read_bytes() for path in tmp_path.glob("*.drawn.csv")} == {
        (tmp_path / f"{numbers[0]}.h5.drawn.csv").read_bytes()
    }


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_bad_images_are_set_aside_alike_on_any_number_of_ranks(tmp_path: Path, num_ranks: int) -> None:
    write_chexpert(tmp_path / "data", num_patients=40)
    images = sorted((tmp_path / "data" / NAME / "train").rglob("*.jpg"))
    bad = [image for image in images if "study1/view1" in str(image)][3:20:4]
    for image in bad[:-1]:
        image.write_bytes(image.read_bytes()[:-40])
    bad[-1].unlink()
    out, whole = tmp_path / "out.h5", tmp_path / "whole.h5"
    arguments = ("--keep-ids", "--max-bad", "10%", "--json")
    job = _preprocess(num_ranks, tmp_path, "chexpert", tmp_path / "data", out, *arguments)
    assert job.exit_code == 0, job.output
    # The bytes of a table that never named them.
    table = tmp_path / "data" / NAME / "train.csv"
    lines = table.read_text().splitlines(keepends=True)
    names = [str(image.relative_to(tmp_path / "data")) for image in bad]
    rows = [number for number, line in enumerate(lines, start=1) if any(line.startswith(name) for name in names)]
    table.write_text("".join(line for number, line in enumerate(lines, start=1) if number not in rows))
    assert _preprocess(1, tmp_path, "chexpert", tmp_path / "data", whole, *arguments).exit_code == 0
    with StudyFile(out) as one, StudyFile(whole) as other:
        assert one.study_ids.tolist() == other.study_ids.tolist()
        for index in range(len(one)):
            assert one.num_images[index] == other.num_images[index]
            assert one.views[index].tolist() == other.views[index].tolist()
            assert (one.images(index) == other.images(index)).all()
    quarantined = list(csv.reader((tmp_path / "out.h5.quarantine.csv").open()))
    assert quarantined[0] == ["where", "reason"]
    assert sorted(where for where, _ in quarantined[1:]) == sorted(f"train.csv row {row}" for row in rows)
    assert not (tmp_path / "whole.h5.quarantine.csv").exists()
    assert "patient0" not in (tmp_path / "out.h5.quarantine.csv").read_text()


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
    "truncated image": (
        lambda root: _truncate(write_chexpert(root)),
        [],
        1,
        "images to be bad, found 1, the first: train.csv row ",
    ),
    "missing image": (lambda root: _remove(write_chexpert(root)), ["--max-bad", "0"], 1, "images to be bad"),
    "empty split": (write_chexpert, ["--train", 5, "--validate", 0, "--test", 5], 2, "empty split"),
    "no such folder": (lambda root: None, [], 1, "check ROOT"),
}


BY_DAY = ("misspelt column", "truncated image")


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=() if what in BY_DAY else pytest.mark.slow) for what in BAD]
)
def test_a_bad_input_ends_every_rank_with_one_line(tmp_path: Path, what: str) -> None:
    make, arguments, exit_code, message = BAD[what]
    make(tmp_path / "data")
    out = tmp_path / "out.h5"
    out.write_bytes(b"an earlier file")
    job = _preprocess(2, tmp_path, "chexpert", tmp_path / "data", out, "--overwrite", *arguments)
    assert job.exit_code == exit_code, job.output
    assert "Traceback" not in job.output and "patient0" not in job.output
    errors = job.lines("cxr-preprocess: error:")
    assert len(errors) == 2, job.output
    assert [message in line for line in errors].count(True) == 1
    assert ["failed and said why" in line for line in errors].count(True) == 1
    assert out.read_bytes() == b"an earlier file"
    # Where images were read, what is done is kept for the run after the repair; else nothing is left.
    hidden = [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert hidden == ([".out.h5.work"] if what.endswith(" image") else [])


ONE_FAILS = """
import time
from cxr_hvd.errors import DataError
from preprocess.parallel.ranks import open_ranks, run_phase

def work():
    if ranks.rank == 1:
        raise ERROR("rank 1 is ill")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        ranks.check_peers()
        time.sleep(0.01)

with open_ranks("test") as ranks:
    run_phase(ranks, work)
"""


@pytest.mark.parametrize("error", ["DataError", "RuntimeError"])
def test_busy_ranks_notice_that_another_failed(error: str) -> None:
    job = launch(3, [sys.executable, "-c", ONE_FAILS.replace("ERROR", error)], limit_s=50)
    assert job.exit_code in (1, -SIGSEGV), job.output  # Open MPI 4.1 may crash itself while it ends ranks
    assert len(job.lines("rank 1 is ill")) == 1, job.output
    assert job.lines("rank 1 failed and said why")


def test_phantom_is_not_for_a_launcher(tmp_path: Path) -> None:
    job = launch(2, preprocess_command("phantom", tmp_path / "new", "--studies", 2), limit_s=LIMIT_S)
    assert job.exit_code == 2 and "run it without mpirun" in job.output
