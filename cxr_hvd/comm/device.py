"""Which processor a rank computes on, how many threads it may use, and what to do where a GPU's memory is full."""

import os
import re
from collections.abc import Mapping

import torch

from cxr_hvd.comm.communicator import Communicator
from cxr_hvd.errors import ConfigError, TrainingError

NO_MEMORY = "CUDA error: out of memory"
"""What torch says where others have left no room for CUDA itself."""
FULL = re.compile(r"Tried to allocate (\S+ \S+)\. .*?total capacity of (\S+ \S+) of which (\S+ \S+) is free")


def choose_device(wanted: str, comm: Communicator) -> torch.device:
    """Return the GPU of this rank, in turn by its place on the machine, or the CPU.

    Args:
        wanted: `cpu`, `cuda`, or `auto`: a GPU where there is one.

    Raises:
        ConfigError: a GPU is wanted and there is none.
    """
    num_gpus = torch.cuda.device_count() if wanted != "cpu" else 0
    if wanted == "cuda" and not num_gpus:
        raise ConfigError(
            "training.device: expected a GPU (cuda), found none; use auto or cpu, or ask cxr-hvd doctor"
        )
    if not num_gpus:
        return torch.device("cpu")
    device = torch.device("cuda", comm.local_rank % num_gpus)
    torch.cuda.set_device(device)
    return device


def binding_remark(comm: Communicator, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return what to say where mpirun has bound this rank to one of many cores, or None.

    That is what Open MPI 4 does with up to two ranks, unless it is told otherwise.
    """
    bound_cores, cores = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    if "OMPI_COMM_WORLD_SIZE" not in environment or bound_cores > 1 or cores <= comm.ranks_per_node:
        return None
    return (
        f"mpirun has bound each rank to 1 of {cores} cores: start it with --bind-to none, or give each rank its "
        f"cores by --map-by ppr:{comm.ranks_per_node}:node:pe={cores // comm.ranks_per_node}"
    )


def set_threads(comm: Communicator) -> None:
    """Share this machine's cores out among its ranks, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        bound_cores, cores = len(os.sched_getaffinity(0)), os.cpu_count() or 1
        # A launcher that binds ranks has shared the cores out already.
        torch.set_num_threads(max(1, bound_cores if bound_cores < cores else cores // comm.ranks_per_node))


def memory_error(error: BaseException, where: str) -> TrainingError | None:
    """Return in one line what to do where an error says that a GPU's memory is full; None for any other error.

    Args:
        error: what torch raised.
        where: which rank it was, and in which step.
    """
    text = " ".join(str(error).split())
    if not isinstance(error, torch.OutOfMemoryError) and NO_MEMORY not in text:
        return None
    amounts = FULL.search(text)
    lack = (
        f"expected {amounts[1]} more, found {amounts[3]} free of {amounts[2]}"
        if amounts
        else "expected more, found none free (nvidia-smi lists who else uses it)"
    )
    return TrainingError(
        f"{where}: the GPU's memory is full: {lack}; lower training.batch_size, or raise training.accumulate (the "
        "same gradient from smaller parts), or set training.precision: bf16"
    )
