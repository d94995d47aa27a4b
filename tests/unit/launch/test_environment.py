"""What launchers and users leave in the environment: one process is no parallel job, no value a traceback."""

import os
from collections.abc import Mapping

import pytest

from cxr_hvd.comm.local import LocalComm
from cxr_hvd.comm.start import start_comm
from cxr_hvd.environment import is_parallel
from cxr_hvd.errors import UsageError
from cxr_hvd.launch.launchers import is_rank
from lab.launch import BIN, run
from preprocess.parallel.ranks import OneRank, is_under_launcher, open_ranks

ALONE: list[Mapping[str, str]] = [
    {},
    {"PMI_RANK": "0", "PMI_SIZE": "1"},  # one task of an interactive Slurm shell
    {"PMI_SIZE": ""},
    {"PMIX_RANK": ""},
    {"PMIX_RANK": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8"},
    {"PMIX_RANK": "0", "SLURM_NTASKS": "1"},
    {"SLURM_NTASKS": "1"},
    {"SLURM_NTASKS": "8"},  # a batch script: its ranks are not started yet
    {"OMPI_COMM_WORLD_SIZE": "1", "PMIX_RANK": "0", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "2"},
]
PARALLEL: list[Mapping[str, str]] = [
    {"PMI_SIZE": "2"},
    {"OMPI_COMM_WORLD_SIZE": "2", "PMI_SIZE": "1"},  # mpirun in an interactive shell
    {"PMIX_RANK": "0"},  # nobody says how many
    {"PMIX_RANK": "0", "SLURM_STEP_NUM_TASKS": "2", "PMI_SIZE": "1"},  # srun in one
    {"PMIX_RANK": "1", "SLURM_NTASKS": "2"},
]


def set_environment(monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str]) -> None:
    for name in list(os.environ):
        if name.startswith(("PMI", "OMPI_COMM", "SLURM", "HOROVOD_")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("environment", ALONE, ids=str)
def test_one_process_alone_is_no_parallel_job(
    environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, environment)
    assert not is_parallel(environment) and not is_under_launcher()
    assert is_rank(environment) == ("OMPI_COMM_WORLD_SIZE" in environment)  # mpirun is watched, whatever its -np
    assert isinstance(start_comm(), LocalComm)
    with open_ranks("cxr-preprocess") as ranks:
        assert isinstance(ranks, OneRank)


@pytest.mark.parametrize("environment", PARALLEL, ids=str)
def test_several_ranks_are_a_parallel_job(environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, environment)
    assert is_parallel(environment) and is_under_launcher() and is_rank(environment)


def test_ranks_of_horovodrun_are_none_of_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, {"HOROVOD_SIZE": "2"})
    assert is_parallel(os.environ) and not is_under_launcher()


@pytest.mark.parametrize("name", ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "HOROVOD_SIZE"])
@pytest.mark.parametrize("value", ["two", "-1", "1" * 5000, "2.0", "²"])
def test_a_size_that_is_no_number_is_one_line(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, {name: value})
    with pytest.raises(UsageError, match=f"{name}: expected a number of ranks") as caught:
        start_comm()
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(("value", "seconds"), [("10m", 600), ("3", 3), ("0.5", 0.5), ("1h", 3600), ("", 77)])
def test_a_stall_limit_is_read_as_people_write_it(
    value: str, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, {"CXR_STALL_LIMIT_S": value})
    assert start_comm(77.0).watchdog._limit_s == seconds


@pytest.mark.parametrize("value", ["soon", "-3", "0", "nan", "inf", "1" * 5000])
def test_a_stall_limit_that_is_none_is_one_line(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, {"CXR_STALL_LIMIT_S": value})
    with pytest.raises(UsageError, match=r"^CXR_STALL_LIMIT_S"):
        start_comm()


def test_the_command_says_it_in_one_line() -> None:
    told = run([str(BIN / "cxr-preprocess"), "chexpert", "/none", "--out", "x.h5"], PMI_SIZE="two")
    assert told.exit_code == 2 and len(told.output.splitlines()) == 1 and told.lines("PMI_SIZE: expected a number")
