"""The main job: bind ranks to sites, agree, train with partial averaging, keep checkpoints.

`train` is read from top to bottom by every rank. Each phase says who takes part.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import record_function

from cxr_hvd.comm.communicator import Communicator, together
from cxr_hvd.comm.contract import check_contract, gather_digests
from cxr_hvd.comm.device import binding_remark, choose_device, set_threads
from cxr_hvd.comm.job import Job
from cxr_hvd.comm.key import prove_key
from cxr_hvd.comm.sites import bind
from cxr_hvd.config.schema import Config
from cxr_hvd.data.loader import batching_of_run, train_batches
from cxr_hvd.data.staging import stage
from cxr_hvd.data.studies import open_training_data
from cxr_hvd.errors import Stopped
from cxr_hvd.launch.job_console import console_for
from cxr_hvd.launch.orphan import LauncherWatch
from cxr_hvd.models.build import build_model
from cxr_hvd.models.forward import full_float32
from cxr_hvd.partial.blocks import tensor_specs
from cxr_hvd.partial.weighting import site_weights
from cxr_hvd.training.agreement import agree_on_budget, contract_items, find_twins
from cxr_hvd.training.between_steps import BetweenSteps, cadence_of_run
from cxr_hvd.training.checkpoint.writer import CheckpointWriter
from cxr_hvd.training.display import TrainingDisplay, print_agreed, twins_warning
from cxr_hvd.training.engine import Engine
from cxr_hvd.training.first_weights import load_first_weights
from cxr_hvd.training.log import Log, open_ledger, witness_ledgers
from cxr_hvd.training.loss import build_loss
from cxr_hvd.training.network_record import describe_network
from cxr_hvd.training.open_run import Resume, RunSetup, open_run
from cxr_hvd.training.profiling import profiled
from cxr_hvd.training.records import Budget, Verdict
from cxr_hvd.training.run_folder import RunFolder
from cxr_hvd.training.sharing import plan_sharing
from cxr_hvd.training.state import start_state
from cxr_hvd.training.status import status_kept
from cxr_hvd.training.status_delay import steps_late
from cxr_hvd.training.step_report import StepReport
from cxr_hvd.training.stopping import REASONS, StopRequest
from cxr_hvd.training.validation import Validator


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
    with stop.listening(), watched(comm), full_float32(), ExitStack() as opened:
        opened.callback(LauncherWatch(stop.lose_launcher).stop)

        # Every rank finds its site, fits its threads to the machine and opens its own data.
        topology = bind(comm, {name: site.ranks for name, site in config.sites.items()})
        comm.watchdog.call_rank(topology.name_of(topology.rank))
        set_threads(comm)
        with together(comm, "opening its study file"):
            job = Job(comm, topology, choose_device(config.training.device, comm))
            data = open_training_data(config, topology, staged_in(options.stage, comm))
            for file in data.files:
                opened.callback(file.close)

        # Every rank builds the same network and plan, and all agree on them before a tensor moves.
        folder, label_names = RunFolder(run, job.site), data.studies.label_names
        with job.together("building its network"):
            model = build_model(config.model, len(label_names), config.seed)
        with job.together("reading its weights"):
            may_resume = options.resume != "never"
            first = load_first_weights(config.model.weights, model, label_names, folder, may_resume)
        with job.together("making the sharing plan"):
            plan = plan_sharing(config, tensor_specs(model))
        agree(contract_items(config, plan, model, data, first.compared), options.key, job)
        transport = comm.use_device(job.device)
        budget = agree_on_budget(config, job, data)
        network = describe_network(config, plan, data, job, first.trained_labels)
        twins = find_twins(data.own_file, job)
        if job.is_leader:
            print_agreed(console, config, plan, budget, has_key=options.key is not None)
            if first.table:
                console.print(first.table.as_table())
            for names in twins:
                console.print(twins_warning(names), highlight=False, soft_wrap=True)
            if remark := binding_remark(comm):
                console.print(remark, highlight=False)
            if transport.has_gpus and comm.num_ranks > 1:
                console.print(str(transport), highlight=False)

        # Every rank lays the network out for averaging.
        weights = weigh_sites(config, budget, job)
        state = start_state(model.to(job.device), config.training, job, plan, weights)
        with job.together("building its loss"):
            studies = data.studies
            loss = build_loss(config.loss, studies.label_names, studies.targets, studies.known).to(job.device)

        # Each site's leader keeps the run folder; every rank goes on from the same step.
        setup = RunSetup(config, plan, data, budget, first)
        first_step, history = open_run(folder, setup, state, job, options.resume, options.overwrite, console)
        open_ledger(folder, job, first_step)
        opened.enter_context(status_kept(folder, job, budget.num_steps))

        # Each site's leader writes its curves, the leader of all shows them.
        studies_per_step = config.training.batch_size * job.num_ranks
        log = opened.enter_context(closing(Log(folder, topology, first_step, studies_per_step)))
        display = TrainingDisplay(console, topology, first_step, budget.num_steps, studies_per_step)
        opened.callback(display.close)

        def show_verdict(verdict: Verdict) -> None:
            display.verdict(verdict)
            log.verdict(verdict)

        # Every rank takes the same steps; what is due between them follows from what all know.
        batching = batching_of_run(config, torch.get_num_threads())
        writer = CheckpointWriter(folder, job, config.checkpoints.keep)
        validation = Validator(data.validation_studies, config.validation, state, job, batching, history)
        cadence = cadence_of_run(config.checkpoints, config.validation, budget)
        between_steps = BetweenSteps(cadence, job, plan, network, state, writer, validation, stop, show_verdict)
        num_late = steps_late(plan, config.training, job.num_ranks)
        engine = Engine(
            state,
            job,
            plan,
            config.training,
            budget.num_steps,
            loss,
            ask=lambda: (stop.reason(num_late), writer.writing),
        )
        note_step = (
            opened.enter_context(profiled(folder, job, first_step, console)) if options.has_profile else None
        )

        def after_step(done: int, reports: Sequence[StepReport]) -> bool:
            for report in reports:
                display.show(report)
                log.step(report)
            with record_function("checkpoint"):
                is_over = between_steps.after_step(done, reports)
            if note_step:
                note_step()
            return is_over

        batches = train_batches(
            data.studies,
            data.shuffle,
            range(first_step, budget.num_steps),
            batching.image_size,
            config.augmentation,
            batching.threads,
            batching.prefetch,
            job.device,
        )
        is_over = between_steps.go_on_from(first_step)
        num_done = first_step if is_over else engine.run(batches, first_step, after_step, between_steps.is_due)

        # All ranks: the last checkpoint is finished, and every ledger witnesses the others.
        writer.finish()
        witness_ledgers(job)
        if between_steps.stopped_by:
            why = REASONS[between_steps.stopped_by]
            raise Stopped(
                f"stopped after step {num_done} of {budget.num_steps}, since {why}; a checkpoint is written: run "
                "again with --resume auto to go on"
            )
    if job.is_leader:
        console.print(f"trained {num_done} steps; run folder: {run}", highlight=False)


def agree(items: dict[str, str], key: bytes | None, job: Job) -> None:
    """Check that all ranks state the same items and hold the same key. Collective: every rank. Blocking.

    Raises:
        ContractError: on every rank, where they do not.
    """
    digests = gather_digests(job, items)
    prove_key(job, key, digests)
    check_contract(job, items, digests)


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


def weigh_sites(config: Config, budget: Budget, job: Job) -> list[float]:
    """Return what each site weighs in an average, summing to 1."""
    if config.is_merged:  # every rank has an equal part of all studies, whatever its site
        return [site.ranks / job.num_ranks for site in config.sites.values()]
    return site_weights(config.sharing.weighting, budget.studies_per_site)
