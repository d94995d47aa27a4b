"""A look at a run: it changes nothing, survives whatever it finds, and says what is there."""

import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from cxr_hvd.comm.local import LocalComm
from cxr_hvd.comm.sites import bind
from cxr_hvd.comm.step_status import StepStatus
from cxr_hvd.comm.watchdog import Doing
from cxr_hvd.errors import CheckpointError, UsageError
from cxr_hvd.files import finish_folder, folder_beside
from cxr_hvd.launch.rank_status import FAILED, FINISHED, STOPPED
from cxr_hvd.monitor import snapshot as run_snapshot
from cxr_hvd.monitor.advice import say_ranks, say_time
from cxr_hvd.monitor.curves import draw_curves, running_mean, thinned, write_curves
from cxr_hvd.monitor.snapshot import load_run
from cxr_hvd.monitor.table import render, to_json
from cxr_hvd.monitor.view import RunView, newest_common
from cxr_hvd.training.checkpoint.record import CheckpointRecord
from cxr_hvd.training.checkpoint.writer import write_files
from cxr_hvd.training.log import Log
from cxr_hvd.training.records import Verdict
from cxr_hvd.training.run_folder import RunFolder
from cxr_hvd.training.status import StatusFile
from cxr_hvd.training.step_report import StepReport

NOW = 1_800_000_000.0
RANKS = {"north": 1, "south": 2}
STEPS, ALL_STEPS = 240, 400
PARTS = ("state.json", "shared.safetensors", "private.safetensors")


def metrics_line(step: int, **changes: Any) -> str:
    row = {
        "step": step,
        "loss": 0.5,
        "loss_of_site": {"north": 0.5 - step / 1000, "south": 0.7 - step / 1000},
        "learning_rate": 3e-4,
        "gradient_norm": 1.5,
        "is_skipped": False,
        "data_s": 0.1,
        "compute_s": 0.7,
        "averaging_s": 0.2,
        "studies_per_s": 16.0,
    }
    return json.dumps(row | changes) + "\n"


def validation_line(step: int, auroc: float, **changes: Any) -> str:
    row = {"step": step, "macro_auroc": auroc - 0.01, "agreed_auroc": auroc, "mean_accuracy": 0.9}
    return json.dumps(row | {"is_best": False, "seconds": 12.0} | changes) + "\n"


def write_status(folder: Path, rank_in_site: int = 0, **changes: Any) -> None:
    said = {"site": folder.name, "rank": rank_in_site, "step": STEPS, "num_steps": ALL_STEPS, "doing": "training"}
    path = folder / f"status-{rank_in_site}.json"
    path.write_text(json.dumps(said | {"since": NOW - 80.0, "time": NOW - 0.5} | changes) + "\n")


def write_checkpoint(folder: Path, name: str, parts: tuple[str, ...] = PARTS) -> None:
    path = folder / "checkpoints" / name
    path.mkdir(parents=True)
    for part in parts:
        (path / part).write_text("{}")


def write_run(run: Path, num_steps: int = STEPS) -> Path:
    """Write the folder of a run of two sites that is going on."""
    for name, num_ranks in RANKS.items():
        folder = run / name
        (folder / "checkpoints").mkdir(parents=True)
        sites = "".join(f"  {each}: {{ranks: {ranks}, data: x.h5}}\n" for each, ranks in RANKS.items())
        (folder / "config.yaml").write_text(f"experiment: D\nsites:\n{sites}")
        budget = {"num_steps": ALL_STEPS, "steps_per_epoch": 100, "studies_per_site": [1, 2]}
        (folder / "environment.json").write_text(json.dumps({"python": "3.11", "budget": budget}))
        (folder / "metrics.jsonl").write_text("".join(map(metrics_line, range(num_steps))))
        for rank in range(num_ranks):
            write_status(folder, rank, step=num_steps or None)
        if num_steps:
            lines = [validation_line(100, 0.7, is_best=True), validation_line(200, 0.69)]
            (folder / "validation.jsonl").write_text("".join(lines))
            for step in (100, 200):
                write_checkpoint(folder, f"step-{step}")
            (folder / "checkpoints" / "latest").symlink_to("step-200")
            (folder / "checkpoints" / "best").symlink_to("step-100")
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def said_of(view: RunView, width: int = 140) -> str:
    console = Console(width=width, force_terminal=False, no_color=True)
    with console.capture() as captured:
        console.print(render(view), highlight=False)
    return captured.get()


def loaded(run: Path) -> tuple[RunView, str]:
    """Read a run as the command does, all of it, and check that what a program is told can be told."""
    view = load_run(run, NOW)
    told = to_json(view)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    return view, said_of(view)


def everything_in(folder: Path) -> dict[str, tuple[int, ...]]:
    def facts(path: Path) -> tuple[int, ...]:
        found = path.lstat()
        return found.st_ino, found.st_size, found.st_mode, found.st_mtime_ns, found.st_ctime_ns

    return {str(path): facts(path) for path in [folder, *folder.rglob("*")]}


# ---- it only looks


def test_reading_changes_nothing(run: Path, tmp_path: Path) -> None:
    before = everything_in(run)
    view, _ = loaded(run)
    write_curves(view, tmp_path / "curves.png")
    assert everything_in(run) == before


def test_it_comes_without_torch() -> None:
    program = (
        "import sys, cxr_hvd.monitor.snapshot, cxr_hvd.monitor.table, cxr_hvd.monitor.curves\n"
        "heavy = ('torch', 'horovod', 'mpi4py', 'h5py', 'matplotlib.pyplot')\n"
        "sys.exit(any(name in sys.modules for name in heavy))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_what_training_writes_is_what_is_read(tmp_path: Path) -> None:
    """The forms here and the writers there are two accounts of one contract."""
    comm = LocalComm()
    topology = bind(comm, {"north": 1})
    folder = RunFolder(tmp_path, "north")
    folder.open_new(overwrite=False)
    log = Log(folder, topology, 0, 16)
    spent = {"data_s": 0.1, "compute_s": 0.7, "averaging_s": 0.2}
    for step, loss in enumerate((0.5, math.nan)):
        statuses = [StepStatus(loss, 1.0, True)]
        log.step(StepReport(step, statuses, loss, 1e-3, math.inf, bool(step), **spent))
    log.verdict(Verdict.model_validate(json.loads(validation_line(2, 0.7, mean_accuracy=None, is_best=True))))
    log.close()
    status = StatusFile(folder.path, topology, 10)
    status.tick(Doing("waiting for the other ranks in status", True, 2, time.time() - 60))
    record = CheckpointRecord(step=2, site="north", num_ranks_of_site=1)
    write_files(folder_beside(folder.checkpoint(2)), {name: {} for name in PARTS[1:]}, record)
    finish_folder(folder.checkpoint(2))
    [north] = load_run(tmp_path).sites
    assert north.rows and north.rows.steps.tolist() == [0, 1] and north.num_skipped == 1
    assert north.ranks[0].state == "working" and north.ranks[0].for_s == pytest.approx(60, abs=10)
    assert [row.step for row in north.validations] == [2] and not north.faults
    assert north.checkpoints and north.checkpoints.whole == (2,)
    for what, state in {FINISHED: "ended", STOPPED: "ended", f"{FAILED}: disk full": "failed"}.items():
        status.end(what, 0)
        assert load_run(tmp_path, time.time() + 1e4).sites[0].ranks[0].state == state


# ---- what it says


def test_a_run_that_goes_on(run: Path) -> None:
    view, said = loaded(run)
    assert (view.state, view.num_done, view.best_step, view.newest_common_step) == ("working", STEPS, 100, 200)
    # Each step takes one second, and each hundred of them 12 s of validation.
    assert view.left_s == pytest.approx((ALL_STEPS - STEPS) * 1.12)
    assert "step 240 of 400, 60.0%, about 3 min left" in said and "epoch 2.40" in said and "16.0 studies/s" in said
    assert re.search(r"north +0 +training, 80 s +240 +0\.310 +10/70/20 +0", said)
    assert re.search(r"south +0-1 +training, 80 s +240 +0\.510", said)
    assert re.search(r"100 +0\.690 +0\.690 +0\.700 +12\.0 +best", said)
    assert re.search(r"north +100  200 +200 +100", said)
    assert "Step 200 is the newest that all sites hold whole; --resume auto goes on from there." in said


def test_json_says_the_same(run: Path) -> None:
    told = to_json(load_run(run, NOW))
    [north, south] = told["sites"]
    assert (told["state"], told["step"], told["num_steps"], told["newest_common_step"]) == (
        "working",
        240,
        400,
        200,
    )
    assert north["pace"]["loss_of_site"] == {"north": pytest.approx(0.3105), "south": pytest.approx(0.5105)}
    assert north["pace"]["data"] + north["pace"]["compute"] + north["pace"]["averaging"] == pytest.approx(1)
    assert [rank["rank_in_site"] for rank in south["ranks"]] == [0, 1]
    assert north["checkpoints"] == {"whole": [100, 200], "unfinished": [], "latest": 200, "best": 100}


def test_a_run_before_its_first_step(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", num_steps=0)
    write_status(run / "north", step=None, doing="waiting for the other ranks in contract")
    (run / "north" / "checkpoints").rmdir()
    view, said = loaded(run)
    assert "No step is done yet." in said and "waiting for the other ranks in contract, 80 s" in said
    assert "--resume auto has nothing yet to go on from" in said and "none yet" in said
    write_curves(view, tmp_path / "curves.png")


def test_a_silent_rank_is_told_from_one_that_ended(run: Path) -> None:
    write_status(run / "north", time=NOW - 200.0, doing="finished")
    write_status(run / "south", 1, time=NOW - 200.0, doing="validating")
    write_status(run / "south", 0, time=NOW - 14.0)
    view, said = loaded(run)
    assert [rank.state for site in view.sites for rank in site.ranks] == ["ended", "working", "silent"]
    assert view.state == "silent" and view.left_s is None
    assert "south rank 1 silent for 3 min, last validating: killed, frozen or cut off" in said
    assert "go on from step 200 with --resume auto" in said


def test_failed_ranks_are_named_with_their_line(run: Path) -> None:
    for rank in (0, 1):
        write_status(run / "south", rank, time=NOW - 900.0, doing="failed: disk full [/red]")
    view, said = loaded(run)
    assert view.state == "failed"
    assert (
        "south ranks 0-1 failed: disk full [/red]; mend that, then go on from step 200 with --resume auto" in said
    )


def test_what_happened_to_all_is_said_once(run: Path) -> None:
    view = load_run(run, NOW + 3600.0)
    [line] = to_json(view)["advice"]
    assert line.startswith("all ranks silent for 60 min")


def test_a_finished_run_is_not_told_to_go_on(run: Path) -> None:
    for name, num_ranks in RANKS.items():
        write_checkpoint(run / name, f"step-{ALL_STEPS}")
        for rank in range(num_ranks):
            write_status(run / name, rank, doing="finished", time=NOW - 1e6)
    _, said = loaded(run)
    assert "Step 400 is the newest that all sites hold whole; it is the last." in said and "auto" not in said


@pytest.mark.parametrize(
    ("held", "newest"),
    [
        ([], None),
        ([{1, 2}], 2),
        ([{1, 2, 3}, {2, 3}], 3),
        ([{4, 2}, {3, 2}], 2),
        ([{1}, {2}], None),
        ([{1}, ()], None),
    ],
)
def test_newest_common(held: list[set[int]], newest: int | None) -> None:
    assert newest_common(held) == newest


def test_only_whole_checkpoints_count(run: Path) -> None:
    write_checkpoint(run / "north", "step-300")
    write_checkpoint(run / "south", "step-300", PARTS[:2])  # being removed
    write_checkpoint(run / "south", ".step-350.part")
    (run / "south" / "checkpoints" / "latest").unlink()
    (run / "south" / "checkpoints" / "latest").symlink_to("step-300")
    view, said = loaded(run)
    assert view.newest_common_step == 200
    south = view.sites[1].checkpoints
    assert south and (south.whole, south.unfinished, south.latest) == ((100, 200), (350,), None)
    assert re.search(r"south +100  200 +100 +350", said)


def test_steps_taken_again_after_a_resume_count_once(run: Path) -> None:
    with (run / "north" / "metrics.jsonl").open("a") as file:
        file.writelines(metrics_line(step, loss_of_site={"north": 9.0, "south": 9.0}) for step in range(200, 210))
    rows = load_run(run, NOW).sites[0].rows
    assert rows and rows.steps.tolist() == list(range(210))
    assert (rows.loss_of_site["north"] == 9.0).sum() == 10


def test_skipped_steps_are_counted_and_have_no_loss(run: Path) -> None:
    lines = [metrics_line(step, is_skipped=step % 2 == 0) for step in range(6)]
    lines[2] = metrics_line(2, is_skipped=True, loss_of_site={"north": None, "south": 0.5})
    (run / "north" / "metrics.jsonl").write_text("".join(lines))
    north = load_run(run, NOW).sites[0]
    assert north.num_skipped == 3 and north.rows
    assert np.isnan(north.rows.loss_of_site["north"]).tolist() == [False, False, True, False, False, False]


def test_one_site_alone(run: Path) -> None:
    view, _ = loaded(run / "north")
    assert [site.name for site in view.sites] == ["north"] and view.experiment == "D"


def test_words() -> None:
    assert [say_ranks(ranks) for ranks in ([3], [1, 0], [0, 2, 3, 4])] == ["rank 3", "ranks 0-1", "ranks 0, 2-4"]
    assert [say_time(each) for each in (1, 600, 12_000, 4e5)] == ["1 s", "10 min", "3 h 20 min", "4 d 15 h"]


# ---- whatever it finds


def test_no_run_is_one_line(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(CheckpointError, match="expected") as caught:
            load_run(folder)
        assert "\n" not in str(caught.value)


@contextmanager
def closed(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> Iterator[None]:
    """Have folders refuse to be listed, as those of another user do; whoever runs this may be root."""
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path) in folders:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", refuse)
        yield


def test_a_site_that_may_not_be_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closed(monkeypatch, run / "south"):
        view, said = loaded(run)
    assert view.sites[1].problem and "may not be read by you" in said
    assert re.search(r"south .*0\.510", said), "the other site's rows hold its loss"
    assert "hold whole that were read; --resume auto goes on from there if south can, too." in said
    assert "2 sites, 1 not read" in said
    with (
        closed(monkeypatch, run / "south", run / "north"),
        pytest.raises(CheckpointError, match="none of its sites"),
    ):
        load_run(run)


def test_a_site_that_is_elsewhere(run: Path) -> None:
    (run / "south").rename(run.parent / "south")
    assert "is not here; it may be on a machine of its own" in loaded(run)[1]


def test_half_a_last_line_is_left_for_next_time(run: Path) -> None:
    whole = metrics_line(STEPS)
    for end in (1, len(whole) // 2, len(whole) - 1):
        with (run / "north" / "metrics.jsonl").open("a") as file:
            file.write(whole[:end])
        view = load_run(run, NOW)
        assert view.sites[0].num_done == STEPS and not view.sites[0].faults
        with (run / "north" / "metrics.jsonl").open("r+") as file:
            file.truncate((run / "north" / "metrics.jsonl").stat().st_size - end)
    with (run / "north" / "metrics.jsonl").open("a") as file:
        file.write(whole)
    assert load_run(run, NOW).sites[0].num_done == STEPS + 1


DAMAGE = {
    "garbage": b"\xff\xfe\x00",
    "empty": b"",
    "deep": b"[" * 10_000,
    "not an object": b"7",
    "another type": metrics_line(1).replace('"step": 1', '"step": "1"').encode().strip(),
    "a huge number": metrics_line(1).replace('"step": 1', '"step": ' + "9" * 5000).encode().strip(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_line_is_named_and_left_out(run: Path, damage: bytes) -> None:
    lines = [metrics_line(step).encode() for step in range(6)]
    lines[3] = lines[5] = damage + b"\n"
    (run / "north" / "metrics.jsonl").write_bytes(b"".join(lines))
    view, text = loaded(run)
    assert view.sites[0].rows and view.sites[0].rows.steps.tolist() == [0, 1, 2, 4]
    assert "north/metrics.jsonl, line 4: left out: " in text and "1 more lines left out" in text


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "status-0.json", "results.json"])
def test_a_damaged_record_is_named(run: Path, name: str, damage: bytes) -> None:
    (run / "north" / name).write_bytes(damage)
    view, text = loaded(run)
    assert f"north/{name}: " in text
    assert view.experiment == "D" and view.num_steps == ALL_STEPS, "the other site tells"


def test_words_of_a_file_do_not_command_the_terminal(run: Path) -> None:
    write_status(run / "south", 1, doing="failed: \x1b[2J\x00\u202egone\nbad [bold]")
    view, text = loaded(run)
    assert not re.search("[\x00\x1b\u202e]", text + json.dumps(to_json(view), ensure_ascii=False))
    assert "gone bad [bold]" in text


def test_only_plain_files_are_opened(run: Path, tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere"
    outside.write_text((run / "north" / "status-0.json").read_text())
    for name in ("status-0.json", "metrics.jsonl", "environment.json"):
        (run / "north" / name).unlink()
    (run / "north" / "status-0.json").symlink_to(outside)
    os.mkfifo(run / "north" / "metrics.jsonl")  # opening it to read would wait for a writer
    (run / "north" / "environment.json").mkdir()
    _, text = loaded(run)
    for name in ("status-0.json", "metrics.jsonl", "environment.json"):
        assert f"north/{name}: cannot be read" in text


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_change_of_bytes_is_a_traceback(tmp_path: Path, data: st.DataObject) -> None:
    run = tmp_path / "run"
    if not run.exists():
        write_run(run, num_steps=5)
    files = sorted(path for path in run.rglob("*.*") if path.is_file() and path.parent.parent == run)
    path = data.draw(st.sampled_from(files))
    content = path.read_bytes()
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, len(content))] * 2)))
    path.write_bytes(content[:first] + data.draw(st.binary(max_size=20)) + content[last:])
    try:
        loaded(run)
    finally:
        path.write_bytes(content)


def test_files_that_change_under_its_eyes(run: Path) -> None:
    """A run that writes, replaces and removes as fast as it can is read again and again."""
    program = f"""
import itertools, os, pathlib, shutil
site = pathlib.Path({str(run / "north")!r})
status = (site / "status-0.json").read_text()
for turn in itertools.count():
    beside = site / ".status-0.json.part"
    beside.write_text(status)
    beside.replace(site / "status-0.json")
    beside.write_text(status)
    beside.replace(site / "status-1.json")
    if turn % 2:
        (site / "status-1.json").unlink()
    (site / "checkpoints" / "step-300").mkdir(exist_ok=True)
    (site / "checkpoints" / "step-300" / "state.json").write_text("x")
    shutil.rmtree(site / "checkpoints" / "step-300")
    with (site / "metrics.jsonl").open("a") as file:
        file.write({metrics_line(STEPS)[:100]!r}); file.flush(); file.write({metrics_line(STEPS)[100:]!r})
"""
    writer = subprocess.Popen([sys.executable, "-c", program])
    try:
        ends = time.monotonic() + 2.0
        while time.monotonic() < ends:
            view, _ = loaded(run)
            assert view.experiment == "D" and view.newest_common_step == 200 and not view.sites[0].faults
    finally:
        writer.kill()
        writer.wait()


# ---- long runs


def test_of_a_long_file_the_end_is_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_snapshot, "MAX_LOG_BYTES", 10_000)
    view, text = loaded(run)
    rows = view.sites[0].rows
    assert (
        rows and rows.steps.tolist() == list(range(STEPS - len(rows.steps), STEPS)) and 20 < len(rows.steps) < 60
    )
    assert "north/metrics.jsonl: is long: what is shown and counted is its end" in text


@given(st.integers(1, 10_000), st.integers(2, 500))
def test_thinning_keeps_first_and_last(num_rows: int, max_points: int) -> None:
    kept = thinned(num_rows, max_points)
    assert kept[0] == 0 and kept[-1] == num_rows - 1 and len(kept) == min(num_rows, max_points)
    assert (np.diff(kept) > 0).all()


@given(
    st.lists(st.one_of(st.floats(-1e3, 1e3), st.just(float("nan"))), min_size=1, max_size=60), st.integers(1, 20)
)
def test_running_mean_is_the_mean_of_what_is_there(values: list[float], width: int) -> None:
    found = running_mean(np.array(values), width)
    for index, mean in enumerate(found):
        near = np.array(values[max(0, index - width // 2) : index + width // 2 + 1])
        near = near[np.isfinite(near)]
        assert np.isnan(mean) if not len(near) else mean == pytest.approx(near.mean(), abs=1e-6)


# ---- the picture


def test_curves_are_a_picture(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    path.write_text("an earlier file")
    write_curves(load_run(run, NOW), path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    picture = cv2.imread(str(path))
    assert picture is not None and picture.shape[1] == 1500 and picture.shape[0] > 1000
    colors = np.unique(picture.reshape(-1, 3) @ (1 << 16, 1 << 8, 1))
    assert len(colors) > 500
    assert {0xB27200, 0x005ED5} <= set(colors.tolist()), "both sites' lines: blue, green, red"
    assert [each.name for each in tmp_path.iterdir() if "curves" in each.name] == ["curves.png"]


def test_curves_show_what_was_read(run: Path) -> None:
    figure = draw_curves(load_run(run, NOW))
    loss, validation, rate, north, south, *_ = figure.axes
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["north", "south"]
    assert [text.get_text() for text in validation.get_legend().get_texts()][:3] == ["north", "south", "agreed"]
    assert "0.700\nafter step 100" in validation.get_legend().get_texts()[3].get_text()
    assert rate.lines[0].get_xdata()[-1] == STEPS - 1
    assert north.get_title("left") == "north" and south.get_xlabel() == "step"


def test_curves_that_cannot_be_written_leave_what_was_there(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, path = load_run(run, NOW), tmp_path / "curves.png"
    path.write_text("an earlier file")

    def fail(_: object, name: Path, **__: object) -> None:
        name.write_text("half a picture")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(CheckpointError, match="No space left"):
        write_curves(view, path)
    assert path.read_text() == "an earlier file" and len(list(tmp_path.glob(".*"))) == 0
    with pytest.raises(UsageError, match=r"\.png"):
        write_curves(view, tmp_path / "curves.pdf")


@pytest.mark.parametrize("loss", [None, 1e300, float("nan"), float("inf"), 0.0])
def test_losses_that_cannot_be_drawn(run: Path, tmp_path: Path, loss: float | None) -> None:
    lines = [
        metrics_line(step, loss_of_site={"north": loss, "south": loss}, learning_rate=1e300) for step in (0, 1)
    ]
    (run / "north" / "metrics.jsonl").write_text("".join(lines))
    (run / "south" / "metrics.jsonl").write_text(lines[0])
    view, _ = loaded(run)
    rows = view.sites[0].rows
    assert rows and np.isnan(rows.loss_of_site["north"]).all() == (loss != 0.0)
    write_curves(view, tmp_path / "curves.png")


def test_many_sites_in_a_run_of_an_odd_name(run: Path, tmp_path: Path) -> None:
    losses = {f"site-{number}": 0.1 * number for number in range(40)}
    sites = "".join(f"  {name}: {{ranks: 1}}\n" for name in losses)
    for name in RANKS:
        (run / name / "config.yaml").write_text(f"experiment: D\nsites:\n{sites}")
        (run / name / "metrics.jsonl").write_text("".join(metrics_line(n, loss_of_site=losses) for n in range(50)))
    odd = run.rename(run.parent / r"$\frac$ 東")
    write_curves(loaded(odd)[0], tmp_path / "curves.png")
