"""Two ranks, one at each end of a line: time what a training step would send, with random bytes.

Started by a launcher as `python -m cxr_hvd.doctor.line.ranks NUM_BYTES`. Rank 0 prints a JSON object.
"""

import json
import statistics
import sys
import time

import torch

from cxr_hvd.comm.communicator import Communicator, allgather
from cxr_hvd.comm.start import joined_job

NUM_STATUSES = 7
STALL_LIMIT_S = 30.0


def time_gather(comm: Communicator, num_bytes: int, name: str) -> float:
    """Return how many seconds it takes until all ranks have these bytes of each. Collective: all ranks."""
    payload = torch.randint(256, (num_bytes,), dtype=torch.uint8)
    allgather(comm, torch.zeros(1), "probe.start")
    started = time.monotonic()
    allgather(comm, payload, f"probe.{name}")
    return time.monotonic() - started


def main() -> None:
    """Time single numbers and one exchange. Collective: all ranks."""
    num_bytes = int(sys.argv[1])
    torch.set_num_threads(1)
    with joined_job("cxr-hvd", STALL_LIMIT_S) as comm:
        time_gather(comm, max(1, num_bytes // 4), "first")
        status_s = statistics.median(time_gather(comm, 8, "status") for _ in range(NUM_STATUSES))
        exchange_s = time_gather(comm, num_bytes, "exchange")
        if comm.rank == 0:
            print(json.dumps({"num_ranks": comm.num_ranks, "status_s": status_s, "exchange_s": exchange_s}))


if __name__ == "__main__":
    main()
