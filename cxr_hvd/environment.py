"""How many ranks a launcher started, as the environment of this process says. Pure, and without torch.

One task of an interactive Slurm shell has PMI_RANK=0 and PMI_SIZE=1 or PMIX_RANK=0: it is no parallel job, and MPI
would abort where nobody waits for it.
"""

from collections.abc import Mapping, Sequence

from cxr_hvd.errors import UsageError

# Set by Open MPI; by MPICH, Intel MPI, Cray MPI and Flux.
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
SIZES = ("HOROVOD_SIZE", *MPI_SIZES)
# How many of these ranks run on this machine.
LOCAL_SIZES = {
    "HOROVOD_SIZE": "HOROVOD_LOCAL_SIZE",
    "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_LOCAL_SIZE",
    "PMI_SIZE": "MPI_LOCALNRANKS",
}


def num_ranks_of_job(environment: Mapping[str, str], sizes: Sequence[str] = SIZES) -> int | None:
    """Return how many ranks the job of this process has: 1 without a launcher; None: not known, perhaps several.

    Args:
        environment: of this process.
        sizes: the variables in which launchers of interest say how many ranks there are.

    Raises:
        UsageError: such a variable holds no number.
    """
    counts = [count_in(environment, name) for name in sizes]
    if max(counts) > 1:
        return next(count for count in counts if count > 1)
    if not environment.get("PMIX_RANK") or environment.get("OMPI_COMM_WORLD_SIZE"):
        return 1
    # PMIx says no size; Slurm says how many tasks the step has. Where nobody says it, there may be several.
    return count_in(environment, "SLURM_STEP_NUM_TASKS") or count_in(environment, "SLURM_NTASKS") or None


def is_parallel(environment: Mapping[str, str], sizes: Sequence[str] = SIZES) -> bool:
    """Return whether this process is, or may be, one of several ranks; see `num_ranks_of_job`."""
    return num_ranks_of_job(environment, sizes) != 1


def num_ranks_here(environment: Mapping[str, str]) -> int | None:
    """Return how many ranks the job has where all run on this machine, 1 without a launcher; None: not known.

    Raises:
        UsageError: a launcher's variable holds no number.
    """
    num_ranks = num_ranks_of_job(environment)
    if num_ranks == 1:
        return 1
    are_here = any(
        count_in(environment, size) == num_ranks == count_in(environment, local)
        for size, local in LOCAL_SIZES.items()
    )
    return num_ranks if are_here else None


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
