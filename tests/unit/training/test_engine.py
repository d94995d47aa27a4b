"""What the engine does around its steps, on one rank: validation, patience, means, the watchdog, stopping."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cxr_hvd.comm.local import LocalComm
from cxr_hvd.comm.sites import Topology
from cxr_hvd.comm.step_status import StopReason
from cxr_hvd.comm.watchdog import Watchdog
from cxr_hvd.config.file import parse_config
from cxr_hvd.config.schema import Config
from cxr_hvd.config.sections import Model
from cxr_hvd.errors import CheckpointError, ConfigError, Stopped
from cxr_hvd.launch.rank_status import RankStatus
from cxr_hvd.models.build import build_model
from cxr_hvd.study.layout import Split
from cxr_hvd.training.checkpoint.files import load_tensors
from cxr_hvd.training.checkpoint.snapshot import load_judged_weights
from cxr_hvd.training.history import History
from cxr_hvd.training.run_folder import cut_rows
from cxr_hvd.training.status import suspects
from cxr_hvd.training.stopping import StopRequest, is_near
from cxr_hvd.training.train import LaunchOptions, train
from cxr_hvd.training.weight_mean import WeightMean
from lab.launch import PROJECT
from lab.study_files import write_study_file

SPLITS = (Split.TRAIN, Split.TRAIN, Split.VALIDATE)


def config_of(folder: Path, **sections: dict[str, Any]) -> Config:
    """One site, 3 steps an epoch, 5 epochs."""
    data = folder / "north.h5"
    if not data.exists():
        write_study_file(data, 18, splits=SPLITS)
    tree: dict[str, Any] = {
        "experiment": "A",
        "sites": {"north": {"data": str(data)}},
        "model": {"name": "tiny", "image_size": 32},
    }
    tree["training"] = {"epochs": 5, "batch_size": 4, "precision": "fp32"}
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    return parse_config(tree, "test")


def test_patience_ends_a_run_and_the_best_checkpoint_stays(tmp_path: Path) -> None:
    """No gain is as large as 1: the first validation stays the best, and the third is one too many."""
    validation = {"patience": 2, "min_delta": 1.0}
    config = config_of(tmp_path, validation=validation, checkpoints={"keep": 2, "every_steps": 1})
    train(config, tmp_path / "run", LocalComm())
    checkpoints = tmp_path / "run" / "north" / "checkpoints"
    rows = [json.loads(line) for line in (checkpoints.parent / "validation.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 6, 9]
    assert [row["is_best"] for row in rows] == [True, False, False]
    assert {path.name for path in checkpoints.iterdir()} == {"step-3", "step-8", "step-9", "latest", "best"}
    assert (checkpoints / "best").readlink().name == "step-3"
    train(config, tmp_path / "run", LocalComm(), LaunchOptions(resume="auto"))  # it is over, and stays so
    assert (checkpoints / "latest").readlink().name == "step-9"


def test_a_history_remembers_the_best_and_counts_from_there() -> None:
    history = History()
    for step, auroc in enumerate((0.6, 0.7, 0.705, None, 0.69)):
        history = history.after(step, auroc, min_delta=0.01)
    assert history == History(best_auroc=0.7, best_step=1, num_since_best=3)
    assert History.model_validate_json(history.model_dump_json()) == history
    assert History.model_validate_json("{}") == History()


def test_the_mean_of_weights_is_what_its_formula_says_and_what_is_judged(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 1)
    mean, expected = WeightMean(model, 0.75), model.weight.detach().clone()
    for value in (1.0, -2.0, 5.0):
        with torch.no_grad():
            model.weight.fill_(value)
        mean.update()
        expected = 0.75 * expected + 0.25 * value
    torch.testing.assert_close(mean.tensors()["weight"], expected)

    train(config_of(tmp_path, training={"ema_decay": 0.9, "max_steps": 3}), tmp_path / "run", LocalComm())
    latest = tmp_path / "run" / "north" / "checkpoints" / "latest"
    judged, last = (build_model(Model(name="tiny"), 14, seed=5) for _ in range(2))
    assert load_judged_weights(latest, judged) == 3
    for name in ("shared", "private"):
        last.load_state_dict(load_tensors(latest / f"{name}.safetensors"), strict=False)
    of_judged, of_last = (each.state_dict()["features.conv0.weight"] for each in (judged, last))
    assert not torch.equal(of_judged, of_last)


def test_a_signal_stops_after_the_step_and_the_handlers_go_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop = StopRequest()
    with stop.listening():
        assert stop.reason() is StopReason.NONE
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reason() is StopReason.SIGNAL
        os.kill(os.getpid(), signal.SIGTERM)  # launchers send it twice
        assert stop.reason() is StopReason.SIGNAL
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_deadline_leaves_time_for_two_steps_a_checkpoint_and_a_validation(tmp_path: Path) -> None:
    assert not is_near(left_s=100, step_s=10, save_s=20)
    assert is_near(left_s=51, step_s=10, save_s=20)
    stop = StopRequest(deadline=time.monotonic() + 30)
    assert stop.reason() is StopReason.NONE  # with ten seconds for a checkpoint that was not measured yet
    stop.note_validation(25.0)
    assert stop.reason() is StopReason.TIME
    with pytest.raises(
        Stopped, match=r"stopped after step 1 of 15, since the time limit is near; .*--resume auto"
    ):
        train(
            config_of(tmp_path),
            tmp_path / "run",
            LocalComm(),
            LaunchOptions(deadline=time.monotonic() + 1),
        )


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (
            {"training": {"batch_size": 4, "accumulate": 3}},
            "accumulate: expected a divisor of batch_size (4), found 3",
        ),
        ({"training": {"warmup_steps": 5}}, "one-cycle warms up by itself"),
        ({"training": {"batch_size": 1}}, "BatchNorm needs more than one value"),
        ({"validation": {"every_epochs": 0, "patience": 1}}, "patience: needs validations"),
        (
            {"loss": {"positive_weight": {"Pneumonai": 2.0}}},
            "no label is called 'Pneumonai'; did you mean 'Pneumonia'?",
        ),
        (
            {"training": {"precision": "fp16"}, "sharing": {"exchange": "gradients", "wire": "bfloat16"}},
            "that of a skipped step would be sent in a later one",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, section: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        config_of(tmp_path, **section)
    assert said in str(error.value)


def test_rows_of_steps_to_be_taken_again_are_cut(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(5)) + '{"step": 5, "lo')
    cut_rows(log, 3)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [0, 1, 2]
    cut_rows(tmp_path / "there is none", 3)


def test_a_run_whose_disk_takes_no_checkpoint_says_so_in_one_line(tmp_path: Path, monkeypatch: Any) -> None:
    from cxr_hvd.training.checkpoint import writer

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "save_file", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*No space left.* what was there before is whole"):
        train(config_of(tmp_path), tmp_path / "run", LocalComm())
    status = json.loads((tmp_path / "run" / "north" / "status-0.json").read_text())
    assert status["doing"].startswith("failed: ") and status["exit_code"] == 1


# ---- the watchdog


HANGS = """
import time
from cxr_hvd.comm.watchdog import Watchdog
dog = Watchdog({limit})
dog.call_rank("site north, rank 0")
class Observer:
    def tick(self, doing): pass
    def fail(self, line): pass
    def suspects(self): return "site south, rank 1 hangs, is frozen or is cut off"
dog.report_to(Observer())
dog.works("training", 7)
{body}
"""


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("time.sleep(60)", "site north, rank 0 hangs in step 7: training for more than 1 s"),
        (
            'with dog.waits("status"): time.sleep(60)',
            "in step 7: waiting for the other ranks in status for more than 1 s: site south, rank 1 hangs",
        ),
    ],
)
def test_what_hangs_is_named_and_ended(body: str, said: str) -> None:
    program = HANGS.format(limit=1, body=body)
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and said in done.stderr


def test_an_observer_that_fails_keeps_no_rank_from_being_ended() -> None:
    body = "Observer.tick = Observer.fail = Observer.suspects = lambda *_: 1 / 0\n"
    body += 'with dog.waits("status"): time.sleep(60)'
    program = HANGS.format(limit=1, body=body)
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and "for more than 1 s: one hangs or is cut off" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_hangs_with_pythons_lock_held_is_ended_too() -> None:
    body = "import ctypes; time.sleep(0.6); ctypes.PyDLL(None).sleep(60)"
    program = HANGS.format(limit=1, body=body)
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and "Timeout" in done.stderr


def test_each_piece_of_work_has_the_whole_limit() -> None:
    body = "\n".join(
        ['for step in range(5): dog.works("training", step); time.sleep(0.6)', "dog.rests()", "time.sleep(2)"]
    )
    done = subprocess.run(
        [sys.executable, "-c", HANGS.format(limit=1, body=body)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr


def test_a_wait_gives_back_what_was_done_before() -> None:
    dog = Watchdog(60)
    dog.works("validating", 3)
    with dog.waits("scores"):
        assert dog._doing is not None and dog._doing.is_waiting and dog._doing.step == 3
    assert dog._doing is not None and (dog._doing.what, dog._doing.is_waiting) == ("validating", False)
    dog.rests()


def test_those_are_suspected_whose_word_is_old_or_who_work(tmp_path: Path) -> None:
    topology = Topology(0, ("north", "south", "west"), (0, 1, 2))
    assert suspects(tmp_path, Topology(0, ("north", "south"), (0, 1))).startswith("site south, rank 1 hangs")

    def say(site: str, doing: str, age_s: float) -> None:
        (tmp_path / site).mkdir(exist_ok=True)
        written = time.time() - age_s
        status = RankStatus(site=site, rank=1, num_steps=9, step=7, doing=doing, since=written, time=written)
        (tmp_path / site / "status-0.json").write_text(status.model_dump_json())

    waiting = "waiting for the other ranks in status"
    say("south", waiting, 1)
    say("west", "loading data", 1)
    assert suspects(tmp_path, topology).startswith("site west, rank 2 (last word: loading data, step 7) hangs")
    say("west", waiting, 40)  # frozen in a wait
    assert suspects(tmp_path, topology).startswith(f"site west, rank 2 (last word: {waiting}, step 7, 40 s ago)")
    (tmp_path / "west" / "status-0.json").write_text("[" * 3000)
    assert suspects(tmp_path, topology).startswith("site west, rank 2 hangs")
