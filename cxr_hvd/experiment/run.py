"""An experiment: several set-ups, each trained with several seeds and scored on every site's studies.

    OUT/experiment.json            what was asked
    OUT/NAME/config.yaml           a set-up's config, whole
    OUT/NAME/seed-S/               its run folder, as `cxr-hvd train` makes, with scores.safetensors

One launch at a time, by `cxr-hvd train` and `cxr-hvd evaluate --across-sites` under a launcher, so that each can
be typed again. All train the same number of steps. A seed is finished for all set-ups before the next begins:
whenever one looks, what is there can be compared in pairs. Killed and started again, it goes on where it stood.
"""

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.table import Table

from cxr_hvd import __version__
from cxr_hvd.config.file import load_config
from cxr_hvd.config.schema import Config
from cxr_hvd.console import Console
from cxr_hvd.data.studies import check_pixel_pipelines
from cxr_hvd.errors import CheckpointError, Stopped, StudyFileError, TrainingError, UsageError
from cxr_hvd.experiment import scores
from cxr_hvd.experiment.progress import progress_shown
from cxr_hvd.experiment.variants import Variant, configure, private_of, resolved
from cxr_hvd.files import write_text
from cxr_hvd.launch.launchers import path_word
from cxr_hvd.launch.outcome import DONE, STOPPED, USAGE
from cxr_hvd.launch.supervise import supervise
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.training.budget import budget_of
from cxr_hvd.training.run_folder import LATEST, RunFolder, disk_errors, sites_in
from cxr_hvd.yaml_text import dump_yaml


@dataclass(frozen=True)
class Cell:
    """One run of an experiment.

    Attributes:
        variant: the set-up.
        config: with this run's seed.
        run: its run folder.
        outside: study files of institutions that take no part, to judge on.
    """

    variant: str
    config: Config
    run: Path
    outside: Mapping[str, Path]

    @property
    def name(self) -> str:
        return f"{self.variant}, seed {self.config.seed}"

    @property
    def config_path(self) -> Path:
        return self.run.parent / "config.yaml"

    @property
    def num_ranks(self) -> int:
        return sum(site.ranks for site in self.config.sites.values())

    def train_words(self) -> list[str]:
        """Return the command of each rank that trains."""
        seed = f"seed={self.config.seed}"
        config, run = path_word(self.config_path), path_word(self.run)
        return ["train", config, "--run", run, "--set", seed, "--resume", "auto"]

    def score_words(self) -> list[str]:
        """Return the command of each rank that scores."""
        outside = [word for name, path in self.outside.items() for word in ("--outside", f"{name}={path}")]
        return ["evaluate", path_word(self.run), "--across-sites", *outside]


@dataclass(frozen=True)
class Plan:
    """All of an experiment.

    Attributes:
        out: its folder.
        cells: in the order in which they run: seed by seed.
        num_steps: of each.
        data_sha256: digest of each institution's study file.
    """

    out: Path
    cells: tuple[Cell, ...]
    num_steps: int
    data_sha256: dict[str, str]


def plan_experiment(
    path: Path,
    settings: Sequence[str],
    variants: Sequence[Variant],
    num_seeds: int,
    out: Path,
    outside: Mapping[str, Path] = MappingProxyType({}),
) -> Plan:
    """Plan an experiment of these variants, with seeds from the config's on.

    Args:
        path, settings: the common config.
        outside: study files of institutions that take no part, by name: all networks are judged on them, too.

    Raises:
        CxrHvdError: config or study files are not fit for it.
    """
    common = load_config(path, settings)
    studies, data_sha256, pipeline_of_file = [], {}, {}
    for name, site in common.sites.items():
        with StudyFile(site.data) as file:
            missing = [split.name for split in (Split.TRAIN, Split.TEST) if not len(file.indices(split))]
            if missing:
                raise StudyFileError(
                    f"{file.path}: expected TRAIN and TEST studies, found no {' and no '.join(missing)}; draw "
                    f"some with --{missing[0].lower()} N"
                )
            studies.append(len(file.indices(Split.TRAIN)))
            data_sha256[name] = file.digest
            pipeline_of_file[file.path] = file.header.pixels
    for name, file_path in outside.items():
        with StudyFile(file_path) as file:
            data_sha256[name] = file.digest
            pipeline_of_file[file.path] = file.header.pixels
    check_pixel_pipelines(pipeline_of_file, common.pixel_pipelines)
    apart = common.model_copy(update={"experiment": "C"})
    steps_per_epoch = budget_of(apart, studies).steps_per_epoch
    configs = {variant.name: configure(path, settings, variant, steps_per_epoch) for variant in variants}
    if len(common.sites) < 2:
        raise UsageError(f"{path}: an experiment compares ways for several sites, found {len(common.sites)}")
    cells = tuple(
        Cell(
            name,
            config.model_copy(update={"seed": common.seed + number}),
            out / name / f"seed-{common.seed + number}",
            outside,
        )
        for number in range(num_seeds)
        for name, config in configs.items()
    )
    num_steps = {budget_of(config, studies).num_steps for config in configs.values()}
    if len(num_steps) > 1:
        raise UsageError(
            f"all variants have to train as long, found {sorted(num_steps)} steps: leave training.epochs, "
            "training.steps_per_epoch and training.max_steps to the common config"
        )
    return Plan(out, cells, num_steps.pop(), data_sha256)


def print_plan(plan: Plan, console: Console) -> None:
    """Say what is to be done, and what of it is done."""
    table = Table(
        title=f"{len(plan.cells)} runs of {plan.num_steps:,} steps each, in {plan.out}", title_justify="left"
    )
    for heading in ("set-up", "trains on", "private", "BatchNorm statistics", "seeds", "scored"):
        table.add_column(heading)
    for name in dict.fromkeys(cell.variant for cell in plan.cells):
        own = [cell for cell in plan.cells if cell.variant == name]
        config = own[0].config
        table.add_row(
            name,
            "all sites' studies, merged" if config.is_merged else "each site's own studies",
            private_of(config),
            config.sharing.batchnorm,
            ", ".join(str(cell.config.seed) for cell in own),
            str(sum(is_scored(cell, plan.data_sha256) for cell in own)),
        )
    console.print(table)


def run_experiment(
    plan: Plan,
    console: Console,
    launcher: list[str] | None = None,
    num_restarts: int = 1,
    deadline: float | None = None,
) -> None:
    """Train and score what is not there yet. Blocking: as long as that takes.

    Args:
        launcher: the words that start the ranks, instead of `mpirun -np R` or `horovodrun --gloo -np R`.
        num_restarts: how often a run that fails is started again.
        deadline: by `time.monotonic()`, when it is to have stopped, with a checkpoint of the run that trains.

    Raises:
        Stopped: it was asked to stop; what is done is kept.
        TrainingError: runs failed; the others are done.
        CheckpointError: the folder holds another experiment.
    """
    todo = [cell for cell in plan.cells if not is_scored(cell, plan.data_sha256)]
    open_folder(plan)
    failed = []
    with progress_shown(len(todo), plan.num_steps, console) as progress:
        for cell in todo:
            progress.begin(cell.name, cell.run)
            code = run_cell(cell, launcher, num_restarts, deadline)
            if code == STOPPED:
                raise Stopped(f"stopped in {cell.name}; what is done is kept: run the same command to go on")
            if code == USAGE:
                raise UsageError(f"{cell.name} cannot run: {last_line(cell.run)}; see {log_of(cell.run)}")
            if code == DONE:
                thin(cell.run)
            else:
                failed.append(cell)
            progress.end("done" if code == DONE else f"FAILED with {code}")
    if failed:
        raise TrainingError(
            f"{len(failed)} of {len(plan.cells)} runs failed: {', '.join(cell.name for cell in failed)}; see "
            f"{log_of(failed[0].run)}; the same command tries them again"
        )


def is_scored(cell: Cell, data_sha256: dict[str, str]) -> bool:
    """Return whether a run is done and scored.

    Raises:
        CheckpointError: there are scores, but of another config or of other data.
    """
    path = cell.run / scores.NAME
    if not path.exists():
        return False
    origin = scores.read_origin(path)
    wanted = (scores.config_digest(cell.config), data_sha256)
    if (origin.config_sha256, dict(origin.data_sha256)) != wanted:
        raise CheckpointError(
            f"{cell.run}: its scores are of another config or of other study files than those asked for: name "
            "another --out, or remove the folder"
        )
    return True


def open_folder(plan: Plan) -> None:
    """Make the experiment's folder, with each set-up's config; what was scored before stays.

    Raises:
        CheckpointError: a file of its names is there that no experiment made, or it cannot be written.
    """
    record = plan.out / "experiment.json"
    written = dict.fromkeys([record, *(cell.config_path for cell in plan.cells)])
    if taken := [] if _is_record(record) else [path for path in written if os.path.lexists(path)]:
        raise CheckpointError(
            f"{taken[0]}: expected nothing or a file of an earlier experiment, found something else, which is not "
            "replaced; name another --out"
        )
    with disk_errors(plan.out):
        plan.out.mkdir(mode=0o700, parents=True, exist_ok=True)
        for cell in plan.cells:
            cell.run.parent.mkdir(mode=0o700, exist_ok=True)
            first = resolved(cell.config) | {"seed": plan.cells[0].config.seed}
            write_text(cell.config_path, dump_yaml(first))
        write_text(record, json.dumps(as_json(plan), indent=1) + "\n")


def _is_record(path: Path) -> bool:
    try:
        return path.is_file() and str(json.loads(path.read_bytes())["tool"]).startswith("cxr-hvd ")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def as_json(plan: Plan) -> dict[str, Any]:
    """Return what is to be done as plain values."""
    return {
        "tool": f"cxr-hvd {__version__}",
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "num_steps": plan.num_steps,
        "data_sha256": plan.data_sha256,
        "variants": list(dict.fromkeys(cell.variant for cell in plan.cells)),
        "runs": [
            {
                "variant": cell.variant,
                "seed": cell.config.seed,
                "config_sha256": scores.config_digest(cell.config),
                "train": shlex.join(["cxr-hvd", *cell.train_words()]),
                "score": shlex.join(["cxr-hvd", *cell.score_words()]),
            }
            for cell in plan.cells
        ],
    }


def run_cell(cell: Cell, launcher: list[str] | None, num_restarts: int, deadline: float | None) -> int:
    """Train and score one run; return 0 done, 2 wrong config, 75 stopped on request, else failed."""
    program = str(Path(sys.argv[0]).absolute())
    with disk_errors(cell.run):
        cell.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = log_of(cell.run).open("a", encoding="utf-8")
    with log:
        train, score = [program, *cell.train_words()], [program, *cell.score_words()]
        code = supervise(train, cell.run, cell.num_ranks, num_restarts, launcher, deadline=deadline, log=log)
        if code == DONE and deadline is not None and time.monotonic() > deadline:
            return STOPPED  # trained; scored by the next start
        return (
            code if code != DONE else supervise(score, cell.run, cell.num_ranks, num_restarts, launcher, log=log)
        )


def thin(run: Path) -> None:
    """Keep of a scored run's checkpoints what is needed to judge or use its networks, not to train on."""
    for site in sites_in(run):
        folder = RunFolder(run, site)
        latest = (folder.checkpoints / LATEST).resolve()
        for checkpoint in folder.checkpoints.glob("step-*"):
            if checkpoint != latest:
                shutil.rmtree(checkpoint)
        for kind in ("optimizer", "exchange"):
            for file in latest.glob(f"{kind}-*.safetensors"):
                file.unlink()
        best = folder.checkpoints / "best"
        if best.is_symlink() and not best.exists():
            best.unlink()


def log_of(run: Path) -> Path:
    """Return where a run's output is."""
    return run / "log.txt"


def last_line(run: Path) -> str:
    """Return the last error that a run's output tells of."""
    try:
        lines = log_of(run).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "no output"
    return next((line.partition("error: ")[2] for line in reversed(lines) if "error: " in line), "no error line")
