"""A rank says so where mpirun has bound it to one core of many, and what to do where a GPU is full."""

import os
from types import SimpleNamespace

import pytest
import torch

from cxr_hvd.comm.device import binding_remark, memory_error
from cxr_hvd.comm.watchdog import Watchdog

BY_MPIRUN = {"OMPI_COMM_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("own", "cores", "ranks_per_node", "environment", "is_said"),
    [
        (1, 16, 2, BY_MPIRUN, True),
        (8, 16, 2, BY_MPIRUN, False),
        (1, 2, 2, BY_MPIRUN, False),
        (1, 16, 2, {}, False),
    ],
)
def test_idle_cores_are_named_with_the_words_that_use_them(
    own: int,
    cores: int,
    ranks_per_node: int,
    environment: dict[str, str],
    is_said: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(own)))
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    said = binding_remark(SimpleNamespace(ranks_per_node=ranks_per_node), environment)
    assert (said is not None) == is_said
    if said:
        assert "1 of 16 cores" in said and "--bind-to none" in said and "pe=8" in said


@pytest.mark.parametrize(
    ("error", "lack"),
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB of "
                "which 6.88 MiB is free. Process 4711 has 1.00 GiB memory in use."
            ),
            "expected 20.00 MiB more, found 6.88 MiB free of 79.10 GiB;",
        ),
        (torch.OutOfMemoryError("in other words"), "expected more, found none free"),
        (RuntimeError("CUDA error: out of memory\nCompile with ..."), "expected more, found none free"),
    ],
)
def test_a_full_gpu_is_one_line_that_says_what_to_lower(error: Exception, lack: str) -> None:
    line = str(memory_error(error, "site north, rank 0 in step 7"))
    assert line.startswith(f"site north, rank 0 in step 7: the GPU's memory is full: {lack}")
    assert "\n" not in line and "batch_size" in line and "accumulate" in line and "precision" in line


def test_any_other_error_is_not_one_of_memory() -> None:
    assert memory_error(RuntimeError("CUDA error: device-side assert triggered"), "rank 0") is None


def test_a_rank_knows_its_last_step_after_it_has_stopped_watching() -> None:
    watchdog = Watchdog(600)
    assert watchdog.place() == "this rank"
    watchdog.call_rank("site north, rank 0")
    watchdog.works("training", 7)
    watchdog.works("saving a checkpoint")
    watchdog.rests()
    assert watchdog.place() == "site north, rank 0 in step 7"
