"""Whether all ways to share learn alike: the same seeds, 200 steps on two real sites, each way against every step.

Experiment C (all is shared), real launches of two ranks by `cxr-hvd train`. The reference averages weights in
every step on the float32 wire; every other way runs with the same five seeds. The law, stated before any run: **a
way's macro AUROC on TEST, mean of both sites, is off the reference's by less than two standard deviations that the
reference has from seed to seed.** Two one-sided t-tests on the differences paired by seed, 5% each, decide (TOST:
the 90% interval of the mean difference lies within the margin). Two seeds of the reference itself differ by more
than the margin in 16 of 100 cases; with five seeds a margin of one standard deviation could not be shown even for
the reference against itself.

A small ResNet at 64 pixels (`bench.small_resnet`) learns something in these steps, where the network `tiny` does
not, and takes a tenth of DenseNet121's time: 40 trainings fit 45 minutes of two cores. It computes in float32, so
that nothing but the way to share rounds. Each run is a line of `modes.jsonl`; stopped, the same command goes on
where it stood; `--table` prints what is there. From the repository's folder:

    python -m bench.modes --sites nih.h5 indiana.h5 --out runs/modes
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from bench.adults import build_judge, mean_of_sites, open_sites
from bench.report import describe_machine, write_report
from bench.weights import train
from cxr_hvd.config.sections import Model
from cxr_hvd.models.build import build_model
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.training.checkpoint.snapshot import load_judged_weights
from lab.launch import LAUNCHERS

REFERENCE = "every 1"
MODES: dict[str, dict[str, object]] = {
    REFERENCE: {"every": 1},
    "every 10": {"every": 10},
    "bfloat16": {"every": 1, "wire": "bfloat16"},
    "float16": {"every": 1, "wire": "float16"},
    "int8": {"every": 1, "wire": "int8"},
    "gradients": {"exchange": "gradients"},
    "overlap, every 8": {"every": 8, "overlap": True},
    "overlap, every 8, bfloat16": {"every": 8, "overlap": True, "wire": "bfloat16"},
}
MARGIN_IN_SDS = 2.0
LEVEL = 0.05
NUM_STEPS, BATCH_SIZE, LEARNING_RATE = 200, 16, 2e-3
NETWORK = Model(name="bench.small_resnet:small_resnet", image_size=64)

Row = dict[str, Any]


def config_of(mode: str, files: Mapping[str, StudyFile], seed: int) -> dict[str, object]:
    """Return the config of one run."""
    return {
        "experiment": "C",
        "seed": seed,
        "sites": {site: {"ranks": 1, "data": str(file.path.absolute())} for site, file in files.items()},
        "labels": {"uncertain": "zeros", "blank": "ignore"},
        "model": {"name": NETWORK.name, "image_size": NETWORK.image_size},
        "sharing": MODES[mode],
        "training": {
            "max_steps": NUM_STEPS,
            "steps_per_epoch": NUM_STEPS,
            "batch_size": BATCH_SIZE,
            "learning_rate": LEARNING_RATE,
            "schedule": "one-cycle",
            "precision": "fp32",
        },
        "validation": {"every_epochs": 0},
    }


def run_mode(mode: str, files: Mapping[str, StudyFile], seed: int, out: Path) -> Row:
    """Train in one mode, unless that is done; return what it comes to."""
    run = out / f"{mode.replace(', ', '-').replace(' ', '')}-{seed}"
    train(config_of(mode, files, seed), run, NUM_STEPS, [*LAUNCHERS["mpirun"], "-np", str(len(files))])
    networks = {site: build_model(NETWORK, len(LABELS), seed) for site in files}
    for site, network in networks.items():
        load_judged_weights(run / site / "checkpoints" / f"step-{NUM_STEPS}", network)
    row: Row = {"mode": mode, "seed": seed}
    for split in (Split.VALIDATE, Split.TEST):
        row[split.name.lower()] = build_judge(files, split, NETWORK.image_size).aurocs(networks)
    folder = run / next(iter(files))
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    num_bytes = sum(buffer["bytes_per_exchange"] for buffer in plan["buffers"] if buffer["scope"] == "shared")
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in lines][1:]
    seconds = [step["data_s"] + step["compute_s"] + step["averaging_s"] for step in steps]
    return row | {"bytes_per_step": num_bytes / plan["every"], "s_per_step": statistics.median(seconds)}


def read_rows(path: Path) -> dict[tuple[str, int], Row]:
    """Read what is there, by mode and seed."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(row["mode"], row["seed"]): row for row in rows}


def table(rows: Mapping[tuple[str, int], Row]) -> str:
    """Return Markdown: each mode's AUROC, bytes and seconds, and whether it is equivalent to the reference."""
    reference = {seed: mean_of_sites(row["test"]) for (mode, seed), row in rows.items() if mode == REFERENCE}
    if len(reference) < 3:
        raise SystemExit(f"expected three seeds of '{REFERENCE}' or more, found {len(reference)}")
    margin = MARGIN_IN_SDS * statistics.stdev(reference.values())
    head = ["mode", "seeds", "AUROC on TEST", "− every 1 [90% interval]", "p", f"within ±{margin:.3f}"]
    head += ["bytes a step", "s a step"]
    lines = [f"| {' | '.join(head)} |", "|---|--:|--:|---|--:|---|--:|--:|"]
    for mode in MODES:
        of_mode = [row for (name, _), row in sorted(rows.items()) if name == mode and row["seed"] in reference]
        if len(of_mode) < 2:
            continue
        values = [mean_of_sites(row["test"]) for row in of_mode]
        cells = [mode, str(len(values)), f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"]
        if mode == REFERENCE:
            cells += ["", "", "the reference"]
        else:
            differences = [mean_of_sites(row["test"]) - reference[row["seed"]] for row in of_mode]
            cells += describe_equivalence(differences, margin)
        cells += [f"{of_mode[0]['bytes_per_step']:,.0f}"]
        cells += [f"{statistics.median(row['s_per_step'] for row in of_mode):.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def describe_equivalence(differences: Sequence[float], margin: float) -> list[str]:
    """Say the mean difference with its 90% interval, the p-value of the TOST, and its verdict."""
    mean, low, high, p_value = two_one_sided_tests(differences, margin)
    interval = f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]".replace("-", "−")
    shown = f"{p_value:.3f}" if p_value >= 0.0005 else "< 0.001"
    return [interval, shown, "yes" if p_value < LEVEL else "**not shown**"]


def two_one_sided_tests(differences: Sequence[float], margin: float) -> tuple[float, float, float, float]:
    """Test whether the mean of paired differences lies within ±margin (Schuirmann, 1987).

    Returns:
        The mean, its interval at 1 - 2 LEVEL, and the greater p-value of the two one-sided t-tests.
    """
    mean, freedom = statistics.mean(differences), len(differences) - 1
    error = statistics.stdev(differences) / len(differences) ** 0.5
    reach = float(student.ppf(1 - LEVEL, freedom)) * error
    distance = margin - abs(mean)
    p_value = float(student.sf(distance / error, freedom)) if error else float(distance <= 0)
    return mean, mean - reach, mean + reach, p_value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=Path, nargs=2, required=True, help="study files of the sites")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--modes", nargs="+", choices=tuple(MODES), default=list(MODES), metavar="MODE")
    parser.add_argument("--document", type=Path, help="put the table between its marks there, too")
    parser.add_argument("--table", action="store_true", help="print what is there, and train nothing")
    arguments = parser.parse_args()
    path = arguments.out / "modes.jsonl"
    arguments.out.mkdir(parents=True, exist_ok=True)
    files = open_sites(arguments.sites)
    rows = read_rows(path)
    for seed in () if arguments.table else arguments.seeds:
        for mode in arguments.modes:
            if (mode, seed) in rows:
                continue
            row = run_mode(mode, files, seed, arguments.out)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    machine = describe_machine("torch", "horovod", "scipy")
    tables = f"Command: `python -m bench.modes {' '.join(sys.argv[1:])}`. Machine: {machine}.\n\n"
    tables += table(read_rows(path))
    print(tables)
    if arguments.document:
        write_report(arguments.document, "bench/modes.py", tables)


if __name__ == "__main__":
    main()
