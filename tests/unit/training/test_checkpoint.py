"""A checkpoint is believed only where all of it has its form; a bad one is passed over for an older whole one."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from cxr_hvd.comm.job import Job
from cxr_hvd.comm.local import LocalComm
from cxr_hvd.comm.sites import Topology
from cxr_hvd.errors import CheckpointError
from cxr_hvd.partial.plan import build_plan
from cxr_hvd.partial.tensor_spec import Kind, TensorSpec
from cxr_hvd.training.checkpoint.record import CheckpointRecord, read_checkpoint_record
from cxr_hvd.training.checkpoint.resume import agree_on_step
from cxr_hvd.training.history import History
from cxr_hvd.training.run_folder import RunFolder

ALONE = Topology(0, ("north",), (0,))
SPECS = [
    TensorSpec("stem.weight", "stem", Kind.PARAMETER, (2, 3), "float32"),
    TensorSpec("head.weight", "head", Kind.PARAMETER, (4,), "float32"),
    TensorSpec("head.num", "head", Kind.COUNTER, (), "int64"),
]
PLAN = build_plan(SPECS, ["head"])
SHARED = {"stem.weight": torch.zeros(2, 3)}
PRIVATE = {"head.weight": torch.zeros(4), "head.num": torch.tensor(3)}
MOMENTS = {f"{name}/exp_avg": tensor for name, tensor in {**SHARED, "head.weight": torch.zeros(4)}.items()}
STATE: dict[str, Any] = {"step": 4, "site": "north", "num_ranks_of_site": 1, "has_mean": True}


def write(checkpoint: Path, step: int) -> None:
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text(json.dumps(STATE | {"step": step}))
    save_file(SHARED, checkpoint / "shared.safetensors")
    save_file(PRIVATE, checkpoint / "private.safetensors")
    save_file(MOMENTS, checkpoint / "optimizer-0.safetensors")
    save_file(SHARED, checkpoint / "mean-0.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path, "north")
    for step in (2, 4):
        write(folder.checkpoint(step), step)
    return folder


def newest(folder: RunFolder) -> int | None:
    return agree_on_step(folder, PLAN, Job(LocalComm(), ALONE))


def state(**changes: Any) -> Callable[[Path], object]:
    return lambda path: (path / "state.json").write_text(json.dumps(STATE | changes))


def text(content: str) -> Callable[[Path], object]:
    return lambda path: (path / "state.json").write_text(content)


def tensors(name: str, held: dict[str, torch.Tensor]) -> Callable[[Path], object]:
    return lambda path: save_file(held, path / f"{name}.safetensors")


def pipe(name: str) -> Callable[[Path], object]:
    return lambda path: ((path / name).unlink(), os.mkfifo(path / name))


DAMAGES = [
    state(step=float("inf")),
    state(step=1 << 70),
    state(step=-4),
    state(step="4"),
    state(step=6),
    state(site=None),
    state(num_ranks_of_site=2),
    state(validation=[1]),
    state(validation={"best_auroc": "high"}),
    state(validation={"num_since_best": float("nan")}),
    state(loss_scale={"scale": "big", "good_steps": 1}),
    text("[" * 50_000),
    text('{"a":' * 50_000),
    text("[4]"),
    text("null"),
    text(" " * 100_000 + json.dumps(STATE)),
    pipe("state.json"),
    pipe("shared.safetensors"),
    tensors("shared", {}),
    tensors("shared", {"stem.weight": torch.zeros(3, 2)}),
    tensors("shared", {"stem.weight": torch.zeros(2, 3, dtype=torch.float64)}),
    tensors("private", {**PRIVATE, "more": torch.zeros(1)}),
    tensors("mean-0", {"other": torch.zeros(1)}),
    tensors("optimizer-0", {**MOMENTS, "nobody/exp_avg": torch.zeros(1)}),
    tensors("optimizer-0", {**MOMENTS, "stem.weight/exp_avg_sq": torch.zeros(2, 3)}),
    tensors("optimizer-0", {**MOMENTS, "stem.weight/exp_avg": torch.zeros(7)}),
    lambda path: (path / "private.safetensors").write_bytes(b"\xff" * 100),
    lambda path: (path / "optimizer-0.safetensors").unlink(),
]


def test_the_newest_whole_checkpoint_is_gone_on_from_without_a_word(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert newest(folder) == 4
    assert capsys.readouterr().out == ""


@pytest.mark.timeout(20)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_checkpoint_is_passed_over_in_a_line(
    folder: RunFolder, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], object]
) -> None:
    damage(folder.checkpoint(4))
    assert newest(folder) == 2
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{folder.checkpoint(4)} is passed over, site north, rank 0 goes on from step 2: ")
    assert len(line) < 1000


def test_where_none_is_whole_the_run_is_not_begun_anew(folder: RunFolder) -> None:
    for step in (2, 4):
        state(step=float("inf"))(folder.checkpoint(step))
    with pytest.raises(CheckpointError, match="step-4: cannot go on from it, nor from an earlier one"):
        newest(folder)
    shutil.rmtree(folder.checkpoints)
    assert newest(folder) is None


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5)


@given(st.dictionaries(st.sampled_from(sorted(CheckpointRecord.model_fields)), JSON))
def test_any_state_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("state")
    state(**changes)(path)
    try:
        assert read_checkpoint_record(path).num_ranks_of_site >= 1
    except CheckpointError as error:
        assert "expected a checkpoint with state.json" in str(error)


def test_a_state_of_an_earlier_version_has_neutral_values(tmp_path: Path) -> None:
    text(json.dumps({"step": 4, "site": "north", "num_ranks_of_site": 1}))(tmp_path)
    record = read_checkpoint_record(tmp_path)
    assert (record.has_exchange, record.has_mean, record.num_skipped_in_a_row) == (False, False, 0)
    assert record.loss_scale is None
    assert record.validation == History(best_auroc=None, best_step=None, num_since_best=0)
