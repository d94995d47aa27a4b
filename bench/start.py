"""How fast `cxr-hvd` starts: a plan, the refusal of a wrong `-np`, the first step: `python -m bench.start`.

Each round takes all of them in turn, beside a bare `import torch`; with `--beside FOLDER` those of another
checkout, too, such as the version before. Seconds of the wall count on a machine that does nothing else.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.report import Figure, describe_machine, ratios, table, turns, write_report
from lab.launch import LAUNCHERS, PROJECT, environment
from lab.study_files import write_study_file

LIMIT_S = 120
COMMAND = "from cxr_hvd.cli.app import main; main()"
# A rank that ends with its first step, and then says how many seconds of a core it has taken.
RANK = """
import os, sys, time
from cxr_hvd.cli import app as cli
from cxr_hvd.training.display import TrainingDisplay
def show(self, report):
    os.write(1, b"first step: %.3f\\n" % time.process_time())
TrainingDisplay.show = show
cli.main()
"""
CONFIG = """
experiment: D
sites:
  north: {{data: {folder}/north.h5}}
  south: {{data: {folder}/south.h5}}
model: {{image_size: 64}}
sharing: {{private: ends}}
training: {{batch_size: 4, max_steps: 1, precision: fp32}}
"""
PLAN, WRONG, STEP, CORE = "plan", "wrong -np", "first step", "first step, of a core"
WANTED = {
    PLAN: ("s until `cxr-hvd plan` has ended", 2.0),
    WRONG: ("s until a wrong -np is told, 3 ranks by mpirun", 1.0),
    STEP: ("s to the first step, 2 ranks by mpirun", 4.0),
    CORE: ("s of a core that a rank takes up to its first step", 4.0),
}

Seconds = dict[str, list[float]]


def main() -> None:
    """Measure, print the table, and write it where `--out` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--beside", type=Path, help="another checkout, taken in turn with this one")
    parser.add_argument("--out", type=Path, help="a Markdown file to write the table to, between its marks")
    options = parser.parse_args()
    trees = {"": PROJECT} | ({"beside": options.beside.resolve()} if options.beside else {})
    with tempfile.TemporaryDirectory(prefix="cxr-bench-") as folder:
        seconds = measure(Path(folder), trees, options.rounds)
    command = " ".join(["python -m bench.start", *sys.argv[1:]])
    machine = describe_machine("torch", "horovod")
    report = f"Command: `{command}`. Machine: {machine}.\n\n{table(figures(seconds))}"
    print(report)
    if options.out:
        write_report(options.out, "bench/start.py", report)


def measure(folder: Path, trees: dict[str, Path], num_rounds: int) -> dict[str, Seconds]:
    """Take all starts of all checkouts in turn; return each one's seconds, round by round."""
    for seed, site in enumerate(("north", "south")):
        write_study_file(folder / f"{site}.h5", 16, seed, site=site)
    config = folder / "D.yaml"
    config.write_text(CONFIG.format(folder=folder))
    starts: dict[str, Callable[[], dict[str, float]]] = {
        "torch": lambda: {"torch": run_whole("import torch", PROJECT)}
    }
    for name, tree in trees.items():
        starts[f"{PLAN}|{name}"] = lambda tree=tree: {PLAN: run_whole(COMMAND, tree, "plan", str(config))}
        starts[f"{WRONG}|{name}"] = lambda tree=tree: {WRONG: wrong_number(tree, config)}
        starts[f"{STEP}|{name}"] = lambda tree=tree: first_step(tree, config)
    seconds: dict[str, Seconds] = {name: {} for name in ("torch", *trees)}
    for name, is_counted in turns(list(starts), num_rounds):
        for what, taken in starts[name]().items():
            if is_counted:
                seconds[name.partition("|")[2] if "|" in name else "torch"].setdefault(what, []).append(taken)
    return seconds


def figures(seconds: dict[str, Seconds]) -> list[Figure]:
    """Return what was wanted, in multiples of `import torch` and of the other checkout, where there is one."""
    torch = seconds["torch"]["torch"]
    rows = [Figure("s of a bare `import torch`", torch, None, "")]
    for what, (meaning, target) in WANTED.items():
        seconds_here = seconds[""][what]
        rows.append(Figure(meaning, seconds_here, target, "", is_at_most=True))
        rows.append(Figure(f"{what}, to a bare `import torch`", ratios(seconds_here, torch), None, ""))
        if "beside" in seconds:
            other = seconds["beside"][what]
            note = f"{sorted(other)[len(other) // 2]:.2f} s there"
            rows.append(Figure(f"{what}, to the checkout beside", ratios(seconds_here, other), None, note))
    return rows


def run_whole(program: str, tree: Path, *words: str) -> float:
    """Return how long a program takes, from its start to its end."""
    started = time.perf_counter()
    command = [sys.executable, "-c", program, *words]
    subprocess.run(command, cwd=tree, env=of_tree(tree), check=True, stdout=subprocess.DEVNULL, timeout=LIMIT_S)
    return time.perf_counter() - started


def wrong_number(tree: Path, config: Path) -> float:
    """Return how long it takes until the first rank says that there is one too many."""
    return read_until("the sites want 2 ranks", 1, tree, 3, COMMAND, config)[0]


def first_step(tree: Path, config: Path) -> dict[str, float]:
    """Return when both ranks have taken their first step, and what the first to take it has taken of a core."""
    taken_s, lines = read_until("first step: ", 2, tree, 2, RANK, config)
    return {STEP: taken_s, CORE: max(float(line.rpartition(" ")[2]) for line in lines)}


def read_until(
    text: str, count: int, tree: Path, num_ranks: int, program: str, config: Path
) -> tuple[float, list[str]]:
    """Start ranks that train; return when so many lines hold a text, and these lines; wait for the end."""
    mpirun = [*LAUNCHERS["mpirun"], "-np", str(num_ranks)]
    with tempfile.TemporaryDirectory(prefix="cxr-bench-") as run:
        words = ["train", str(config), "--run", f"{run}/run"]
        started, lines, taken_s = time.perf_counter(), [], 0.0
        with subprocess.Popen(
            [*mpirun, sys.executable, "-c", program, *words],
            cwd=tree,
            env=of_tree(tree),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            for line in process.stdout or ():
                if text in line and len(lines) < count:
                    lines.append(line.strip())
                    taken_s = time.perf_counter() - started
    if len(lines) < count:
        raise SystemExit(f"{tree}: expected {count} lines with '{text}', found {json.dumps(lines)}")
    return taken_s, lines


def of_tree(tree: Path) -> dict[str, str]:
    """Return the environment in which Python imports a checkout's packages."""
    return environment(PYTHONPATH=str(tree), OMPI_MCA_mpi_yield_when_idle="1")


if __name__ == "__main__":
    main()
