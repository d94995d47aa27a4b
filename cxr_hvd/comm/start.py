"""How a process joins the job that a launcher started, or works alone."""

import os

from cxr_hvd.comm.communicator import Communicator
from cxr_hvd.comm.horovod import HorovodComm
from cxr_hvd.comm.local import LocalComm
from cxr_hvd.comm.watchdog import STALL_LIMIT_S
from cxr_hvd.environment import is_parallel
from cxr_hvd.launch.launchers import parse_duration

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
