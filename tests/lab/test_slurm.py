"""Batch scripts of `cxr-hvd jobs render`, handed to a real Slurm: what becomes of them, whatever happens.

Two nodes on one machine. Every script here is rendered by the command that a user types, and submitted as it is.
"""

import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile
from lab.launch import BIN, PROJECT, Finished, need_horovod, run
from lab.packages import need_packages
from lab.slurm import NODES, PACKAGES, PROGRAMS, Slurm, private_slurm, wait_for_nodes
from lab.study_files import write_study_file

need_horovod()
pytestmark = pytest.mark.slow

CXR = str(BIN / "cxr-hvd")
SITES = ("chexpert", "mimic")
SPLITS = (Split.TRAIN, Split.TRAIN, Split.VALIDATE, Split.TEST)
NUM_STEPS = 60
STARTS_WITHIN_S = 60
ENDS_WITHIN_S = 240
# One slot a node in this Slurm, which knows two of them on one machine: binding would put both on the same core.
HERE = ("cores_per_node=1", f"activate=source {BIN}/activate", "bind=none", "walltime=00:10:00")


@dataclass(frozen=True)
class Case:
    """A Slurm, study files of two sites, and jobs that train on them."""

    slurm: Slurm
    data: Path

    def render(
        self, name: str, *settings: str, recipe: str = "train", steps: int = NUM_STEPS, machine: str = "slurm"
    ) -> Path:
        """Render a script for a run of this name, as a user would."""
        config, script = self.slurm.jobs / f"{name}.yaml", self.slurm.jobs / f"{name}.sh"
        own = [f"{site}: {{ranks: 1, data: {self.data / site}.h5}}" for site in SITES]
        config.write_text(CONFIG.format(steps=steps, sites=", ".join(own)))
        said = [*HERE, f"run=runs/{name}", *settings]
        words = [
            CXR,
            "jobs",
            "render",
            recipe,
            "--machine",
            machine,
            "--config",
            str(config),
            "--out",
            str(script),
        ]
        ok(run([*words, *(word for each in said for word in ("--set", each))]))
        return script

    def submit(self, script: Path) -> str:
        """Hand a script in by `cxr-hvd jobs submit`; return the job's id."""
        return self.slurm.call(CXR, "jobs", "submit", str(script)).split()[-1]

    def weights(self, name: str) -> dict[str, str]:
        """Return the digest of each file of weights that a run has come to."""
        return {
            f"{site}/{kind}": hashlib.sha256(
                (self.folder(name) / site / "checkpoints" / "latest" / f"{kind}.safetensors").read_bytes()
            ).hexdigest()
            for site in SITES
            for kind in ("shared", "private")
        }

    def folder(self, name: str) -> Path:
        """Return a run's folder."""
        return self.slurm.jobs / "runs" / name

    def steps(self, name: str) -> int:
        """Return the step of the newest checkpoint of a run."""
        found = (int(path.name[5:]) for path in self.folder(name).glob("*/checkpoints/step-*"))
        return max(found, default=0)

    def wait_for_checkpoint(self, job: str, name: str) -> None:
        """Wait until a run has something to lose."""
        self.slurm.wait(job, lambda: self.steps(name) > 0, STARTS_WITHIN_S)


CONFIG = """\
experiment: D
seed: 1
sites: {{{sites}}}
labels: {{uncertain: zeros, blank: zeros}}
model: {{name: tiny, image_size: 32}}
training: {{max_steps: {steps}, batch_size: 4, precision: fp32}}
checkpoints: {{every_steps: 5}}
"""


# In its first start, stands still after the first checkpoint until it is asked to stop (SIGUSR1 is pending).
WAITS = """#!/bin/sh
asked='^ShdPnd:[[:space:]]+[0-9a-f]+[2367abef][0-9a-f]{2}$'
[ -n "$SLURM_RESTART_COUNT" ] || (
    trap '' USR1 TERM  # Slurm signals all processes of a task
    until ls "$RUN"/*/checkpoints/step-* >&2; do sleep 0.2; done 2>/dev/null
    kill -STOP $$
    while [ -d /proc/$$ ] && ! grep -qE "$asked" /proc/$$/status; do sleep 0.2; done
    kill -CONT $$
) &
exec "$@"
"""


def ok(job: Finished) -> Finished:
    assert job.exit_code == 0, job.output
    return job


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    need_packages(PACKAGES, PROGRAMS)
    data = tmp_path_factory.mktemp("data")
    for seed, site in enumerate(SITES):
        write_study_file(data / f"{site}.h5", 48, seed, SPLITS, site=site)
    with private_slurm(tmp_path_factory.mktemp("slurm")) as slurm:
        for name, script in {"waits": WAITS, "ends_with_75": "#!/bin/sh\nexit 75\n"}.items():
            (slurm.jobs / name).write_text(script)
            (slurm.jobs / name).chmod(0o755)
        yield Case(slurm, data)


@pytest.fixture(scope="module")
def undisturbed(case: Case) -> dict[str, str]:
    """The weights of a run that nothing happened to."""
    job = case.submit(case.render("undisturbed"))
    assert case.slurm.finish(job, ENDS_WITHIN_S) == "COMPLETED", case.slurm.log(job)
    assert case.steps("undisturbed") == NUM_STEPS
    assert case.slurm.about(job)["Restarts"] == "0"
    return case.weights("undisturbed")


def test_a_job_whose_walltime_ends_queues_itself_again_and_ends_with_the_same_weights(
    case: Case, undisturbed: dict[str, str]
) -> None:
    # Slurm looks for jobs whose time is up twice a minute.
    script = case.render("walltime", "walltime=90", "warn=45")
    script.write_text(
        script.read_text().replace(
            "train=(cxr-hvd train", f"export RUN\ntrain=({case.slurm.jobs}/waits cxr-hvd train"
        )
    )
    job = case.submit(script)
    assert case.slurm.finish(job, ENDS_WITHIN_S) == "COMPLETED", case.slurm.log(job)
    said = case.slurm.log(job)
    assert int(case.slurm.about(job)["Restarts"]) >= 1
    assert (
        "asked to stop: the ranks write a checkpoint" in said and "ended with 75; continues in a new job" in said
    )
    assert f"trained {NUM_STEPS} steps" in said and "done" in said.splitlines()[-1]
    assert case.weights("walltime") == undisturbed


def test_a_job_that_another_displaces_goes_on_afterwards_with_the_same_weights(
    case: Case, undisturbed: dict[str, str]
) -> None:
    job = case.submit(case.render("displaced", "launcher=mpirun"))
    case.wait_for_checkpoint(job, "displaced")
    other = case.slurm.submit("--partition=high", "--nodes=2", "--exclusive", "--wrap", "sleep 3")
    assert case.slurm.finish(other, STARTS_WITHIN_S) == "COMPLETED"
    assert case.slurm.finish(job, ENDS_WITHIN_S) == "COMPLETED", case.slurm.log(job)
    assert case.slurm.about(job)["Restarts"] == "1"
    assert "stopped after step" in case.slurm.log(job)
    assert case.weights("displaced") == undisturbed


def test_a_cancelled_job_leaves_no_process_and_the_same_script_goes_on(
    case: Case, undisturbed: dict[str, str]
) -> None:
    script = case.render("cancelled")
    job = case.submit(script)
    case.wait_for_checkpoint(job, "cancelled")
    case.slurm.call("scancel", job)
    assert case.slurm.finish(job, STARTS_WITHIN_S) == "CANCELLED"
    case.slurm.wait(job, lambda: not case.slurm.processes(job), STARTS_WITHIN_S)
    assert 0 < case.steps("cancelled") < NUM_STEPS
    job = case.submit(script)
    assert case.slurm.finish(job, ENDS_WITHIN_S) == "COMPLETED", case.slurm.log(job)
    assert case.weights("cancelled") == undisturbed


@pytest.mark.night
def test_a_job_whose_node_is_lost_goes_on_when_there_is_one_again(case: Case, undisturbed: dict[str, str]) -> None:
    job = case.submit(case.render("lost"))
    case.wait_for_checkpoint(job, "lost")
    case.slurm.stop_node(NODES[1])
    case.slurm.wait(job, lambda: case.slurm.state(job) != "RUNNING", STARTS_WITHIN_S)
    case.slurm.start_node(NODES[1])
    assert case.slurm.finish(job, ENDS_WITHIN_S) == "COMPLETED", case.slurm.log(job)
    assert case.slurm.about(job)["Restarts"] == "1"
    assert case.weights("lost") == undisturbed
    wait_for_nodes(case.slurm)


def test_a_job_that_gets_no_further_does_not_queue_itself_for_ever(case: Case) -> None:
    script = case.render("stuck", steps=10_000)
    script.write_text(script.read_text().replace("cxr-hvd train", f"{case.slurm.jobs}/ends_with_75 cxr-hvd train"))
    job = case.submit(script)
    assert case.slurm.finish(job, STARTS_WITHIN_S) == "FAILED"
    assert "without progress" in case.slurm.log(job)


def test_sites_are_found_by_host_and_each_node_gets_its_own_file_alone(case: Case, tmp_path: Path) -> None:
    hosts = f"{SITES[0]}={NODES[1]} {SITES[1]}={NODES[0]}"  # against the order of ranks
    stage = f"{tmp_path}/$SLURMD_NODENAME"
    script = case.render("hosts", "binding=hosts", f"hosts={hosts}", f"stage={stage}", steps=4)
    job = case.submit(script)
    assert case.slurm.finish(job, ENDS_WITHIN_S) == "COMPLETED", case.slurm.log(job)
    for site, node in zip(SITES, reversed(NODES), strict=True):
        [copy] = (tmp_path / node).glob("*.h5")
        assert copy.read_bytes() == (case.data / f"{site}.h5").read_bytes()
        told = json.loads((case.folder("hosts") / site / "environment.json").read_text())
        assert told


def test_sites_are_groups_of_a_heterogeneous_job(case: Case) -> None:
    job = case.submit(case.render("groups", "binding=groups", steps=4))

    def is_over() -> bool:
        return case.slurm.state(job) not in ("PENDING", "RUNNING", "COMPLETING") or case.steps("groups") == 4

    case.slurm.wait(job, is_over, ENDS_WITHIN_S)
    # srun of Slurm 22.05 may not notice that all tasks of a heterogeneous step have ended (docs/operations.md).
    deadline = time.monotonic() + 10
    while case.slurm.state(job) == "RUNNING" and time.monotonic() < deadline:
        time.sleep(0.5)
    if case.slurm.state(job) == "RUNNING":
        for pid in case.slurm.processes(job):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "srun":
                os.kill(pid, signal.SIGKILL)
        case.slurm.call("scancel", job)
    assert case.steps("groups") == 4 and "trained 4 steps" in case.slurm.log(job)
    wait_for_nodes(case.slurm)


def test_sites_are_applications_of_one_launch(case: Case) -> None:
    job = case.submit(case.render("applications", "binding=applications", "launcher=mpirun", steps=4))
    assert case.slurm.finish(job, ENDS_WITHIN_S) == "COMPLETED", case.slurm.log(job)
    assert "trained 4 steps" in case.slurm.log(job)


def test_an_institution_is_preprocessed_on_many_ranks(case: Case, tmp_path: Path) -> None:
    phantom = tmp_path / "phantom"
    ok(run([str(BIN / "cxr-preprocess"), "phantom", str(phantom), "--studies", "24", "--seed", "1"]))
    out = tmp_path / "chexpert.h5"
    settings = ("nodes=2", "ranks_per_node=1", f"root={phantom}", f"out={out}", f"options=--key {tmp_path}/key")
    job = case.submit(case.render("preprocess", *settings, recipe="preprocess"))
    assert case.slurm.finish(job, ENDS_WITHIN_S) == "COMPLETED", case.slurm.log(job)
    with StudyFile(out) as file:
        assert len(file) == 24


def test_an_experiment_is_trained_scored_and_done(case: Case) -> None:
    settings = ("names=D", "seeds=1", "launcher=mpirun")
    job = case.submit(case.render("experiment", *settings, recipe="experiment", steps=4))
    assert case.slurm.finish(job, ENDS_WITHIN_S) == "COMPLETED", case.slurm.log(job)
    assert list(case.folder("experiment").glob("D/seed-*/scores.safetensors"))


def test_a_script_for_pbs_is_read_by_slurms_qsub(case: Case) -> None:
    script = case.render("pbs", machine="pbs", steps=4)
    told = case.slurm.call("qsub", "-l", "nodes=2:ppn=1", str(script))
    job = told.split()[-1].partition(".")[0]
    assert case.slurm.finish(job, ENDS_WITHIN_S) == "COMPLETED", (case.slurm.jobs / "cxr-train.log").read_text()
    assert "trained 4 steps" in (case.slurm.jobs / "cxr-train.log").read_text()
    about = case.slurm.about(job)
    assert about["JobName"] == "cxr-train" and about["TimeLimit"] == "00:10:00"


def test_the_project_is_where_the_scripts_say() -> None:
    assert (PROJECT / "jobs" / "slurm" / "train.sh").is_file()
