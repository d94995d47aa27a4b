"""The main job: bind ranks to sites, agree, train with partial averaging, keep checkpoints.

`train` is read from top to bottom by every rank. Each phase says who takes part.
"""

import os
from contextlib import ExitStack
from pathlib import Path

import torch

from cxr_hvd.collective.averaging import EXCHANGES, Averager, site_weights
from cxr_hvd.collective.comm import Communicator, gather, together
from cxr_hvd.collective.contract import check_contract
from cxr_hvd.collective.key import prove_key
from cxr_hvd.collective.sharing import SharingPlan
from cxr_hvd.collective.sites import Topology, bind
from cxr_hvd.config import Config
from cxr_hvd.errors import UsageError
from cxr_hvd.training.agreement import check_same_config, check_shared_weights, contract_items, plan_of
from cxr_hvd.training.budget import Budget, agree_on_budget
from cxr_hvd.training.checkpoint import (
    RunFolder,
    load_exchange,
    load_optimizer,
    load_weights,
    save_checkpoint,
)
from cxr_hvd.training.data import open_training_data
from cxr_hvd.training.display import TrainingDisplay, console_for, print_agreed
from cxr_hvd.training.engine import Engine, StepReport
from cxr_hvd.training.loader import train_batches
from cxr_hvd.training.model import build_model
from cxr_hvd.training.record import metrics_log, open_ledger, record_run, witness_ledgers


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
        budget = agree_on_budget(config, comm, topology, len(data.studies))
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
        open_ledger(folder, comm, topology, first_step)

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
