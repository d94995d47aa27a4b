"""What another hospital's network is worth as a start: D on two sites from its weights, against fresh ones.

Trains one site alone (experiment A), then D on the two others from its network and from fresh weights, seed by
seed, and prints each site's validation AUROC. Stopped, the same command goes on where it stood. Study files are
made before, as docs/results.md shows:

    python -m bench.weights --first guangzhou.h5 --sites nih.h5 indiana.h5 --out runs/weights
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

COMMON: dict[str, dict[str, object]] = {
    "labels": {"uncertain": "zeros", "blank": "ignore"},
    "model": {"name": "densenet121", "image_size": 64},
    "training": {"learning_rate": 1e-3, "schedule": "one-cycle", "precision": "fp32"},
}
BATCH_SIZES = {"A": 16, "D": 8}


def train(tree: dict[str, object], run: Path, num_steps: int, launcher: Sequence[str] = ()) -> None:
    """Train what a config says, or go on with it where it is not done."""
    if any(run.glob(f"*/checkpoints/step-{num_steps}/state.json")):
        return
    path = run.with_suffix(".yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    command = [*launcher, str(Path(sys.executable).parent / "cxr-hvd"), "train", str(path), "--run", str(run)]
    subprocess.run([*command, "--resume", "auto"], check=True)


def config_a(file: Path, num_steps: int) -> dict[str, object]:
    """Return the config of the site whose network the others start from."""
    length = {"batch_size": BATCH_SIZES["A"], "max_steps": num_steps}
    sites, training = {file.stem: {"data": str(file)}}, COMMON["training"] | length
    return {**COMMON, "experiment": "A", "seed": 1, "sites": sites, "training": training}


def config_d(files: Sequence[Path], seed: int, num_steps: int, weights: Path | None) -> dict[str, object]:
    """Return the config of experiment D with BatchNorm's statistics at home."""
    length = {"batch_size": BATCH_SIZES["D"], "max_steps": num_steps, "steps_per_epoch": num_steps}
    return {
        **COMMON,
        "experiment": "D",
        "seed": seed,
        "sites": {file.stem: {"data": str(file)} for file in files},
        "model": {**COMMON["model"], **({"weights": str(weights)} if weights else {})},
        "sharing": {"batchnorm": "private"},
        "training": COMMON["training"] | length,
    }


def aurocs(run: Path, sites: Sequence[str]) -> dict[int, list[float]]:
    """Return each site's validation AUROC by the number of steps."""
    lines = (run / sites[0] / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return {row["step"]: [row["auroc_of_site"][site] for site in sites] for row in rows}


def table(runs: dict[tuple[str, int], dict[int, list[float]]], sites: Sequence[str]) -> str:
    """Return a Markdown table: mean and standard deviation over seeds, and each seed's difference."""
    lines = [f"| after | start | {' | '.join(sites)} | mean of sites |", f"|---|---|{'--:|' * (len(sites) + 1)}"]
    starts, seeds = list(dict.fromkeys(start for start, _ in runs)), sorted({seed for _, seed in runs})
    for step in next(iter(runs.values())):
        columns = {}
        for start in starts:
            per_seed = [[*runs[start, seed][step], statistics.mean(runs[start, seed][step])] for seed in seeds]
            columns[start] = list(zip(*per_seed, strict=True))
            cells = [f"{statistics.mean(column):.3f} ± {_sd(column):.3f}" for column in columns[start]]
            lines.append(f"| {step} steps | {start} | {' | '.join(cells)} |")
        gains = [
            [one - other for one, other in zip(columns[starts[0]][c], columns[starts[1]][c], strict=True)]
            for c in range(len(sites) + 1)
        ]
        cells = [", ".join(f"{gain:+.3f}" for gain in column) for column in gains]
        lines.append(f"| {step} steps | {starts[0]} − {starts[1]}, seed by seed | {' | '.join(cells)} |")
    return "\n".join(lines)


def _sd(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=Path, required=True, help="study file of the site that trains alone")
    parser.add_argument("--sites", type=Path, nargs=2, required=True, help="study files of the sites of D")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--first-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    out, names = arguments.out, [file.stem for file in arguments.sites]
    train(config_a(arguments.first, arguments.first_steps), out / "A", arguments.first_steps)
    network = out / "A" / arguments.first.stem
    runs = {}
    for seed in range(1, arguments.seeds + 1):
        for start, weights in ((f"{arguments.first.stem}'s network", network), ("fresh weights", None)):
            run = out / f"D-{'fresh' if weights is None else 'weights'}-{seed}"
            launcher = ("horovodrun", "-np", "2", "-H", "localhost:2")
            train(config_d(arguments.sites, seed, arguments.steps, weights), run, arguments.steps, launcher)
            runs[start, seed] = aurocs(run, names)
    print(table(runs, names))


if __name__ == "__main__":
    main()
