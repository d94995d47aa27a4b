"""Whether a launcher started several ranks, as the environment of this process says. Pure, and without torch.

One task of an interactive Slurm shell has PMI_RANK=0 and PMI_SIZE=1 or PMIX_RANK=0: it is no parallel job, and MPI
would abort where nobody waits for it.
"""

from collections.abc import Mapping

from cxr_hvd.errors import UsageError

# Set by Open MPI; by MPICH, Intel MPI, Cray MPI and Flux.
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
SIZES = ("HOROVOD_SIZE", *MPI_SIZES)


def is_parallel(environment: Mapping[str, str], sizes: tuple[str, ...] = SIZES) -> bool:
    """Return whether this process is one of several ranks.

    Args:
        environment: of this process.
        sizes: the variables in which launchers of interest say how many ranks there are.

    Raises:
        UsageError: such a variable holds no number.
    """
    if any(count_in(environment, name) > 1 for name in sizes):
        return True
    if not environment.get("PMIX_RANK") or environment.get("OMPI_COMM_WORLD_SIZE"):
        return False
    # PMIx says no size; Slurm says how many tasks the step has. Where nobody says it, there may be several.
    tasks = count_in(environment, "SLURM_STEP_NUM_TASKS") or count_in(environment, "SLURM_NTASKS")
    return tasks != 1


def count_in(environment: Mapping[str, str], name: str) -> int:
    """Return the number that a variable holds; 0 where it is not set, or empty.

    Raises:
        UsageError: it holds something else.
    """
    text = environment.get(name, "").strip()
    if text and not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UsageError(
            f"{name}: expected a number of ranks in the environment, found '{text[:20]}'; unset {name}"
        )
    return int(text or 0)
