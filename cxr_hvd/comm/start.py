"""How a process joins the job that a launcher started, and how it leaves: in order, or at once and for good."""

import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from cxr_hvd.comm.communicator import Communicator
from cxr_hvd.comm.device import choose_device, memory_error, set_threads
from cxr_hvd.comm.horovod import HorovodComm
from cxr_hvd.comm.job import Job
from cxr_hvd.comm.local import LocalComm
from cxr_hvd.comm.progress import Progress, agree_on_progress
from cxr_hvd.comm.sites import bind
from cxr_hvd.comm.watchdog import STALL_LIMIT_S
from cxr_hvd.environment import is_parallel
from cxr_hvd.errors import CxrHvdError, Stopped, UsageError, leave, print_error, print_stopped
from cxr_hvd.launch.launchers import parse_duration, remark_on_stop

STALL_LIMIT = "CXR_STALL_LIMIT_S"
"""In the environment: the longest that a rank may hang or wait, such as 600 or 10m."""


def start_comm(stall_limit_s: float = STALL_LIMIT_S, has_timeline: bool = False) -> Communicator:
    """Join the job that a launcher (horovodrun, mpirun, srun) started, or work alone where there is none.

    Args:
        stall_limit_s: the longest that a rank may hang or wait, in seconds; CXR_STALL_LIMIT_S goes first.
        has_timeline: whether `start_timeline` will be called.

    Raises:
        UsageError: the environment says something that is no time, or no number of ranks.
    """
    if text := os.environ.get(STALL_LIMIT):
        stall_limit_s = parse_duration(text, STALL_LIMIT)
    return HorovodComm(stall_limit_s, has_timeline) if is_parallel(os.environ) else LocalComm(stall_limit_s)


@contextmanager
def join(
    sites: Sequence[str] | Mapping[str, int], *, device: str = "auto", stall_limit_s: float = STALL_LIMIT_S
) -> Iterator[Job]:
    """Join the job that horovodrun, mpirun or srun started, with a training loop of one's own.

    Each rank belongs to one site: in the order of `sites`, or as CXR_SITE in its environment says. Torch's threads
    are shared out among the ranks of a machine. Where the body fails on one rank, its line or traceback is
    printed and the launcher ends all ranks. In one process without a launcher it is a job of one rank, and errors
    are raised as they are.

    Collective: every rank, with the same sites; each leaves the body after the same steps.

    Args:
        sites: names, one rank each, or the number of ranks of each.
        device: where `Job.device` is: `cpu`, `cuda`, or `auto`, a GPU where there is one, in turn by the rank's
            place on its machine.
        stall_limit_s: the longest that a rank may wait for the others, in seconds.

    Raises:
        CxrHvdError: the number of ranks is not that of the sites, or there is no Horovod.
    """
    names = list(sites)
    if isinstance(sites, str) or not names or len(set(names)) < len(names) or not all(names):
        raise UsageError(f"join: expected a list of different names of sites, found {sites!r}")
    ranks_per_site = dict(sites) if isinstance(sites, Mapping) else dict.fromkeys(names, 1)
    if not is_parallel(os.environ):
        yield _bound(LocalComm(stall_limit_s), ranks_per_site, device)
        return
    with joined_job(Path(sys.argv[0]).name or "cxr_hvd", stall_limit_s) as comm:
        job = _bound(comm, ranks_per_site, device)
        try:
            yield job
        except CxrHvdError:
            raise
        except Exception:  # of the user's own code: where it stands helps more than one line
            traceback.print_exc()
            leave(1)
        agree_on_progress(job, 0, Progress.LEAVES)


def _bound(comm: Communicator, ranks_per_site: Mapping[str, int], device: str) -> Job:
    topology = bind(comm, ranks_per_site)
    comm.watchdog.call_rank(topology.name_of(topology.rank))
    set_threads(comm)
    job = Job(comm, topology, choose_device(device, comm))
    comm.use_device(job.device)
    return job


@contextmanager
def joined_job(
    program: str, stall_limit_s: float | None = None, has_timeline: bool = False
) -> Iterator[Communicator]:
    """Join the job that a launcher started, and leave it in order or, on an error, at once and for good.

    Collective: every rank. An error that all ranks know of is printed by all before the first one leaves, since
    a launcher ends the others as soon as one is gone.

    Args:
        program: who speaks in messages.
    """
    comm = start_comm(stall_limit_s or STALL_LIMIT_S, has_timeline)
    try:
        yield comm
        comm.close()
    except Stopped as stopped:
        if comm.rank == 0:
            print_stopped(program, stopped, remark_on_stop(os.environ))
        comm.close()
        leave(stopped.exit_code)
    except CxrHvdError as error:
        print_error(program, error)
        if error.is_agreed:
            comm.begin_allgather(torch.zeros(1), "leaving")()
        leave(error.exit_code)
    except OSError as error:
        print_error(
            program,
            CxrHvdError(f"{error.filename or 'a file'}: {error.strerror}; mend it, then use --resume auto"),
        )
        leave(1)
    except Exception as defect:
        if full := memory_error(defect, comm.watchdog.place()):
            print_error(program, full)
        else:
            traceback.print_exc()
        leave(1)
