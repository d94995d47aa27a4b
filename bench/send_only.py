"""Measure what Open MPI's send-only flag does to the allreduce of a flat buffer, over lines of several speeds.

`python -m bench.send_only [--rounds 3] [--megabytes 28.4] [DELAYxRATE ...]`, for example `20x100 1x1000 cable`:
milliseconds one way, megabits a second. Launches with and without the flag take turns. Prints one JSON object for
each line: medians in seconds, with the least and the greatest. Needs what `lab.two_sites` needs.
"""

import argparse
import json
import re
import statistics
import sys

from cxr_hvd.launch.slow_line import SEND_ONLY
from lab.two_sites import SlowLink, TwoSites, two_sites

NUM_EXCHANGES = 4
PROGRAM = """
import os, sys, time, torch, horovod.torch as hvd
torch.set_num_threads(1)
hvd.init()
values = torch.rand(int(float(sys.argv[1]) * 1e6 / 4))
for number in range(int(sys.argv[2]) + 1):
    hvd.allreduce(torch.zeros(1), name="meet")
    started = time.monotonic()
    hvd.allreduce_(values, name="flat", op=hvd.Average)
    if number and hvd.rank() == 0:
        os.write(1, b"seconds=%.4f\\n" % (time.monotonic() - started))
os.write(1, b"rank=%d flags=%s\\n" % (hvd.rank(), os.environ.get("OMPI_MCA_btl_tcp_flags", "none").encode()))
hvd.shutdown()
"""


def exchange_times(pair: TwoSites, megabytes: float, is_send_only: bool) -> list[float]:
    """Return the seconds of each counted exchange of one launch."""
    variables = dict([SEND_ONLY]) if is_send_only else {}
    command = [sys.executable, "-c", PROGRAM, str(megabytes), str(NUM_EXCHANGES)]
    job = pair.mpirun(1, command, 300, **variables)
    flags = re.findall(r"rank=\d flags=(\w+)", job.output)
    assert flags == ([SEND_ONLY[1]] if is_send_only else ["none"]) * 2, job.output
    return [float(seconds) for seconds in re.findall(r"seconds=([\d.]+)", job.output)]


def measure(line: str, rounds: int, megabytes: float) -> dict[str, object]:
    """Return the times over one line, by turns without and with the flag."""
    link = None
    if line != "cable":
        delay, rate = line.split("x")
        link = SlowLink(float(delay), float(rate), mtu=1500 if float(rate) <= 200 else 9000)
    times: dict[bool, list[float]] = {False: [], True: []}
    with two_sites(link) as pair:
        for _ in range(rounds):
            for is_send_only, seconds in times.items():
                seconds += exchange_times(pair, megabytes, is_send_only)
    medians = {is_send_only: statistics.median(seconds) for is_send_only, seconds in times.items()}
    return {
        "line": line,
        "as it comes": [medians[False], min(times[False]), max(times[False])],
        "send only": [medians[True], min(times[True]), max(times[True])],
        "send only to as it comes": medians[True] / medians[False],
    }


def main() -> None:
    """Measure all lines that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lines", nargs="*", default=["20x100"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=float, default=28.4)
    options = parser.parse_args()
    for line in options.lines:
        print(json.dumps(measure(line, options.rounds, options.megabytes)), flush=True)


if __name__ == "__main__":
    main()
