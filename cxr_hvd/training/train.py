"""The main job: bind ranks to sites, agree, train with partial averaging, keep checkpoints.

`train` is read from top to bottom by every rank. Each phase says who takes part.
"""

import json
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from cxr_hvd import __version__
from cxr_hvd.collective.averaging import PartialAverager, site_weights
from cxr_hvd.collective.comm import Communicator, together
from cxr_hvd.collective.contract import check_contract, flat_items
from cxr_hvd.collective.sharing import SharingPlan, build_plan
from cxr_hvd.collective.sites import Topology, bind
from cxr_hvd.config import Config
from cxr_hvd.errors import ConfigError, StudyFileError, UsageError
from cxr_hvd.study.study_file import Split, StudyFile
from cxr_hvd.training.checkpoint import RunFolder, load_optimizer, load_weights, save_checkpoint
from cxr_hvd.training.display import TrainingDisplay, console_for, plan_table
from cxr_hvd.training.engine import Engine, StepReport
from cxr_hvd.training.loader import Shuffle, StudySet, train_batches
from cxr_hvd.training.model import build_model, tensor_specs

COMPARED_VERSIONS = ("torch", "torchvision", "horovod", "numpy")
MERGED = 0xB


@dataclass(frozen=True)
class TrainingData:
    """What a rank trains on.

    Attributes:
        files: the study files that it opened: its own site's, or all of them in experiment B.
        studies: their training studies.
        shuffle: this rank's share of the endless shuffled sequence.
    """

    files: list[StudyFile]
    studies: StudySet
    shuffle: Shuffle


def train(config: Config, run: Path, comm: Communicator, resume: bool = False, overwrite: bool = False) -> None:
    """Train one model over all sites. Collective: every rank, with the same arguments. Blocking.

    Raises:
        CxrHvdError: on every rank alike.
    """
    console = console_for(comm.num_ranks)
    # Every rank finds its site, opens its own data and fits its threads to the machine.
    ranks_per_site = {name: site.ranks for name, site in config.sites.items()}
    topology = bind(comm, ranks_per_site, os.environ.get("CXR_SITE"))
    set_threads(comm)
    with together(comm, "opening its study file"), ExitStack() as opened:
        data = open_training_data(config, topology)
        for file in data.files:
            opened.callback(file.close)
        files_open = opened.pop_all()

    # Every rank builds the same network and plan, and all agree on them before a tensor moves.
    with files_open:
        model = build_model(config.model.name, len(data.studies.label_names), config.seed)
        with together(comm, "making the sharing plan"):
            plan = plan_of(config, model)
        check_contract(comm, topology, contract_items(config, plan, data))
        if topology.is_leader:
            console.print(plan_table(plan))
        averager = build_averager(config, plan, model, comm, topology, data)
        num_steps, steps_per_epoch = agree_on_steps(config, comm, data)
        engine = Engine(model, averager, comm, topology, config.training, num_steps)

        # Each site's leader keeps the run folder; every rank goes on from the same step.
        folder = RunFolder(run, topology.site)
        if resume:
            first_step = resume_run(folder, config, engine, comm, topology)
        else:
            first_step = 0
            with together(comm, "making its run folder"):
                if topology.is_site_leader:
                    folder.open_new(overwrite)
                    record_run(folder, config, plan, data)

        # Every rank takes the same steps; checkpoints after every epoch and at the end.
        display = TrainingDisplay(console, topology, first_step, num_steps, config.training.batch_size)
        batches = train_batches(
            data.studies,
            data.shuffle,
            range(first_step, num_steps),
            config.model.image_size,
            config.augmentation,
        )

        with metrics_log(folder, topology) as log:

            def on_step(report: StepReport) -> None:
                display.show(report)
                log(report)
                done = report.step + 1
                if done % steps_per_epoch == 0 or done == num_steps:
                    save_checkpoint(folder, done, model, engine.optimizer, plan, comm, topology)

            engine.run(batches, first_step, on_step)
        display.close()
    if topology.is_leader:
        console.print(f"trained {num_steps} steps; run folder: {run}", highlight=False)


def set_threads(comm: Communicator) -> None:
    """Share this machine's cores out among its ranks, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        own, cores = len(os.sched_getaffinity(0)), os.cpu_count() or 1
        # A launcher that binds ranks has shared the cores out already.
        torch.set_num_threads(max(1, own if own < cores else cores // comm.ranks_per_node))


def open_training_data(config: Config, topology: Topology) -> TrainingData:
    """Open this rank's study file, or all of them where experiment B merges the sites."""
    names = list(config.sites) if config.is_merged else [topology.site]
    files = [StudyFile(config.sites[name].data) for name in names]
    for file in files:
        if not len(file.indices(Split.TRAIN)):
            raise StudyFileError(f"{file.path}: expected training studies, found none; draw some with --train N")
        if file.header.label_names != files[0].header.label_names:
            raise StudyFileError(f"{file.path}: its label order differs from {files[0].path}'s; write both alike")
        if config.pixel_pipelines == "same" and file.header.pixels != files[0].header.pixels:
            raise StudyFileError(
                f"{file.path}: its pixel pipeline is {file.header.pixels}, {files[0].path} has "
                f"{files[0].header.pixels}; write both alike, or set pixel_pipelines: any"
            )
        if file.header.image_size < config.model.image_size:
            raise ConfigError(
                f"model.image_size: {config.model.image_size} px is more than the {file.header.image_size} px "
                f"of {file.path}"
            )
    studies = StudySet(files, Split.TRAIN, config.labels.policy(files[0].header.label_names))
    sharers = range(topology.num_ranks) if config.is_merged else topology.ranks_of_site
    shuffle = Shuffle(
        num_studies=len(studies),
        batch_size=config.training.batch_size,
        num_ranks=len(sharers),
        rank=list(sharers).index(topology.rank),
        key=(config.seed, MERGED if config.is_merged else _site_key(topology.site)),
    )
    return TrainingData(files, studies, shuffle)


def _site_key(site: str) -> int:
    """Seed by name, so that a site draws the same order whoever trains beside it."""
    return int.from_bytes(site.encode(), "big")


def plan_of(config: Config, model: torch.nn.Module) -> SharingPlan:
    """Build the sharing plan that a config asks for."""
    return build_plan(tensor_specs(model), config.private_patterns, config.sharing.batchnorm, config.sharing.every)


def contract_items(config: Config, plan: SharingPlan, data: TrainingData) -> dict[str, str]:
    """State what all ranks must have alike, in the order in which a difference is best told."""
    header = data.files[0].header
    items = {"label order": ", ".join(header.label_names)}
    if config.pixel_pipelines == "same":
        items["pixel pipeline (pixel_pipelines: any allows several)"] = header.pixels
    items |= flat_items(config.shared_part(), "config")
    items |= {f"version of {name}": version(name) for name in COMPARED_VERSIONS}
    items |= {"version of cxr_hvd": __version__}
    if config.is_merged:
        items |= {f"study file of {f.header.site}": f.digest for f in data.files}
    return items | plan.items()


def build_averager(
    config: Config,
    plan: SharingPlan,
    model: torch.nn.Module,
    comm: Communicator,
    topology: Topology,
    data: TrainingData,
) -> PartialAverager:
    """Weigh the sites and lay the model out for averaging. Collective: every rank."""
    counts = comm.gather(torch.tensor([len(data.studies)]), "sites.studies").flatten().tolist()
    studies_per_site = [counts[topology.ranks_at(site)[0]] for site in range(topology.num_sites)]
    weights = site_weights(config.sharing.weighting, studies_per_site)
    if config.is_merged:  # every rank has an equal part of all studies, whatever its site
        weights = [site.ranks / topology.num_ranks for site in config.sites.values()]
    return PartialAverager(model, plan, comm, topology, weights)


def agree_on_steps(config: Config, comm: Communicator, data: TrainingData) -> tuple[int, int]:
    """Return (all steps, steps of an epoch), enough for the site that needs most. Collective: every rank."""
    own = torch.tensor([data.shuffle.steps_per_epoch])
    steps_per_epoch = int(comm.gather(own, "sites.steps").max())
    num_steps = config.training.epochs * steps_per_epoch
    return min(num_steps, config.training.max_steps or num_steps), steps_per_epoch


def resume_run(folder: RunFolder, config: Config, engine: Engine, comm: Communicator, topology: Topology) -> int:
    """Put the latest checkpoint back and return its number of steps. Collective: every rank."""
    with together(comm, "reading its checkpoint"):
        if not folder.latest_step():
            raise UsageError(f"{folder.path}: nothing to resume; start without --resume")
        check_same_config(folder, config)
        first_step = load_weights(folder, engine.model)
        load_optimizer(folder, engine.model, engine.optimizer, topology)
    steps = comm.gather(torch.tensor([first_step]), "resume.step").flatten()
    with together(comm, "comparing checkpoints"):
        if not bool((steps == steps[0]).all()):
            raise UsageError(f"the sites' latest checkpoints are of different steps: {steps.tolist()}")
    return first_step


def check_same_config(folder: RunFolder, config: Config) -> None:
    """Raise where a run would go on as something else than it was started as."""
    before = flat_items(folder.config().shared_part(), "config")
    now = flat_items(config.shared_part(), "config")
    for name in before.keys() | now.keys():
        if before.get(name) != now.get(name):
            raise ConfigError(
                f"{name} was {before.get(name)} when {folder.path} was started, and is {now.get(name)} now: "
                "resume with the same config, or start anew with another --run"
            )


def record_run(folder: RunFolder, config: Config, plan: SharingPlan, data: TrainingData) -> None:
    """Write down what this run is: resolved config, plan, environment, data."""
    resolved = config.model_dump(mode="json")
    for name, site in config.sites.items():
        resolved["sites"][name]["data"] = str(site.data.resolve())
    folder.write_record("config.yaml", resolved)
    folder.write_record("plan.json", plan.items())
    packages = (*COMPARED_VERSIONS, "h5py", "mpi4py", "opencv-python-headless", "scikit-learn")
    environment = {
        "cxr_hvd": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "packages": {name: version(name) for name in packages},
        "data": {file.header.site: file.digest for file in data.files},
    }
    folder.write_record("environment.json", environment)


@contextmanager
def metrics_log(folder: RunFolder, topology: Topology) -> Iterator[Any]:
    """Give a function that notes a step in `metrics.jsonl` and for TensorBoard, on the site's leader alone."""
    if not topology.is_site_leader:
        yield lambda report: None
        return
    board = SummaryWriter(str(folder.path / "tensorboard"))
    with closing(board), (folder.path / "metrics.jsonl").open("a", encoding="utf-8") as file:

        def log(report: StepReport) -> None:
            row = asdict(report)
            del row["loss_of_rank"]
            file.write(json.dumps(row) + "\n")
            file.flush()
            for name in ("loss", "learning_rate", "data_s", "compute_s", "averaging_s"):
                board.add_scalar(name, row[name], report.step)

        yield log
