"""The main job: bind ranks to sites, agree, train with partial averaging, keep checkpoints.

`train` is read from top to bottom by every rank. Each phase says who takes part.
"""

import hashlib
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
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from cxr_hvd import __version__
from cxr_hvd.collective.averaging import EXCHANGES, Averager, site_weights
from cxr_hvd.collective.comm import Communicator, gather, together
from cxr_hvd.collective.contract import check_contract, flat_items
from cxr_hvd.collective.key import prove_key
from cxr_hvd.collective.ledger import head_name, ledger_name, opening
from cxr_hvd.collective.sharing import Scope, SharingPlan, build_plan
from cxr_hvd.collective.sites import Topology, bind
from cxr_hvd.config import Config
from cxr_hvd.errors import ConfigError, CxrHvdError, StudyFileError, UsageError
from cxr_hvd.study.study_file import Split, StudyFile
from cxr_hvd.training.checkpoint import (
    RunFolder,
    load_exchange,
    load_optimizer,
    load_weights,
    save_checkpoint,
)
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


@dataclass(frozen=True)
class Budget:
    """How long all ranks train, and what that is for each site.

    Attributes:
        num_steps: steps of the whole run.
        steps_per_epoch: steps of one epoch.
        studies_per_site: training studies, in the order of the config's sites.
        passes_per_epoch: how often a site sees each of its studies in one epoch.
    """

    num_steps: int
    steps_per_epoch: int
    studies_per_site: list[int]
    passes_per_epoch: list[float]


def train(
    config: Config,
    run: Path,
    comm: Communicator,
    resume: bool = False,
    overwrite: bool = False,
    key: bytes | None = None,
) -> None:
    """Train one model over all sites. Collective: every rank, with the same arguments. Blocking.

    Args:
        key: a secret that all ranks have to prove they hold, too; None trusts whoever the launcher started.

    Raises:
        CxrHvdError: on every rank alike.
    """
    console = console_for(comm.num_ranks)
    # Every rank finds its site, opens its own data and fits its threads to the machine.
    ranks_per_site = {name: site.ranks for name, site in config.sites.items()}
    topology = bind(comm, ranks_per_site, os.environ.get("CXR_SITE"))
    prove_key(comm, topology, key)
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
        check_contract(comm, topology, contract_items(config, plan, model, data))
        budget = agree_on_budget(config, comm, topology, data)
        if topology.is_leader:
            print_agreed(console, config, plan, budget, has_key=key is not None)
        averager = build_averager(config, plan, model, comm, topology, budget)
        engine = Engine(model, averager, comm, topology, config.training, budget.num_steps)

        # Each site's leader keeps the run folder; every rank goes on from the same step.
        folder = RunFolder(run, topology.site)
        if resume:
            first_step = resume_run(folder, config, engine, comm, topology)
            check_shared_weights(plan, model, comm, topology, first_step)
        else:
            first_step = 0
            with together(comm, "making its run folder"):
                if topology.is_site_leader:
                    folder.open_new(overwrite)
                    record_run(folder, config, plan, data, budget)
        with together(comm, "opening its ledger"):
            comm.ledger.open(
                folder.path / ledger_name(topology.rank_in_site),
                opening(
                    topology.site,
                    topology.rank,
                    topology.num_ranks,
                    topology.rank_in_site,
                    len(topology.ranks_of_site),
                    folder.path / "plan.json",
                    first_step,
                ),
            )

        # Every rank takes the same steps; checkpoints after every epoch and at the end.
        display = TrainingDisplay(console, topology, first_step, budget.num_steps, config.training.batch_size)
        batches = train_batches(
            data.studies,
            data.shuffle,
            range(first_step, budget.num_steps),
            config.model.image_size,
            config.augmentation,
        )

        with metrics_log(folder, topology) as log:

            def on_step(report: StepReport) -> None:
                display.show(report)
                log(report)
                done = report.step + 1
                if done % budget.steps_per_epoch == 0 or done == budget.num_steps:
                    kept = averager.state()
                    save_checkpoint(folder, done, model, engine.optimizer, kept, plan, comm, topology)
                    comm.ledger.flush(is_durable=True)

            engine.run(batches, first_step, on_step)
        display.close()
        witness_ledgers(comm, topology)
    if topology.is_leader:
        console.print(f"trained {budget.num_steps} steps; run folder: {run}", highlight=False)


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
    sharing = config.sharing
    return build_plan(
        tensor_specs(model),
        config.private_patterns,
        sharing.batchnorm,
        sharing.every,
        sharing.exchange,
        sharing.wire,
        config.moments,
    )


def contract_items(
    config: Config, plan: SharingPlan, model: torch.nn.Module, data: TrainingData
) -> dict[str, str]:
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
    return items | plan.items() | {"model's first shared weights": shared_digest(plan, model)}


def shared_digest(plan: SharingPlan, model: torch.nn.Module) -> str:
    """Return the SHA-256 of a model's shared tensors, in the plan's order."""
    tensors, digest = model.state_dict(), hashlib.sha256()
    for name in plan.names(Scope.SHARED):
        digest.update(tensors[name].contiguous().cpu().numpy())
    return digest.hexdigest()


def check_shared_weights(
    plan: SharingPlan, model: torch.nn.Module, comm: Communicator, topology: Topology, step: int
) -> None:
    """Raise where sites resume from different shared weights; between averages they may. Collective: all."""
    if step % plan.every == 0:
        check_contract(comm, topology, {f"shared weights after {step} steps": shared_digest(plan, model)})


def print_agreed(console: Console, config: Config, plan: SharingPlan, budget: Budget, has_key: bool) -> None:
    """Say what will leave each site, how much of each site's data an epoch covers, and whom the ranks trust."""
    console.print(plan_table(plan, budget.num_steps))
    covered = ", ".join(
        f"{name} {passes:.2f} passes over {studies} studies"
        for name, passes, studies in zip(
            config.sites, budget.passes_per_epoch, budget.studies_per_site, strict=True
        )
    )
    console.print(f"an epoch: {budget.steps_per_epoch} steps: {covered}", highlight=False, soft_wrap=True)
    trust = "all ranks hold the same key" if has_key else "no --key: whoever the launcher started is trusted"
    console.print(f"{trust}; what travels is not encrypted (docs/privacy.md)", highlight=False, soft_wrap=True)


def witness_ledgers(comm: Communicator, topology: Topology) -> None:
    """Write the end of every rank's ledger into each, and close them. Collective: every rank."""
    own = torch.frombuffer(bytearray.fromhex(comm.ledger.head()), dtype=torch.uint8)
    heads = gather(comm, own, "head.ledger")
    names = [
        head_name(topology.site_names[site], topology.ranks_at(site).index(rank))
        for rank, site in enumerate(topology.site_of_rank)
    ]
    with together(comm, "closing its ledger"):
        comm.ledger.record_heads(
            {name: bytes(head.tolist()).hex() for name, head in zip(names, heads, strict=True)}
        )
    comm.ledger.close()


def build_averager(
    config: Config,
    plan: SharingPlan,
    model: torch.nn.Module,
    comm: Communicator,
    topology: Topology,
    budget: Budget,
) -> Averager:
    """Weigh the sites and lay the model out for averaging."""
    weights = site_weights(config.sharing.weighting, budget.studies_per_site)
    if config.is_merged:  # every rank has an equal part of all studies, whatever its site
        weights = [site.ranks / topology.num_ranks for site in config.sites.values()]
    return EXCHANGES[plan.exchange](model, plan, comm, topology, weights)


def num_steps_before_launch(config: Config) -> int | None:
    """Return the steps of a run where config and the study files that are here tell them, else None."""
    try:
        sizes = []
        for site in config.sites.values():
            with StudyFile(site.data) as file:
                sizes.append(len(file.indices(Split.TRAIN)))
    except CxrHvdError:
        return config.training.max_steps
    merged = [sum(sizes)] * len(sizes)
    return budget_of(config, merged if config.is_merged else sizes).num_steps if all(sizes) else None


def agree_on_budget(config: Config, comm: Communicator, topology: Topology, data: TrainingData) -> Budget:
    """Find out how many studies each site has, and from that how long all train. Collective: every rank."""
    counts = gather(comm, torch.tensor([len(data.studies)]), "studies").flatten().tolist()
    return budget_of(config, [counts[topology.ranks_at(site)[0]] for site in range(topology.num_sites)])


def budget_of(config: Config, studies_per_site: list[int]) -> Budget:
    """Return how long a config trains on sites of these sizes. Pure; merged sites each count all studies."""
    ranks = [site.ranks for site in config.sites.values()]
    sharers = [sum(ranks) if config.is_merged else own for own in ranks]
    studies_per_step = [config.training.batch_size * own for own in sharers]
    passes = [-(-studies // taken) for studies, taken in zip(studies_per_site, studies_per_step, strict=True)]
    asked = config.training.steps_per_epoch
    steps_per_epoch = asked if isinstance(asked, int) else max(passes) if asked == "largest" else min(passes)
    num_steps = config.training.epochs * steps_per_epoch
    return Budget(
        num_steps=min(num_steps, config.training.max_steps or num_steps),
        steps_per_epoch=steps_per_epoch,
        studies_per_site=studies_per_site,
        passes_per_epoch=[
            steps_per_epoch * taken / studies
            for taken, studies in zip(studies_per_step, studies_per_site, strict=True)
        ],
    )


def resume_run(folder: RunFolder, config: Config, engine: Engine, comm: Communicator, topology: Topology) -> int:
    """Put the latest checkpoint back and return its number of steps. Collective: every rank."""
    with together(comm, "reading its checkpoint"):
        if not folder.latest_step():
            raise UsageError(f"{folder.path}: nothing to resume; start without --resume")
        check_same_config(folder, config)
        first_step = load_weights(folder, engine.model)
        load_optimizer(folder, engine.model, engine.optimizer, topology)
        engine.averager.load_state(load_exchange(folder, topology))
    steps = gather(comm, torch.tensor([first_step]), "steps.resume").flatten()
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


def record_run(folder: RunFolder, config: Config, plan: SharingPlan, data: TrainingData, budget: Budget) -> None:
    """Write down what this run is: resolved config, plan, environment, data."""
    resolved = config.model_dump(mode="json")
    for name, site in config.sites.items():
        resolved["sites"][name]["data"] = str(site.data.resolve())
    folder.write_record("config.yaml", resolved)
    folder.write_record("plan.json", plan.as_json())
    packages = (*COMPARED_VERSIONS, "h5py", "mpi4py", "opencv-python-headless", "scikit-learn")
    environment = {
        "cxr_hvd": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "packages": {name: version(name) for name in packages},
        "data": {file.header.site: file.digest for file in data.files},
        "budget": asdict(budget),
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
