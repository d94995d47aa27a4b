"""The main job: bind ranks to sites, agree, train with partial averaging, keep checkpoints.

`train` is read from top to bottom by every rank. Each phase says who takes part.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.profiler import record_function

from cxr_hvd.comm.communicator import Communicator, together
from cxr_hvd.comm.contract import check_contract, gather_digests
from cxr_hvd.comm.device import binding_remark, choose_device, set_threads
from cxr_hvd.comm.job import Job
from cxr_hvd.comm.key import prove_key
from cxr_hvd.comm.sites import bind
from cxr_hvd.config.schema import Config
from cxr_hvd.console import Console
from cxr_hvd.data.loader import threads_for, train_batches
from cxr_hvd.data.staging import stage
from cxr_hvd.data.studies import TrainingData, open_training_data
from cxr_hvd.errors import Stopped
from cxr_hvd.launch.orphan import LauncherWatch
from cxr_hvd.models.build import build_model, tensor_specs
from cxr_hvd.partial.averager import EXCHANGES, Averager, site_weights
from cxr_hvd.partial.plan import SharingPlan
from cxr_hvd.training.agreement import (
    agree_on_budget,
    changed_settings,
    check_length,
    check_shared_weights,
    contract_items,
    describe_changes,
    find_twins,
)
from cxr_hvd.training.between_steps import BetweenSteps
from cxr_hvd.training.checkpoint.checkpoint import CheckpointWriter, agree_on_step, load_checkpoint
from cxr_hvd.training.display import TrainingDisplay, console_for, print_agreed, twins_warning
from cxr_hvd.training.engine import Engine, StepReport
from cxr_hvd.training.log import Log, open_ledger, record_run, record_settings, witness_ledgers
from cxr_hvd.training.loss import build_loss
from cxr_hvd.training.profiling import Profile
from cxr_hvd.training.records import Budget, Verdict
from cxr_hvd.training.run_folder import RunFolder, disk_errors
from cxr_hvd.training.sharing import plan_sharing
from cxr_hvd.training.status import status_kept
from cxr_hvd.training.stopping import REASONS, StopRequest
from cxr_hvd.training.validation import Validation

Resume = Literal["never", "latest", "auto"]
"""Whether to go on from the newest checkpoint: `latest` wants one, `auto` starts anew where there is none."""


@dataclass(frozen=True)
class LaunchOptions:
    """How a run is to be started and ended; what it is, is the config's.

    Attributes:
        resume, overwrite: what becomes of a run that is in the folder already.
        key: a secret that all ranks have to prove they hold, too; None trusts whoever the launcher started.
        deadline: by `time.monotonic()`, when all are to have stopped with a checkpoint; None: whenever they are
            done.
        has_profile: whether a few steps are recorded to see where the time goes.
        stage: a folder on the node's own disk to which each rank copies the study files that it opens.
    """

    resume: Resume = "never"
    overwrite: bool = False
    key: bytes | None = None
    deadline: float | None = None
    has_profile: bool = False
    stage: Path | None = None


FRESH_START = LaunchOptions()


def train(config: Config, run: Path, comm: Communicator, options: LaunchOptions = FRESH_START) -> None:
    """Train one model over all sites. Collective: every rank, with the same arguments. Blocking.

    Raises:
        Stopped: on every rank, where a rank was asked to stop and all have written a checkpoint.
        CxrHvdError: on every rank alike.
    """
    console, stop = console_for(comm.num_ranks), StopRequest(options.deadline)
    with stop.listening(), watched(comm), ExitStack() as opened:
        opened.callback(LauncherWatch(stop.lose_launcher).stop)
        # Every rank finds its site, opens its own data and fits its threads to the machine.
        ranks_per_site = {name: site.ranks for name, site in config.sites.items()}
        topology = bind(comm, ranks_per_site)
        comm.watchdog.call_rank(topology.name_of(topology.rank))
        set_threads(comm)
        with together(comm, "opening its study file"):
            job = Job(comm, topology, choose_device(config.training.device, comm))
            data = open_training_data(config, topology, staged_in(options.stage, comm))
            for file in data.files:
                opened.callback(file.close)

        # Every rank builds the same network and plan, and all agree on them before a tensor moves.
        model = build_model(config.model.name, len(data.studies.label_names), config.seed)
        with together(comm, "making the sharing plan"):
            plan = plan_sharing(config, tensor_specs(model))
        items = contract_items(config, plan, model, data)
        digests = gather_digests(job, items)
        prove_key(job, options.key, digests)
        check_contract(job, items, digests)
        budget = agree_on_budget(config, comm, topology, data)
        twins = find_twins(data.own_file, comm, topology)
        if topology.is_leader:
            print_agreed(console, config, plan, budget, has_key=options.key is not None)
            for names in twins:
                console.print(twins_warning(names), highlight=False, soft_wrap=True)
            if remark := binding_remark(comm):
                console.print(remark, highlight=False)
        averager = build_averager(config, plan, model.to(job.device), job, budget)
        with together(comm, "building its loss"):
            studies = data.studies
            loss = build_loss(config.loss, studies.label_names, studies.targets, studies.known)
        engine = Engine(
            model, averager, comm, topology, config.training, budget.num_steps, plan, loss.to(job.device)
        )

        # Each site's leader keeps the run folder; every rank goes on from the same step.
        folder = RunFolder(run, topology.site)
        first_step, validated = open_run(folder, config, engine, options, data, budget, console)
        open_ledger(folder, comm, topology, first_step)
        opened.enter_context(status_kept(folder, comm, topology, budget.num_steps))

        # Every rank takes the same steps; what is due between them follows from what all know.
        studies_per_step = config.training.batch_size * topology.num_ranks
        log = opened.enter_context(closing(Log(folder, topology, first_step, studies_per_step)))
        display = TrainingDisplay(console, topology, first_step, budget.num_steps, studies_per_step)
        opened.callback(display.close)
        num_threads = threads_for(config.loader.threads, torch.get_num_threads())
        validation = Validation(data.validation_studies, config, engine, num_threads)
        writer = CheckpointWriter(folder, comm, topology, config.checkpoints.keep)

        def show_verdict(verdict: Verdict) -> None:
            display.verdict(verdict)
            log.verdict(verdict)

        milestones = BetweenSteps(config, budget, engine, writer, validation, stop, show_verdict)
        note_step = (
            opened.enter_context(profiled(folder, engine, first_step, console)) if options.has_profile else None
        )

        def on_step(report: StepReport) -> bool:
            display.show(report)
            log.step(report)
            with record_function("checkpoint"):
                is_over = milestones.after_step(report)
            if note_step:
                note_step()
            return is_over

        batches = train_batches(
            data.studies,
            data.shuffle,
            range(first_step, budget.num_steps),
            config.model.image_size,
            config.augmentation,
            num_threads,
            config.loader.prefetch,
            job.device,
        )
        is_over = milestones.go_on_from(first_step, validated)
        num_done = first_step if is_over else engine.run(batches, first_step, on_step)
        writer.finish()
        witness_ledgers(comm, topology)
        if milestones.stopped_by:
            why = REASONS[milestones.stopped_by]
            raise Stopped(
                f"stopped after step {num_done} of {budget.num_steps}, since {why}; a checkpoint is written: run "
                "again with --resume auto to go on"
            )
    if topology.is_leader:
        console.print(f"trained {num_done} steps; run folder: {run}", highlight=False)


def staged_in(folder: Path | None, comm: Communicator) -> Callable[[Path], Path]:
    """Return what gives the path to open for a study file: a copy in `folder`, or without one the file itself."""
    if folder is None:
        return lambda path: path
    return lambda path: stage(path, folder, on_part=lambda: comm.watchdog.works("copying its study file"))


@contextmanager
def watched(comm: Communicator) -> Iterator[None]:
    """Have the watchdog look on while the body runs."""
    comm.watchdog.works("starting")
    try:
        yield
    finally:
        comm.watchdog.rests()


@contextmanager
def profiled(folder: RunFolder, engine: Engine, first_step: int, console: Console) -> Iterator[Callable[[], None]]:
    """Record some steps of the body in `profile/`, with Horovod's timeline; the leader shows what came of it.

    Collective: every rank; so is what it gives, to be called after each step.
    """
    path = folder.path / "profile"
    with together(engine.comm, "making a folder for the profile"), disk_errors(path):
        path.mkdir(mode=0o700, exist_ok=True)
    engine.comm.start_timeline(str(path / "horovod-timeline.json"))
    has_timeline = True

    def note_step() -> None:
        nonlocal has_timeline
        profile.step()
        if has_timeline and profile.spending:
            engine.comm.stop_timeline()
            has_timeline = False
            if engine.topology.is_leader:
                console.print(profile.summary())
                console.print(f"traces: {path} (chrome://tracing or ui.perfetto.dev)", highlight=False)

    with Profile(path, engine.topology.rank, first_step) as profile:
        yield note_step


def build_averager(
    config: Config,
    plan: SharingPlan,
    model: torch.nn.Module,
    job: Job,
    budget: Budget,
) -> Averager:
    """Weigh the sites and lay the model out for averaging."""
    weights = site_weights(config.sharing.weighting, budget.studies_per_site)
    if config.is_merged:  # every rank has an equal part of all studies, whatever its site
        weights = [site.ranks / job.num_ranks for site in config.sites.values()]
    return EXCHANGES[plan.exchange](model, plan, job, weights)


def open_run(
    folder: RunFolder,
    config: Config,
    engine: Engine,
    options: LaunchOptions,
    data: TrainingData,
    budget: Budget,
    console: Console,
) -> tuple[int, dict[str, Any]]:
    """Make the run folder, or go on in one. Collective: every rank.

    Returns:
        The number of steps that are done, and what the checkpoint remembers of validations.
    """
    comm, topology, plan = engine.comm, engine.topology, engine.plan
    step: int | None = None
    changed: dict[str, tuple[str, str]] = {}
    if options.resume != "never":
        with together(comm, "comparing its config with that of its run"):
            changed = changed_settings(folder, config)
        step = agree_on_step(folder, plan, comm, topology)
    if step is None:
        with together(comm, "making its run folder"):
            if options.resume == "latest":
                raise folder.nothing_to_resume()
            if topology.is_site_leader:
                folder.open_new(options.overwrite or options.resume == "auto")
                record_run(folder, config, plan, data, budget)
        return 0, {}
    with together(comm, "reading its checkpoint"):
        check_length(changed, step, budget.num_steps, folder)
        state = load_checkpoint(folder, step, engine)
    with together(comm, "going back to its checkpoint"):
        if topology.is_site_leader:
            folder.go_back_to(step)
            if changed:
                record_settings(folder, config, data, budget)
    if changed and topology.is_leader:
        said = describe_changes(changed, config, step, budget.num_steps)
        console.print(f"goes on from step {step}: {said}", highlight=False, markup=False)
    check_shared_weights(plan, engine.model, comm, topology, step)
    return step, dict(state["validation"])
