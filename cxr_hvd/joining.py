"""How a rank joins the job that a launcher started, and how it leaves: in order, or at once and for good."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cxr_hvd.errors import CxrHvdError, Stopped, leave, print_error, print_stopped

if TYPE_CHECKING:
    from cxr_hvd.collective.comm import Communicator


@contextmanager
def joined_job(
    program: str, stall_limit_s: float | None = None, has_timeline: bool = False
) -> Iterator["Communicator"]:
    """Join the job that a launcher started, and leave it in order or, on an error, at once and for good.

    Collective: every rank. An error that all ranks know of is printed by all before the first one leaves, since
    a launcher ends the others as soon as one is gone.
    """
    import torch

    from cxr_hvd.collective.comm import STALL_LIMIT_S, start_comm

    comm = start_comm(stall_limit_s or STALL_LIMIT_S, has_timeline)
    try:
        yield comm
        comm.close()
    except Stopped as stopped:
        if comm.rank == 0:
            print_stopped(program, stopped)
        comm.close()
        leave(stopped.exit_code)
    except CxrHvdError as error:
        print_error(program, error)
        if error.is_agreed:
            comm.begin_gather(torch.zeros(1), "leaving")()
        leave(error.exit_code)
    except OSError as error:
        print_error(
            program,
            CxrHvdError(f"{error.filename or 'a file'}: {error.strerror}; mend it, then use --resume auto"),
        )
        leave(1)
    except Exception:
        traceback.print_exc()
        leave(1)
