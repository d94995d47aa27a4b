"""What exchanges cost over a slow line, and on one machine, each beside its peers: `make bench`.

Two sites, 20 ms one way and 100 Mbit/s each way, a rank and a core each; DenseNet121, steps of about 0.25 s. Ways
take turns in one job, round after round. The link is a process on the same two cores as the ranks: packets of
9,000 bytes keep small what it takes of them. What needs other settings at the launch has a job of its own: Open
MPI as it comes, Horovod's fusion, Gloo. All jobs over the line have the raw line in common: C's bytes both ways
at once, through one TCP connection. What an exchange takes is a step with it, less a step of the engine that knows
of no other rank. Needs root for the line; without, its rows are left out.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from bench.averaging import HOROVODS_FUSION, Timings, job
from bench.report import Figure, describe_machine, ratios, table, write_report
from lab.two_sites import SlowLink, TwoSites, two_sites, why_not

LINK = SlowLink(delay_ms=20, rate_mbit=100, mtu=9000)
WHERE = f"{LINK.delay_ms:g} ms, {LINK.rate_mbit:g} Mbit/s"
MODULE = "bench.line_steps"
SEND_ONLY = {"OMPI_MCA_btl_tcp_flags": "1"}
GLOO = {"HOROVOD_CONTROLLER": "gloo", "HOROVOD_CPU_OPERATIONS": "gloo"}

RAW, ALONE, NOTHING = "swap C", "alone", "C float32 never"
EVERY_STEP = tuple(f"C {wire} 1" for wire in ("float32", "bfloat16", "int8"))
OVERLAPPED, BLOCKING = "D float32 8 overlap", "D float32 8"
WORDS = {
    RAW: "raw TCP, C's bytes both ways at once",
    ALONE: "no communication at all",
    NOTHING: "nothing exchanged but the status",
    "C float32 gradients": "C, gradients",
    "ddp C": "DistributedDataParallel over Gloo, C",
    "ddp D": "DistributedDataParallel over Gloo, D",
    "optimizer": "Horovod's DistributedOptimizer, C",
    OVERLAPPED: "D overlapped, every 8",
    BLOCKING: "D, every 8",
    "D float32 1": "D every step, float32",
} | {name: f"C every step, {name.split()[1]}" for name in EVERY_STEP}


def main() -> None:
    """Measure, print the table, and write it where `--out` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds over the line")
    parser.add_argument("--machine-rounds", type=int, default=4, help="rounds on the machine itself")
    parser.add_argument("--only", choices=("line", "machine"), nargs="+", default=["line", "machine"])
    parser.add_argument("--out", type=Path, help="a Markdown file to write the table to, between its marks")
    options = parser.parse_args()
    if "line" in options.only and (reason := why_not(LINK)):
        print(f"line: left out, {reason}", file=sys.stderr)
        options.only.remove("line")
    machine = describe_machine("torch", "horovod", "mpi4py")
    command = " ".join(["python -m bench.slow_line", *sys.argv[1:]])
    figures: list[Figure] = []
    report = ""
    for name in options.only:
        figures += measure_line(options.rounds) if name == "line" else measure_machine(options.machine_rounds)
        report = f"Command: `{command}`. Machine: {machine}.\n\n{table(figures)}"
        if options.out:
            write_report(options.out, "bench/slow_line.py", report)
    print(report)


def measure_line(num_rounds: int) -> list[Figure]:
    """Take steps over the slow line, under each setting of the launch."""
    ways = [RAW, ALONE, NOTHING, *EVERY_STEP, "C float32 gradients", BLOCKING, OVERLAPPED, "ddp C"]
    with two_sites(LINK) as pair:
        send_only = over_line("send only", pair, ways, num_rounds, **SEND_ONLY)
        as_it_comes = over_line("as it comes", pair, [RAW, ALONE, EVERY_STEP[0], OVERLAPPED], num_rounds)
        fusion = over_line("fusion", pair, [RAW, "optimizer"], num_rounds, **SEND_ONLY, **HOROVODS_FUSION)
        gloo_ways = [RAW, ALONE, NOTHING, EVERY_STEP[0], EVERY_STEP[2], OVERLAPPED]
        gloo = over_line("Gloo", pair, gloo_ways, num_rounds, **GLOO)
    exchange = {name: added(send_only, name) for name in EVERY_STEP}
    float32 = exchange[EVERY_STEP[0]]
    step = {name: timing["step"] for name, timing in send_only.items()}
    figures = [
        bar("C every step: its exchange, to raw TCP for its bytes", float32, step[RAW], 1.2, seconds(send_only)),
        bar("C every step, to DistributedDataParallel over Gloo", step[EVERY_STEP[0]], step["ddp C"], 0.9),
        bar("D overlapped, every 8, to no communication", step[OVERLAPPED], step[ALONE], 1.08),
        bar("int8: its exchange, to float32's", exchange[EVERY_STEP[2]], float32, 0.4),
        bar("nothing exchanged but the status, to no communication", step[NOTHING], step[ALONE], 1.02),
        bar("bfloat16: its exchange, to float32's", exchange[EVERY_STEP[1]], float32),
        bar("D waiting, every 8, to no communication", step[BLOCKING], step[ALONE]),
        bar("C every step, whole, to raw TCP", step[EVERY_STEP[0]], step[RAW]),
        bar("C every step, gradients, to weights", step["C float32 gradients"], step[EVERY_STEP[0]]),
        bar("DistributedDataParallel over Gloo, C, to raw TCP", step["ddp C"], step[RAW]),
    ]
    figures += to_raw("Horovod's DistributedOptimizer with its fusion", fusion, "optimizer")
    for words, timings in (("Open MPI as it comes", as_it_comes), ("Gloo", gloo)):
        to_floor = bar(
            f"{words}: C every step, its exchange, to raw TCP for its bytes",
            added(timings, EVERY_STEP[0]),
            timings[RAW]["step"],
            note=seconds(timings),
        )
        overlapped = timings[OVERLAPPED]["step"], timings[ALONE]["step"]
        figures += [to_floor, bar(f"{words}: D overlapped, every 8, to no communication", *overlapped)]
    nothing = gloo[NOTHING]["step"], gloo[ALONE]["step"]
    figures.append(bar("Gloo: nothing exchanged but the status, to no communication", *nothing))
    int8 = added(gloo, EVERY_STEP[2]), added(gloo, EVERY_STEP[0])
    figures.append(bar("Gloo: int8: its exchange, to float32's", *int8))
    return [Figure(f"{WHERE}: {f.what}", f.ratios, f.target, f.note, f.is_at_most) for f in figures]


def measure_machine(num_rounds: int) -> list[Figure]:
    """Take steps on the machine itself; state beside them what two ranks that fill two cores cannot go below."""
    ours = [NOTHING, EVERY_STEP[0], "D float32 1", OVERLAPPED]
    ways = ["bare", "bare barrier", "bare flat C", ALONE, *ours, "ddp C", "ddp D"]
    timings = job("machine", ways, num_rounds, module=MODULE)
    step = {name: timing["step"] for name, timing in timings.items()}
    figures = [
        bar("C every step, to no exchange", step[EVERY_STEP[0]], step[NOTHING], 1.02, seconds(timings)),
        bar("D every step, to no exchange", step["D float32 1"], step[NOTHING], 1.01),
        bar("C every step, to no communication", step[EVERY_STEP[0]], step[ALONE]),
        bar("D every step, to no communication", step["D float32 1"], step[ALONE]),
        bar("D overlapped, every 8, to no communication", step[OVERLAPPED], step[ALONE]),
        bar("nothing exchanged but the status, to no communication", step[NOTHING], step[ALONE]),
        bar(
            "floor: a bare loop that waits for the other rank in each step, to one that does not",
            step["bare barrier"],
            step["bare"],
        ),
        bar(
            "floor: a bare loop with one flat Allreduce of C's numbers a step, to one without",
            step["bare flat C"],
            step["bare"],
        ),
        bar("C every step, to that floor", step[EVERY_STEP[0]], step["bare flat C"]),
        bar("DistributedDataParallel over Gloo, C, to C", step["ddp C"], step[EVERY_STEP[0]]),
        bar("DistributedDataParallel over Gloo, D, to D", step["ddp D"], step["D float32 1"]),
    ]
    return [Figure(f"one machine: {f.what}", f.ratios, f.target, f.note, f.is_at_most) for f in figures]


def over_line(title: str, pair: TwoSites, ways: Iterable[str], num_rounds: int, **settings: str) -> Timings:
    """Run one job over the line; say how long it took."""
    started = time.monotonic()
    timings = job("line", list(ways), num_rounds, pair, module=MODULE, **settings)
    print(f"line, {title}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    return timings


def added(timings: Timings, name: str) -> list[float]:
    """Return what an exchange adds to a step, in seconds, round by round."""
    pairs = zip(timings[name]["step"], timings[ALONE]["step"], strict=True)
    return [step - alone for step, alone in pairs]


def bar(what: str, of: list[float], to: list[float], target: float | None = None, note: str = "") -> Figure:
    """Return a figure of ratios, round by round, that is to be at most the target, where there is one."""
    return Figure(what, ratios(of, to), target, note, target is not None)


def to_raw(what: str, timings: Timings, name: str) -> list[Figure]:
    """Return the figure of a whole step to the raw line."""
    return [bar(f"{what}, to raw TCP", timings[name]["step"], timings[RAW]["step"], note=seconds(timings))]


def seconds(timings: Timings) -> str:
    """Say the median seconds a step of each way."""
    medians = [f"{WORDS.get(name, name)} {statistics.median(t['step']):.3f}" for name, t in timings.items()]
    return f"{'; '.join(medians)} s a step"


if __name__ == "__main__":
    main()
