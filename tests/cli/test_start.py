"""The start: what is wrong is told before anything slow is imported; a first step waits for nothing needless."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from cxr_hvd.environment import num_ranks_here
from cxr_hvd.errors import UsageError
from cxr_hvd.experiment.scores import NAME, write_scores
from cxr_hvd.launch.early import may_start_ranks, wait_for_refusals
from lab.launch import environment
from lab.study_files import write_study_file
from tests.helpers.scores import scores_of
from tests.unit.monitor.test_inspect_run import write_run

MPIRUN = {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "3", "PMIX_RANK": "0"}
GLOO = {"HOROVOD_SIZE": "3", "HOROVOD_LOCAL_SIZE": "3"}
SLOW = ("torch", "torchvision", "h5py", "horovod", "sklearn", "scipy")
OF_NO_USE = ("torch._dynamo", "torchvision", "sklearn", "scipy", "pandas", "tensorboard", "matplotlib", "PIL")

# Runs the command line of sys.argv[1:], and prints the modules that were there when it left.
LEAVES = """
import json, os, sys
from cxr_hvd import errors
from cxr_hvd.cli import app as cli
from cxr_hvd.cli import joining
def leave(code):
    print(json.dumps({"exit_code": code, "modules": sorted(sys.modules)}), flush=True)
    os._exit(code)
joining.leave = errors.leave = leave
cli.main()
"""
# The same of the moment after the first step.
STEPS = """
import json, os, sys
from cxr_hvd.cli import app as cli
from cxr_hvd.training.engine import Engine
step = Engine.train_step
def first_step(*arguments, **more):
    step(*arguments, **more)
    print(json.dumps({"modules": sorted(sys.modules)}), flush=True)
    os._exit(0)
Engine.train_step = first_step
cli.main()
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    for seed, site in enumerate(("north", "south")):
        write_study_file(folder / f"{site}.h5", 8, seed, site=site)
    text = f"""
experiment: D
sites:
  north: {{data: {folder}/north.h5}}
  south: {{data: {folder}/south.h5}}
model: {{image_size: 32}}
training: {{batch_size: 2, max_steps: 2, precision: fp32}}
"""
    (folder / "D.yaml").write_text(text)
    return folder / "D.yaml"


def run_alone(program: str, *words: object, **variables: str) -> tuple[dict[str, object], str]:
    """Run a program above in a process of its own; return what it printed last, and its errors."""
    command = [sys.executable, "-c", program, *map(str, words)]
    done = subprocess.run(
        command, env=environment(**variables), capture_output=True, text=True, timeout=120, check=False
    )
    last = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert last, done.stdout + done.stderr
    return json.loads(last[-1]), done.stderr


@pytest.mark.parametrize("launched", [MPIRUN, GLOO], ids=["mpirun", "gloo"])
def test_a_wrong_number_of_ranks_is_told_before_anything_slow(config: Path, launched: dict[str, str]) -> None:
    told, said = run_alone(LEAVES, "train", config, "--run", config.parent / "run", **launched)
    assert told["exit_code"] == 2 and not {*SLOW} & {*told["modules"]}
    assert said == (
        "cxr-hvd: error: the sites want 2 ranks (north 1, south 1), found 3: start with -np 2, "
        "or change sites.NAME.ranks\n"
    )


@pytest.mark.parametrize(
    ("words", "exit_code", "said"),
    [
        (["--set", "training.epoch=3"], 2, "unknown key 'training.epoch'; did you mean 'epochs'?"),
        (["--site", "east"], 2, "east"),
        ([], 1, "south holds a run already: go on with --resume auto"),
        (["--resume", "latest"], 2, "north: nothing to resume"),
    ],
)
def test_a_wrong_config_or_run_folder_is_told_before_anything_slow(
    config: Path, tmp_path: Path, words: list[str], exit_code: int, said: str
) -> None:
    (tmp_path / "south").mkdir()
    (tmp_path / "south" / "checkpoints").mkdir()
    (tmp_path / "south" / "config.yaml").touch()
    launched = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    told, line = run_alone(LEAVES, "train", config, "--run", tmp_path, *words, **launched)
    assert told["exit_code"] == exit_code and not {*SLOW} & {*told["modules"]}
    assert said in line and line.count("\n") == 1


def test_a_first_step_waits_for_nothing_of_no_use(config: Path, tmp_path: Path) -> None:
    told, said = run_alone(STEPS, "train", config, "--site", "north", "--run", tmp_path / "run")
    assert not {*OF_NO_USE} & {*told["modules"]}, said


# The same of the end of a command that succeeds.
ENDS = """
import json, sys
from cxr_hvd.cli import app as cli
cli.app(standalone_mode=False)
print()
print(json.dumps({"modules": sorted(sys.modules)}))
"""


def test_a_plan_needs_no_torch(config: Path) -> None:
    for words in ([], ["--json"]):
        told, said = run_alone(ENDS, "plan", config, *words)
        assert not {*OF_NO_USE, "torch", "horovod"} & {*told["modules"]}, said


def test_a_look_at_a_run_needs_no_torch(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    for words in ([], ["--json"], ["--out", tmp_path / "curves.png"]):
        told, said = run_alone(ENDS, "inspect-run", tmp_path / "run", *words)
        assert not {"torch", "horovod", "mpi4py", "h5py", "matplotlib.pyplot"} & {*told["modules"]}, said


@pytest.mark.slow
def test_a_report_needs_no_torch(config: Path, tmp_path: Path) -> None:
    """From scores to the page: it opens on a laptop at once, and where torch cannot be installed."""
    run = tmp_path / "D" / "seed-1"
    for site in ("north", "south"):
        (run / site).mkdir(parents=True)
        (run / site / "config.yaml").write_bytes(config.read_bytes())
    write_scores(run / NAME, scores_of(1, 0.25))
    told, said = run_alone(ENDS, "report", tmp_path, "--resamples", 100)
    assert not {"torch", "torchvision", "horovod", "mpi4py"} & {*told["modules"]}, said
    assert (tmp_path / "report.html").is_file() and (tmp_path / "comparison.json").is_file()


@pytest.mark.parametrize(
    ("variables", "num_ranks"),
    [
        ({}, 1),
        (MPIRUN, 3),
        (GLOO, 3),
        (MPIRUN | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, None),  # elsewhere may be other files
        ({"PMI_SIZE": "4", "PMI_RANK": "0"}, None),
        ({"PMI_SIZE": "4", "MPI_LOCALNRANKS": "4"}, 4),
        ({"PMIX_RANK": "1"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "1", "PMIX_RANK": "0"}, 1),
        ({"PMI_SIZE": "1", "PMI_RANK": "0"}, 1),
        ({"PMI_SIZE": ""}, 1),
        ({"PMIX_RANK": "0", "SLURM_NTASKS": "1"}, 1),
    ],
)
def test_how_many_ranks_there_are_on_this_machine(variables: Mapping[str, str], num_ranks: int | None) -> None:
    assert num_ranks_here(variables) == num_ranks


def test_a_number_of_ranks_that_is_none_is_told() -> None:
    with pytest.raises(UsageError, match="HOROVOD_SIZE: expected a number of ranks"):
        num_ranks_here({"PMI_SIZE": "", "HOROVOD_SIZE": "two"})


@pytest.mark.parametrize(
    ("variables", "may"),
    [
        ({}, True),
        ({"PMI_SIZE": "1", "PMI_RANK": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_JOB_NUM_NODES": "1"}, True),
        ({"PMIX_RANK": "0", "SLURM_STEP_NUM_TASKS": "1"}, True),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1"}, True),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"}, False),
        ({"SLURM_STEP_NUM_TASKS": "2"}, False),
        ({"FLUX_JOB_SIZE": "2"}, False),
        ({"LSB_HOSTS": "a a"}, True),
        ({"LSB_HOSTS": "a b"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),  # mpirun -np 1: the user is told
        ({"HOROVOD_SIZE": "1"}, False),
        ({"CXR_HVD_SUPERVISOR": "1.2"}, False),  # no rank starts ranks, whatever the launcher is called
        (MPIRUN, False),
    ],
)
def test_ranks_are_started_only_where_nothing_runs_beside(variables: Mapping[str, str], may: bool) -> None:
    assert may_start_ranks(variables) is may


def test_a_batch_jobs_nodes_are_counted(tmp_path: Path) -> None:
    (tmp_path / "nodes").write_text("a\na\n")
    assert may_start_ranks({"PBS_NODEFILE": str(tmp_path / "nodes")})
    (tmp_path / "nodes").write_text("a\nb\n")
    assert not may_start_ranks({"PBS_NODEFILE": str(tmp_path / "nodes")})


def test_ranks_that_refuse_leave_together_and_wait_for_no_one_for_ever() -> None:
    program = (
        "import os, sys, time; from cxr_hvd.launch.early import wait_for_refusals; time.sleep(float(sys.argv[1]));"
        "began = time.monotonic(); wait_for_refusals(os.environ, 20); print(time.monotonic() - began)"
    )
    job = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": f"test-{os.getpid()}"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", program, pause_s], env=environment(**job), stdout=subprocess.PIPE, text=True
        )
        for pause_s in ("0", "0.5")
    ]
    waited = [float(rank.communicate(timeout=60)[0]) for rank in ranks]
    assert all(0.03 < each < 15 for each in waited)
    wait_for_refusals({})  # no launcher, no wait
