"""Whether an outer optimizer gains what plain averaging with its own best learning rate does not.

Two real sites take 200 steps of 16 studies each, and average every 10th. The outer optimizer takes what the
average has moved since the last one for a gradient, and follows it with Nesterov's momentum (DiLoCo, Douillard et
al., 2023, at 0.7 and 0.9). Both ways get equally many trials: eight learning rates for plain averaging; four for
each of two outer settings. (Six and three at first; after one seed Nesterov's best lay at an edge, and both ways
got two more.) VALIDATE chooses a way's best trial by its mean over seeds, and TEST judges it.

A prototype in one process: sites train in turn, and nothing travels. What is judged is the algorithm. Each trial
is a line of `outer.jsonl`; stopped, the same command goes on where it stood; `--table` prints what is there.

    python -m bench.outer --sites nih.h5 indiana.h5 --out runs/outer
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor, nn

from bench.adults import POLICY, build_judge, mean_of_sites, open_sites
from bench.report import describe_machine, write_report
from cxr_hvd.config.sections import Augmentation, Model, Training
from cxr_hvd.data.loader import Batch, train_batches
from cxr_hvd.data.studies import Shuffle, StudySet
from cxr_hvd.models.build import build_model
from cxr_hvd.models.forward import forward
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.training.loss import MultiLabelLoss
from cxr_hvd.training.optim import Optimizer
from cxr_hvd.training.schedule import learning_rate_factor

NUM_STEPS, EVERY, BATCH_SIZE = 200, 10, 16
NETWORK = Model(name="bench.small_resnet:small_resnet", image_size=64)
BCE = MultiLabelLoss()


@dataclass(frozen=True)
class Trial:
    """One setting that is tried.

    Attributes:
        learning_rate: of the sites' AdamW, at the top of one cycle.
        outer_rate, momentum: of the outer optimizer; 1 and 0 are plain averaging.
    """

    learning_rate: float
    outer_rate: float = 1.0
    momentum: float = 0.0

    @property
    def way(self) -> str:
        return "nesterov" if self.momentum else "plain"

    def __str__(self) -> str:
        outer = f", outer {self.outer_rate:g} and {self.momentum:g}" if self.momentum else ""
        return f"{self.learning_rate:g}{outer}"


PLAIN = [Trial(2.5e-4 * 2**power) for power in range(8)]
NESTEROV = [Trial(2.5e-4 * 2**power, *outer) for outer in ((0.7, 0.9), (1.0, 0.5)) for power in range(4)]


class OuterOptimizer:
    """Follows the mean of the sites' networks: at once, or with Nesterov's momentum."""

    def __init__(self, model: nn.Module, trial: Trial) -> None:
        self._trial = trial
        self.weights = copied(model)
        parameters = dict(model.named_parameters())
        self._velocities = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}

    @torch.no_grad()
    def step(self, networks: Sequence[nn.Module]) -> None:
        """Move to or beyond the mean of the networks, and put them all there; statistics become their mean."""
        states = [network.state_dict() for network in networks]
        for name, weight in self.weights.items():
            if not weight.is_floating_point():
                continue
            mean = torch.stack([state[name] for state in states]).mean(0)
            if name in self._velocities:
                moved = mean - weight
                velocity = self._velocities[name].mul_(self._trial.momentum).add_(moved)
                weight.add_(moved + self._trial.momentum * velocity, alpha=self._trial.outer_rate)
            else:
                weight.copy_(mean)
            for state in states:
                state[name].copy_(weight)


def copied(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all tensors of a network, by name."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


class SiteTraining:
    """One site's network, optimizer and batches."""

    def __init__(self, file: StudyFile, number: int, seed: int, trial: Trial) -> None:
        self.network = build_model(NETWORK, len(LABELS), seed).train()
        self._settings = Training(learning_rate=trial.learning_rate, precision="fp32")
        self._optimizer = Optimizer(self.network.parameters(), self._settings)
        studies = StudySet([file], Split.TRAIN, POLICY)
        shuffle = Shuffle(len(studies), BATCH_SIZE, num_ranks=1, rank=0, key=(seed, number))
        self._batches = train_batches(studies, shuffle, range(NUM_STEPS), NETWORK.image_size, Augmentation())

    def take(self, steps: range) -> None:
        """Take these steps."""
        for step in steps:
            factor = learning_rate_factor(self._settings.schedule, step, NUM_STEPS, 0)
            self._optimizer.learning_rate = self._settings.learning_rate * factor
            batch: Batch = next(self._batches)
            self._optimizer.zero_grad()
            logits_BL = forward(self.network, batch.images, self._settings.precision)
            BCE(logits_BL, batch.targets, batch.known).backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()


def run_trial(files: Mapping[str, StudyFile], seed: int, trial: Trial) -> dict[str, Any]:
    """Train with one setting; return what it comes to on VALIDATE and on TEST, by site."""
    started = time.monotonic()
    sites = {name: SiteTraining(file, number, seed, trial) for number, (name, file) in enumerate(files.items())}
    networks = {name: site.network for name, site in sites.items()}
    outer = OuterOptimizer(next(iter(networks.values())), trial)
    for first in range(0, NUM_STEPS, EVERY):
        for site in sites.values():
            site.take(range(first, first + EVERY))
        outer.step(list(networks.values()))
    row: dict[str, Any] = {"seed": seed, **asdict(trial)}
    for split in (Split.VALIDATE, Split.TEST):
        row[split.name.lower()] = build_judge(files, split, NETWORK.image_size).aurocs(networks)
    return row | {"seconds": round(time.monotonic() - started, 1)}


Rows = dict[tuple[int, Trial], dict[str, Any]]


def read_rows(path: Path) -> Rows:
    """Read what is there, by seed and trial."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(row["seed"], Trial(row["learning_rate"], row["outer_rate"], row["momentum"])): row for row in rows}


def table(rows: Rows) -> str:
    """Return Markdown: each trial's mean AUROC, then what the best of each way are worth on TEST."""
    seeds = sorted({seed for seed, _ in rows})
    seeds = [seed for seed in seeds if all((seed, trial) in rows for trial in (*PLAIN, *NESTEROV))]
    if not seeds:
        raise SystemExit(f"expected all {len(PLAIN) + len(NESTEROV)} trials of a seed, found {len(rows)} trials")
    lines = ["| way | learning rate | VALIDATE | TEST |", "|---|---|--:|--:|"]
    best: dict[str, Trial] = {}
    for trials in (PLAIN, NESTEROV):
        means = {trial: statistics.mean(values(rows, seeds, trial, "validate")) for trial in trials}
        chosen = best[trials[0].way] = max(means, key=means.__getitem__)
        for trial in trials:
            cells = [
                f"{statistics.mean(column):.3f} ± {statistics.stdev(column) if len(column) > 1 else 0:.3f}"
                for column in (values(rows, seeds, trial, split) for split in ("validate", "test"))
            ]
            mark = " (chosen)" if trial == chosen else ""
            lines.append(f"| {trial.way} | {trial}{mark} | {' | '.join(cells)} |")
    pairs = zip(*(values(rows, seeds, best[way], "test") for way in ("nesterov", "plain")), strict=True)
    gains = [nesterov - plain for nesterov, plain in pairs]
    return "\n".join([*lines, "", f"TEST, nesterov − plain, each at its best: {describe_gains(gains)}."])


def values(rows: Rows, seeds: Sequence[int], trial: Trial, split: str) -> list[float]:
    """Return a trial's mean of sites, seed by seed."""
    return [mean_of_sites(rows[seed, trial][split]) for seed in seeds]


def describe_gains(gains: Sequence[float]) -> str:
    """Say the gains seed by seed, with Student's t where there are three or more."""
    words = ", ".join(f"{gain:+.3f}" for gain in gains)
    if len(gains) >= 3:
        mean, error = statistics.mean(gains), statistics.stdev(gains) / len(gains) ** 0.5
        reach = float(student.ppf(0.975, len(gains) - 1)) * error
        words += f"; mean {mean:+.3f} [{mean - reach:+.3f}, {mean + reach:+.3f}]"
    return words.replace("-", "−")


def missing(rows: Rows, seeds: Sequence[int]) -> Iterator[tuple[int, Trial]]:
    """Yield seeds and trials that are not there yet; both ways of a seed before the next seed."""
    for seed in seeds:
        for pair in zip(PLAIN, NESTEROV, strict=True):
            yield from ((seed, trial) for trial in pair if (seed, trial) not in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=Path, nargs="+", required=True, help="study files of the sites")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--document", type=Path, help="put the table between its marks there, too")
    parser.add_argument("--table", action="store_true", help="print what is there, and train nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "outer.jsonl"
    files = open_sites(arguments.sites)
    for seed, trial in () if arguments.table else missing(read_rows(path), arguments.seeds):
        row = run_trial(files, seed, trial)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    tables = f"Tables made on: {describe_machine('torch', 'scipy')}.\n\n{table(read_rows(path))}"
    print(tables)
    if arguments.document:
        write_report(arguments.document, "results/outer", tables)


if __name__ == "__main__":
    main()
