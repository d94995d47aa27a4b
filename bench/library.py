"""How fast the library averages a network, beside what a user would write by hand: `make bench`.

Two ranks with one thread each average all but `stem` and `head` of a network: by `averager.average()`, by Horovod
tensor by tensor, all begun at once or as one group, and by torch's averager of post-local SGD over Gloo. All ways
run in turn, round after round, in one job; Horovod's own ways run in a second one as well, with the fusion that
Horovod has by default, beside a flat Allreduce that both jobs have. What counts are ratios, given as the median
over rounds with the least and the greatest.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

from bench.averaging import HOROVODS_FUSION, Timings, job, medians
from bench.report import Figure, describe_machine, ratios, table, write_report

NETWORKS = ("resnet50", "densenet121")
HOROVODS = ("allreduce", "allreduce_async", "grouped_allreduce")
TORCHS = ("post-local SGD",)
FUSED = " with Horovod's default fusion"
# Room for all tensors of all ways: a user has one way, for which Horovod's default is enough.
CACHE = {"HOROVOD_CACHE_CAPACITY": "8192"}


def main() -> None:
    """Measure, print the table, and write it where `--out` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", choices=NETWORKS, nargs="+", default=list(NETWORKS))
    parser.add_argument("--out", type=Path, help="a Markdown file to write the table to, between its marks")
    options = parser.parse_args()
    figures: list[Figure] = []
    for network in options.only:
        started = time.monotonic()
        figures += [*measure_averages(network, options.rounds), *measure_steps(network, options.rounds)]
        print(f"{network}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    machine = describe_machine("torch", "torchvision", "horovod")
    command = " ".join(["python -m bench.library", *sys.argv[1:]])
    report = f"Command: `{command}`. Machine: {machine}.\n\n{table(figures)}"
    print(report)
    if options.out:
        write_report(options.out, "bench/library.py", report)


def measure_averages(network: str, num_rounds: int) -> list[Figure]:
    """One average with no training around it, to each way by hand and to the best of them."""
    timings = take(network, "average", ("flat", "ours", *HOROVODS, *TORCHS), num_rounds)
    fused = take(network, "average", ("flat", *HOROVODS), num_rounds, **HOROVODS_FUSION)
    ours, floor = timings["ours"]["step"], timings["flat"]["step"]
    by_hand = {way: ratios(ours, timings[way]["step"]) for way in (*HOROVODS, *TORCHS)}
    ours_to_flat = statistics.median(ratios(ours, floor))
    for way in HOROVODS:
        # Two jobs: what stands between them is the flat Allreduce, which both take in turn with their own.
        to_flat = ratios(fused[way]["step"], fused["flat"]["step"])
        by_hand[way + FUSED] = [ours_to_flat / ratio for ratio in to_flat]
    best = max(by_hand, key=lambda way: statistics.median(by_hand[way]))
    note = medians({**timings, **{f"{way}{FUSED}": seconds for way, seconds in fused.items()}}, 1e3, "ms")
    return [
        Figure(f"{network}: one average, to the best by hand ({best})", by_hand[best], 0.8, note, True),
        *[Figure(f"{network}: one average, to {way}", by_hand[way], None, "") for way in by_hand if way != best],
        Figure(f"{network}: one average, to one flat Allreduce of its bytes", ratios(ours, floor), None, ""),
    ]


def measure_steps(network: str, num_rounds: int) -> list[Figure]:
    """A whole step: at np 2 to the same loop with an average by hand, at np 1 to a bare loop."""
    ways = ("bare", "ours", "allreduce_async", "grouped_allreduce", *TORCHS)
    timings = take(network, "step", ways, num_rounds)
    alone = take(network, "step", ("bare", "ours"), num_rounds, num_ranks=1)
    bare, ours = timings["bare"]["step"], timings["ours"]["step"]
    by_hand = {way: ratios(ours, timings[way]["step"]) for way in ways[2:]}
    best = max(by_hand, key=lambda way: statistics.median(by_hand[way]))
    note = medians({**timings, **{f"{way} at np 1": seconds for way, seconds in alone.items()}}, 1e3, "ms a step")
    what = f"{network}, np 1: step with the averager, to a bare loop's"
    return [
        Figure(what, ratios(alone["ours"]["step"], alone["bare"]["step"]), 1.03, note, True),
        Figure(f"{network}, np 2: step, to the best by hand ({best})", by_hand[best], 1.03, "", True),
        Figure(f"{network}, np 2: step, to a bare loop's that averages nothing", ratios(ours, bare), None, ""),
    ]


def take(
    network: str, kind: str, ways: tuple[str, ...], num_rounds: int, num_ranks: int = 2, **more: str
) -> Timings:
    """Run one job on one network, and return its timings by the name of the way."""
    names = [f"{network} {way}" for way in ways]
    timings = job(kind, names, num_rounds, num_ranks=num_ranks, module="bench.by_hand", **CACHE, **more)
    return {name.removeprefix(f"{network} "): seconds for name, seconds in timings.items()}


if __name__ == "__main__":
    main()
