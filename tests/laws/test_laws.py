"""Try every declared law in real jobs under MPI and under Gloo: one launch for each job and time of day."""

import inspect
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from lab.launch import launch, need_horovod
from tests.laws.run_laws import run_laws

need_horovod()

from tests.laws.law import Launch, laws_by_launch, load_laws  # noqa: E402

LIMIT_S = 540
SLOW, NIGHT = (pytest.mark.slow,), (pytest.mark.slow, pytest.mark.night)
MARKS = {"day": (), "slow": SLOW, "night": NIGHT}
LAUNCHES = laws_by_launch()

Verdicts = Callable[[Launch], dict[str, str]]


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> Verdicts:
    """Start each launch once, when the first of its laws is asked for."""

    @cache
    def try_laws(job: Launch) -> dict[str, str]:
        folder = tmp_path_factory.mktemp("laws")
        return run_laws(job.num_ranks, job.launcher, LAUNCHES[job], folder, LIMIT_S, CXR_LAWS_NETWORK=job.network)

    return try_laws


def is_law(function: object) -> bool:
    """Whether this is a function that takes a communicator and a folder, and returns nothing."""
    if not inspect.isfunction(function):
        return False
    signature = inspect.signature(function)
    first, others = [*signature.parameters][:2], [*signature.parameters.values()][2:]
    has_defaults = all(parameter.default is not parameter.empty for parameter in others)
    return first == ["comm", "folder"] and signature.return_annotation is None and has_defaults


def test_every_law_is_declared_and_tried_by_some_launch() -> None:
    laws = load_laws()
    modules = {law.function.__module__ for law in laws.values()}
    functions = {name for module in modules for name, value in vars(sys.modules[module]).items() if is_law(value)}
    assert functions == set(laws)
    assert [name for name, law in laws.items() if not law.launches] == ["rank_1_hangs"]


@pytest.mark.parametrize(
    ("job", "name"),
    [
        pytest.param(job, name, marks=MARKS[job.when], id=f"{job}-{name}")
        for job, names in LAUNCHES.items()
        for name in names
    ],
)
def test_law(job: Launch, name: str, verdicts: Verdicts) -> None:
    verdict = verdicts(job)[name]
    assert verdict == "kept", verdict


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["mpirun", pytest.param("gloo", marks=NIGHT)])
def test_a_hanging_rank_fails_its_test_by_name_in_time(launcher: str, tmp_path: Path) -> None:
    verdict = run_laws(2, launcher, ["rank_1_hangs"], tmp_path, limit_s=240, CXR_LAW_LIMIT_S="2")["rank_1_hangs"]
    assert "rank 1 did not finish rank_1_hangs" in verdict
    assert "in rank_1_hangs" in verdict


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [pytest.param("mpirun", marks=NIGHT), "gloo"])
def test_a_wait_for_a_silent_rank_ends_the_job_in_time(launcher: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.laws.rank", str(tmp_path), str(time.time() + 600), "rank_1_hangs"]
    job = launch(2, command, launcher, limit_s=240, CXR_STALL_LIMIT_S="3")
    assert job.exit_code != 0
    assert job.lines("waiting for the other ranks in verdict.waits for rank 1 for more than 3 s")
