"""The plan of an experiment: which set-ups are trained with which seeds, and where."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from cxr_hvd.config.file import load_config
from cxr_hvd.config.schema import Config, config_digest
from cxr_hvd.data.studies import check_pixel_pipelines
from cxr_hvd.errors import StudyFileError, UsageError
from cxr_hvd.experiment.variants import Variant, configure
from cxr_hvd.launch.launchers import path_word
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.training.budget import budget_of


@dataclass(frozen=True)
class PlannedRun:
    """One run of an experiment.

    Attributes:
        variant: the set-up.
        config: with this run's seed.
        folder: its run folder.
        outside: study files of institutions that take no part, to judge on.
    """

    variant: str
    config: Config
    folder: Path
    outside: Mapping[str, Path]

    @property
    def name(self) -> str:
        return f"{self.variant}, seed {self.config.seed}"

    @property
    def config_path(self) -> Path:
        return self.folder.parent / "config.yaml"

    @property
    def num_ranks(self) -> int:
        return sum(site.ranks for site in self.config.sites.values())

    def train_words(self) -> list[str]:
        """Return the command of each rank that trains."""
        seed = f"seed={self.config.seed}"
        config, run = path_word(self.config_path), path_word(self.folder)
        return ["train", config, "--run", run, "--set", seed, "--resume", "auto"]

    def score_words(self) -> list[str]:
        """Return the command of each rank that scores."""
        outside = [word for name, path in self.outside.items() for word in ("--outside", f"{name}={path}")]
        return ["evaluate", path_word(self.folder), "--pooled", *outside]

    @property
    def log(self) -> Path:
        """Where its output is."""
        return self.folder / "log.txt"

    @property
    def config_sha256(self) -> str:
        return config_digest(self.config)

    def last_error(self) -> str:
        """Return the last error that its output tells of."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return "no output"
        errors = (line.partition("error: ")[2] for line in reversed(lines) if "error: " in line)
        return next(errors, "no error line")


@dataclass(frozen=True)
class ExperimentPlan:
    """All of an experiment.

    Attributes:
        out: its folder.
        runs: in the order in which they run: seed by seed.
        num_steps: of each.
        data_sha256: digest of each institution's study file.
    """

    out: Path
    runs: tuple[PlannedRun, ...]
    num_steps: int
    data_sha256: dict[str, str]


def plan_experiment(
    path: Path,
    settings: Sequence[str],
    variants: Sequence[Variant],
    num_seeds: int,
    out: Path,
    outside: Mapping[str, Path] = MappingProxyType({}),
) -> ExperimentPlan:
    """ExperimentPlan an experiment of these variants, with seeds from the config's on.

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
    runs = tuple(
        PlannedRun(
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
    return ExperimentPlan(out, runs, num_steps.pop(), data_sha256)
