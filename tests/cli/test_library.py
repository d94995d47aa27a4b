"""`cxr_hvd.join` in real launches: a loop of one's own begins, ends in order, and fails on all ranks in time."""

import subprocess
import sys
from pathlib import Path

import pytest

from lab.launch import BIN, Finished, launch, need_horovod, run

need_horovod()

AT_NIGHT = [pytest.param(name, marks=(pytest.mark.slow, pytest.mark.night)) for name in ("gloo", "horovodrun")]

LOOP = """
import sys
import torch
import cxr_hvd

with cxr_hvd.join(sites=["north", "south"]) as job:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    averager = cxr_hvd.PartialAverager(model, optimizer, job, private=["head"])
    for step in range(4):
        optimizer.zero_grad()
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        averager.average()
        {after_step}
    averager.close()
print(f"{{job.site}} ended", flush=True)
"""


def run_loop(folder: Path, launcher: str, after_step: str = "pass", sites: str = "", **more: str) -> Finished:
    script = folder / "loop.py"
    text = LOOP.format(after_step=after_step)
    script.write_text(text.replace('["north", "south"]', sites) if sites else text)
    return launch(2, [sys.executable, str(script)], launcher, limit_s=90, folder=folder, **more)


@pytest.mark.parametrize("launcher", ["mpirun", *AT_NIGHT])
def test_a_loop_begins_and_ends_under_every_launcher(launcher: str, tmp_path: Path) -> None:
    job = run_loop(tmp_path, launcher)
    assert job.exit_code == 0, job.output
    assert "north ended" in job.output and "south ended" in job.output


def test_a_loop_of_one_site_runs_without_a_launcher(tmp_path: Path) -> None:
    script = tmp_path / "loop.py"
    script.write_text(LOOP.format(after_step="pass").replace('["north", "south"]', '["alone"]'))
    job = run([sys.executable, str(script)], folder=tmp_path)
    assert job.exit_code == 0 and "alone ended" in job.output


def test_errors_of_one_process_are_raised_as_they_are(tmp_path: Path) -> None:
    program = "import cxr_hvd\nfrom cxr_hvd.errors import ConfigError, UsageError\n"
    for sites, kind in (("['alone']", "KeyError"), ("['a', 'b']", "ConfigError"), ("'north'", "UsageError")):
        program += f"try:\n    with cxr_hvd.join({sites}): raise KeyError(1)\nexcept {kind}: print('raised')\n"
    job = run([sys.executable, "-c", program], folder=tmp_path)
    assert (job.exit_code, job.output) == (0, "raised\n" * 3)


@pytest.mark.parametrize("launcher", ["mpirun", *AT_NIGHT])
def test_a_rank_that_leaves_early_is_named_by_all_and_nobody_waits(launcher: str, tmp_path: Path) -> None:
    """One takes fewer steps and leaves the loop and the job: the others are told, not left to wait."""
    leaves = 'if step == 1 and job.site == "south": break'
    job = run_loop(tmp_path, launcher, leaves)
    assert job.exit_code == 1
    lines = job.lines("the ranks are not at the same step")
    assert len(lines) == 2 and not job.lines('loop.py", line')
    assert (
        "site north, rank 0 averages after step 3; site south, rank 1 closes its averager after step 2" in lines[0]
    )


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["mpirun", "gloo"])
def test_a_rank_that_leaves_the_job_is_named_by_all(launcher: str, tmp_path: Path) -> None:
    leaves = 'if step == 1 and job.site == "south": averager.close = lambda: None; break'
    job = run_loop(tmp_path, launcher, leaves)
    assert len(job.lines("site south, rank 1 leaves the job")) == 2


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["mpirun", "gloo"])
def test_a_fault_on_one_rank_ends_all(launcher: str, tmp_path: Path) -> None:
    job = run_loop(tmp_path, launcher, 'if step == 1 and job.site == "south": raise KeyError("lost")')
    assert job.exit_code != 0 and job.lines("KeyError: 'lost'") and not job.lines("ended")


@pytest.mark.slow
def test_a_rank_that_waits_for_one_that_hangs_ends_in_time(tmp_path: Path) -> None:
    hangs = 'if step == 1 and job.site == "south": import time; time.sleep(60)'
    job = run_loop(tmp_path, "mpirun", hangs, CXR_STALL_LIMIT_S="3")
    assert job.exit_code != 0 and job.seconds < 45
    assert job.lines("site north, rank 0: waiting for the other ranks in progress for more than 3 s")


@pytest.mark.slow
def test_a_wrong_number_of_ranks_is_one_line(tmp_path: Path) -> None:
    job = run_loop(tmp_path, "mpirun", sites='{"north": 2, "south": 1}')
    assert job.exit_code == 2 and "Traceback" not in job.output
    assert job.lines("the sites want 3 ranks (north 2, south 1), found 2")


def test_importing_the_library_imports_no_torch() -> None:
    check = (
        "import cxr_hvd, sys; assert 'torch' not in sys.modules; assert cxr_hvd.join and 'torch' in sys.modules"
    )
    subprocess.run([BIN / "python", "-c", check], check=True)
