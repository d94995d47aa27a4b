"""How fast a training step, the loader and a whole run are, beside what a user would write instead: `make bench`.

Steps: one rank, and two ranks with a thread each, take all ways in turn, round after round, in one job; what
counts are ratios, as timings over rounds with the least and the greatest. Whole runs are real ones of `cxr-hvd
train` on phantom noise, judged by what they write down. Horovod's own optimizer runs in a job of its own, with the
fusion that it has by default, beside a way that both jobs have.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench import loader
from bench.averaging import HOROVODS_FUSION, job, medians
from bench.report import Figure, describe_machine, ratios, table, write_report
from cxr_hvd.study.layout import Split
from lab.launch import LAUNCHERS, PROJECT, environment
from lab.study_files import write_study_file

SITES = ("chexpert", "mimic")
SPLITS = (Split.TRAIN, Split.TRAIN, Split.TRAIN, Split.VALIDATE)


def main() -> None:
    """Measure, print the table, and write it where `--out` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", choices=tuple(SECTIONS), nargs="+", default=list(SECTIONS))
    parser.add_argument("--out", type=Path, help="a Markdown file to write the table to, between its marks")
    options = parser.parse_args()
    figures: list[Figure] = []
    for name in options.only:
        started = time.monotonic()
        figures += SECTIONS[name](options.rounds)
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    machine = describe_machine("torch", "torchvision", "horovod")
    command = " ".join(["python -m bench.training", *sys.argv[1:]])
    report = f"Command: `{command}`. Machine: {machine}.\n\n{table(figures)}"
    print(report)
    if options.out:
        write_report(options.out, "bench/training.py", report)


def measure_one_rank(num_rounds: int) -> list[Figure]:
    """One rank, one thread: the engine's step to a bare loop's and to a naive one's."""
    timings = job("steps", ["none", "engine C", "naive"], num_rounds, num_ranks=1)
    bare, ours, naive = (timings[name]["step"] for name in ("none", "engine C", "naive"))
    note = medians(
        {"bare": timings["none"], "engine": timings["engine C"], "naive": timings["naive"]}, 1e3, "ms a step"
    )
    return [
        Figure("np 1: the engine's step to a bare loop's", ratios(ours, bare), 1.03, note, True),
        Figure("np 1: naive float32 NCHW to the engine", ratios(naive, ours), 2.0, ""),
    ]


def measure_two_ranks(num_rounds: int) -> list[Figure]:
    """Two ranks, a thread each: a whole step with averaging, to what else averages, and to one rank's."""
    ways = ["none", "engine C", "engine D", "ddp C", "ddp D", "naive"]
    timings = job("steps", ways, num_rounds)
    others = job("steps", ["none", "optimizer"], num_rounds, **HOROVODS_FUSION)
    alone = job("steps", ["none", "engine C"], num_rounds, num_ranks=1)
    note = medians(
        {**timings, "optimizer": others["optimizer"], "engine C at np 1": alone["engine C"]}, 1e3, "ms a step"
    )
    bare = timings["none"]["step"]
    optimizer = ratios(others["optimizer"]["step"], others["none"]["step"])
    figures = []
    for letter in "CD":
        ours, ddp = timings[f"engine {letter}"]["step"], timings[f"ddp {letter}"]["step"]
        figures += [
            Figure(
                f"np 2: step of {letter} with averaging, to a bare loop without", ratios(ours, bare), None, note
            ),
            Figure(f"np 2: DistributedDataParallel over Gloo to {letter}", ratios(ddp, ours), 1.0, ""),
            Figure(
                f"np 2: Horovod's DistributedOptimizer (shares all) to {letter}",
                ratios(optimizer, ratios(ours, bare)),
                1.0,
                "each to the bare loop of its own job",
            ),
        ]
        note = ""
    weak = [statistics.median(alone["engine C"]["step"]) / each for each in timings["engine C"]["step"]]
    machine = [statistics.median(alone["none"]["step"]) / each for each in bare]
    naive = ratios(timings["naive"]["step"], timings["engine C"]["step"])
    return [
        *figures,
        Figure("np 2: naive float32 NCHW (no averaging) to C", naive, 2.0, ""),
        Figure("weak scaling from np 1 to np 2, a core each, C", weak, 0.95, "timings of two jobs"),
        Figure("the same of the bare loop, which exchanges nothing", machine, None, "what the machine allows"),
    ]


def measure_runs(num_rounds: int) -> list[Figure]:
    """Real runs of two ranks: waits for data, checkpoints, the first step, memory."""
    with tempfile.TemporaryDirectory(prefix="cxr-bench-") as name:
        folder = Path(name)
        for seed, site in enumerate(SITES):
            write_study_file(folder / f"{site}.h5", 96, seed, SPLITS, site=site)
        runs = [trained(folder, number) for number in range(max(3, num_rounds // 5))]
        peaks = {kind: [peak_memory(kind) for _ in range(3)] for kind in ("bare", "engine")}
    stalls = [stall for each in runs for stall in each["stalls_s"]]
    shares = [each["data_share"] for each in runs]
    starts = [each["start_s"] for each in runs]
    memory = ratios(peaks["engine"], peaks["bare"])
    megabytes = " and ".join(f"{statistics.median(peaks[kind]):,.0f}" for kind in ("engine", "bare")) + " MB"
    return [
        Figure("np 2: share of a run spent waiting for data", shares, 0.02, "64 px, batches of 8", True),
        Figure("np 2: seconds that a checkpoint holds up training", stalls, 0.2, "", True),
        Figure("np 2: seconds from the command to the end of the first step", starts, 10.0, "", True),
        Figure(
            "np 1: peak memory of engine and checkpoint to a bare loop's",
            memory,
            1.1,
            megabytes,
            True,
        ),
    ]


def trained(folder: Path, number: int) -> dict:  # type: ignore[type-arg]
    """Run `cxr-hvd train` on two ranks; return when its first step was over, and what the run wrote down."""
    run = folder / f"run{number}"
    settings = [
        "training.epochs=1",
        "training.steps_per_epoch=24",
        "checkpoints.every_steps=8",
        "training.batch_size=8",
    ]
    settings += ["model.image_size=64", *[f"sites.{site}.data={folder / site}.h5" for site in SITES]]
    words = [word for setting in settings for word in ("--set", setting)]
    config = str(PROJECT / "jobs" / "configs" / "D.yaml")
    command = [*LAUNCHERS["mpirun"], "-np", "2", sys.executable, "-m", "bench.timed_train"]
    command += ["train", config, "--run", str(run), *words]
    began = time.monotonic()
    first_s = 0.0
    stalls = folder / "stalls.json"
    with subprocess.Popen(
        command,
        env=environment(STALLS=str(stalls)),
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        output = ""
        for line in process.stdout:
            output += line
            if not first_s and re.search(r"step 1/24", line):
                first_s = time.monotonic() - began
    if process.returncode:
        raise SystemExit(f"the run failed: {output[-3000:]}")
    rows = [json.loads(line) for line in (run / SITES[0] / "metrics.jsonl").read_text().splitlines()][1:]
    spent = sum(row["data_s"] + row["compute_s"] + row["averaging_s"] for row in rows)
    return {
        "start_s": first_s,
        "data_share": sum(row["data_s"] for row in rows) / spent,
        "stalls_s": json.loads(stalls.read_text()),
    }


def peak_memory(kind: str) -> float:
    """Return the peak resident memory of a process that takes steps, in MB."""
    command = [sys.executable, "-m", "bench.peak", kind]
    done = subprocess.run(command, env=environment(), cwd=PROJECT, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


SECTIONS: dict[str, Callable[[int], list[Figure]]] = {
    "one": measure_one_rank,
    "two": measure_two_ranks,
    "loader": lambda num_rounds: loader.measure(max(3, num_rounds // 3)),
    "runs": measure_runs,
}


if __name__ == "__main__":
    main()
