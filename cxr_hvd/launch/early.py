"""What a process knows of its job before it joins it: how many ranks there are, and whether it is alone.

Joining takes seconds (torch, Horovod, MPI). What is wrong on every rank alike, such as a wrong `-np`, can be told
before, where all ranks run on one machine, and so read the same files: then no rank waits for another's verdict.
"""

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from cxr_hvd.environment import num_ranks_here
from cxr_hvd.launch.processes import processes_named

# What tells the ranks of one job from those of another on this machine.
JOB_VARIABLES = ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "HOROVOD_GLOO_RENDEZVOUS_PORT")
# Set for every process that a launcher or `supervise` has started: one that is none of its ranks starts no others.
STARTED_BY = ("OMPI_COMM_WORLD_SIZE", "HOROVOD_SIZE", "CXR_HVD_SUPERVISOR")
# More than 1 of these: other tasks of the batch job may run the same command beside this one.
TASKS_AND_NODES = (
    *("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_JOB_NUM_NODES", "PMI_SIZE"),
    *("FLUX_JOB_SIZE", "FLUX_JOB_NNODES", "PBS_NUM_NODES", "PALS_SIZE"),
)
NO_HOROVOD = (
    "expected Horovod, which ranks need to reach each other, found none that works: ask cxr-hvd doctor, or train "
    "one site alone with --site NAME"
)
REFUSED = "cxr-refused"
REFUSAL_LIMIT_S = 3.0
POLL_S = 0.02


def may_start_ranks(environment: Mapping[str, str]) -> bool:
    """Return whether this process may start ranks on this machine: nothing like it runs beside it in its job."""
    if any(name in environment for name in STARTED_BY) or num_ranks_here(environment) != 1:
        return False
    hosts = environment.get("LSB_HOSTS", "").split()
    with suppress(OSError, KeyError):
        hosts += Path(environment["PBS_NODEFILE"]).read_text(errors="replace").split()
    return len(set(hosts)) < 2 and all(environment.get(name, "1") in ("1", "") for name in TASKS_AND_NODES)


def wait_for_refusals(environment: Mapping[str, str], limit_s: float = REFUSAL_LIMIT_S) -> None:
    """Wait until the other ranks of this machine have refused as well.

    A launcher ends all ranks as soon as one is gone, and each is to say why before: they see it by their names.

    Blocking: at most `limit_s` seconds.
    """
    num_ranks = num_ranks_here(environment) or 1
    mark = next((f"{name}={environment[name]}" for name in JOB_VARIABLES if name in environment), None)
    if num_ranks == 1 or mark is None:
        return
    with suppress(OSError):
        Path("/proc/self/comm").write_text(REFUSED)
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline and len(processes_named(REFUSED, mark)) < num_ranks:
        time.sleep(POLL_S)
    time.sleep(2 * POLL_S)  # so that the others see all as well


def environment_of_ranks(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment for ranks of this machine, without what an interactive task of Slurm left in it.

    Two ranks may share one core, and Open MPI's own last words are left to this program: it would call a run that
    stopped on request "aborted".
    """
    kept = {name: value for name, value in environment.items() if not name.startswith(("PMI_", "PMIX_"))}
    defaults = {
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "OMPI_MCA_orte_execute_quiet": "1",
    }
    return defaults | kept
