"""Which processor a rank computes on, and how many threads it may use."""

import os
from collections.abc import Mapping

import torch

from cxr_hvd.comm.communicator import Communicator
from cxr_hvd.errors import ConfigError


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
