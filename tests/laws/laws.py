"""Laws of ranks that work together. Each runs on every rank of one job; test_laws.py starts the jobs.

A law takes this rank's communicator and a folder that all ranks share, and asserts. Jobs are started with 2 and
with 3 ranks; a law says what it needs where that matters.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch
from torch import Tensor, nn

from cxr_hvd.comm.communicator import allgather, allgather_text, together
from cxr_hvd.comm.contract import check_contract
from cxr_hvd.comm.horovod import HorovodComm
from cxr_hvd.comm.job import Job
from cxr_hvd.comm.local import LocalComm
from cxr_hvd.comm.sites import Topology, bind
from cxr_hvd.config.file import parse_config
from cxr_hvd.config.schema import PRESETS, Config, Training
from cxr_hvd.data.loader import Batch
from cxr_hvd.errors import ConfigError, ContractError, DataError, PeerError, TrainingError
from cxr_hvd.files import point_link
from cxr_hvd.models.build import build_model, tensor_specs
from cxr_hvd.partial.averager import EXCHANGES, Averager, site_weights
from cxr_hvd.partial.plan import Exchange, Scope, SharingPlan, build_plan
from cxr_hvd.training.engine import Engine
from cxr_hvd.training.train import LaunchOptions, train
from lab.study_files import write_study_file

# By day the laws run on the small network; at night the same laws run on the published one.
NETWORK = os.environ.get("CXR_LAWS_NETWORK", "tiny")
NUM_LABELS = 14
ENDS = PRESETS["ends"]
GO_ON = LaunchOptions(resume="latest")
NO_OPTIMIZER = torch.optim.SGD([nn.Parameter(torch.zeros(1))])


# ---- what the laws are made of


def one_rank_a_site(comm: HorovodComm) -> Topology:
    return bind(comm, {f"site{rank}": 1 for rank in range(comm.num_ranks)})


def fresh_model(seed: int = 3) -> nn.Module:
    """The laws' network with first weights by the seed."""
    return build_model(NETWORK, NUM_LABELS, seed)


def scattered_model(rank: int) -> nn.Module:
    """The laws' network, every tensor of which differs from rank to rank."""
    model = fresh_model(seed=7)
    generator = torch.Generator().manual_seed(100 + rank)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator))
            else:
                tensor.fill_(rank)
    return model


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def digest(tensors: dict[str, Tensor], names: tuple[str, ...]) -> str:
    return hashlib.sha256(b"".join(tensors[name].numpy().tobytes() for name in names)).hexdigest()


def is_equal_everywhere(comm: HorovodComm, said: str) -> bool:
    return len(set(allgather_text(comm, said, "contract.laws"))) == 1


def random_batch(seed: int, size: int = 32) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(4, 2, size, size, generator=generator)
    targets = (torch.rand(4, 14, generator=generator) < 0.5).float()
    return Batch(images, targets, torch.ones(4, 14, dtype=torch.bool))


def averager_of(
    model: nn.Module,
    plan: SharingPlan,
    comm: HorovodComm,
    topology: Topology,
    studies: list[int] | None = None,
) -> Averager:
    weights = site_weights("studies" if studies else "uniform", studies or [1] * topology.num_sites)
    return EXCHANGES[plan.exchange](model, plan, Job(comm, topology), weights)


def average(averager: Averager, step: int = 0, is_last: bool = False) -> None:
    averager.after_update(step, is_last, NO_OPTIMIZER)


def scattered_tensors(comm: HorovodComm) -> list[dict[str, Tensor]]:
    """The tensors of each rank's scattered model, in float64."""
    return [
        {name: tensor.double() for name, tensor in scattered_model(rank).state_dict().items()}
        for rank in range(comm.num_ranks)
    ]


def assert_mean(
    tensors: dict[str, Tensor], names: Iterable[str], of_rank: list[dict[str, Tensor]], weights: list[float]
) -> None:
    """Hold tensors against the weighted mean over ranks, reckoned in float64 in this process alone."""
    for name in names:
        mean = torch.stack([w * each[name] for w, each in zip(weights, of_rank, strict=True)]).sum(0)
        torch.testing.assert_close(tensors[name].double(), mean, rtol=1e-6, atol=1e-6)


@contextmanager
def recorded_collectives() -> Iterator[list[tuple[str, Tensor, int]]]:
    """Record (name, content, address) of every tensor that is handed to any of Horovod's collectives."""
    records: list[tuple[str, Tensor, int]] = []
    kinds = ("allreduce", "allgather", "broadcast", "alltoall", "reducescatter")
    originals = {n: f for n, f in vars(hvd).items() if callable(f) and any(kind in n for kind in kinds)}

    def note(name: str, tensor: Tensor) -> None:
        records.append((name, tensor.detach().clone(), tensor.data_ptr()))

    def recorder(name: str, function: Any) -> Any:
        def call(first: Any, *args: Any, **kwargs: Any) -> Any:
            for tensor in first if isinstance(first, list) else [first]:
                note(kwargs.get("name", name), tensor)
            return function(first, *args, **kwargs)

        return call

    for name, function in originals.items():
        setattr(hvd, name, recorder(name, function))
    try:
        yield records
    finally:
        for name, function in originals.items():
            setattr(hvd, name, function)


def config_for(folder: Path, comm: HorovodComm, **sections: Any) -> Config:
    """Make one study file a rank (unequal sizes) and the config that trains on them."""
    sites = {f"site{rank}": {"data": str(folder / f"site{rank}.h5")} for rank in range(comm.num_ranks)}
    write_study_file(
        folder / f"site{comm.rank}.h5", num_studies=16 + 8 * comm.rank, seed=comm.rank, site=f"site{comm.rank}"
    )
    tree: dict[str, Any] = {"experiment": "D", "sites": sites, "model": {"name": NETWORK, "image_size": 32}}
    tree["training"] = {"epochs": 2, "batch_size": 4, "precision": "fp32"}
    for name, section in sections.items():
        tree[name] = {**tree[name], **section} if isinstance(section, dict) and name in tree else section
    return parse_config(tree, "laws")


def fails_with(kind: type[Exception] | tuple[type[Exception], ...], text: str, action: Any) -> None:
    try:
        action()
    except kind as error:
        assert text in str(error), f"expected '{text}' in: {error}"
        assert "\n" not in str(error)
    else:
        raise AssertionError(f"expected {kind}: {text}")


# ---- averaging


def shared_tensors_become_the_mean_and_are_bit_equal_on_all_ranks(comm: HorovodComm, folder: Path) -> None:
    model = scattered_model(comm.rank)
    plan = build_plan(tensor_specs(model), ENDS)
    average(averager_of(model, plan, comm, one_rank_a_site(comm)))
    after = values(model)
    assert is_equal_everywhere(comm, digest(after, plan.names(Scope.SHARED)))
    weights = [1 / comm.num_ranks] * comm.num_ranks
    assert_mean(after, plan.names(Scope.SHARED), scattered_tensors(comm), weights)


def private_tensors_and_counters_stay_bit_equal(comm: HorovodComm, folder: Path) -> None:
    model = scattered_model(comm.rank)
    plan = build_plan(tensor_specs(model), ENDS)
    before = values(model)
    average(averager_of(model, plan, comm, one_rank_a_site(comm)))
    after = values(model)
    for name in plan.names(Scope.PRIVATE) + plan.names(Scope.LOCAL):
        assert torch.equal(before[name], after[name]), name
    assert not is_equal_everywhere(comm, digest(after, plan.names(Scope.PRIVATE)))


def averaging_equal_models_changes_nothing(comm: HorovodComm, folder: Path) -> None:
    model = scattered_model(rank=0)
    plan = build_plan(tensor_specs(model), ())
    before = values(model)
    average(averager_of(model, plan, comm, one_rank_a_site(comm)))
    exactly = comm.num_ranks == 2  # a third is not a binary fraction
    for name, tensor in values(model).items():
        assert torch.equal(before[name], tensor) or not exactly, name
        torch.testing.assert_close(before[name], tensor, rtol=3e-7, atol=3e-7)


def the_order_of_ranks_changes_nothing(comm: HorovodComm, folder: Path) -> None:
    results = []
    for rank in (comm.rank, comm.num_ranks - 1 - comm.rank):
        model = scattered_model(rank)
        plan = build_plan(tensor_specs(model), ())
        average(averager_of(model, plan, comm, one_rank_a_site(comm)))
        results.append(values(model))
    for name in plan.names(Scope.SHARED):
        if comm.num_ranks == 2:
            assert torch.equal(results[0][name], results[1][name]), name
        torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-6, atol=1e-6)


def sites_weigh_by_their_studies_where_asked(comm: HorovodComm, folder: Path) -> None:
    model = scattered_model(comm.rank)
    plan = build_plan(tensor_specs(model), ENDS)
    studies = [10 * (rank + 1) for rank in range(comm.num_ranks)]
    average(averager_of(model, plan, comm, one_rank_a_site(comm), studies))
    weights = [count / sum(studies) for count in studies]
    assert_mean(model.state_dict(), plan.names(Scope.SHARED), scattered_tensors(comm), weights)


def a_site_weighs_one_share_however_many_ranks_it_has(comm: HorovodComm, folder: Path) -> None:
    """With 3 ranks: sites of 1 and 2. Shared: over sites; private: over the ranks of the site."""
    topology = bind(comm, {"one": 1, "many": comm.num_ranks - 1})
    model = scattered_model(comm.rank)
    plan = build_plan(tensor_specs(model), ENDS)
    average(averager_of(model, plan, comm, topology))
    others = comm.num_ranks - 1
    shared_weights = [0.5] + [0.5 / others] * others
    own_weights = [1.0] + [0.0] * others if comm.rank == 0 else [0.0] + [1 / others] * others
    of_rank = scattered_tensors(comm)
    for scope, weights in ((Scope.SHARED, shared_weights), (Scope.PRIVATE, own_weights)):
        assert_mean(model.state_dict(), plan.names(scope), of_rank, weights)


def every_third_step_averages_and_the_others_do_not(comm: HorovodComm, folder: Path) -> None:
    model = scattered_model(comm.rank)
    plan = build_plan(tensor_specs(model), (), every=3)
    averager = averager_of(model, plan, comm, one_rank_a_site(comm))
    before = values(model)
    for step in (0, 1):
        average(averager, step)
    assert all(torch.equal(before[name], tensor) for name, tensor in values(model).items())
    average(averager, 2)
    assert is_equal_everywhere(comm, digest(values(model), plan.names(Scope.SHARED)))


def the_last_step_averages_whatever_the_pace(comm: HorovodComm, folder: Path) -> None:
    model = scattered_model(comm.rank)
    plan = build_plan(tensor_specs(model), (), every=3)
    average(averager_of(model, plan, comm, one_rank_a_site(comm)), 0, is_last=True)
    assert is_equal_everywhere(comm, digest(values(model), plan.names(Scope.SHARED)))


# ---- training


def engine_for(
    comm: Any, topology: Topology, patterns: tuple[str, ...], exchange: Exchange = "weights"
) -> tuple[Engine, SharingPlan]:
    model = fresh_model()
    plan = build_plan(tensor_specs(model), patterns, exchange=exchange)
    averager = averager_of(model, plan, comm, topology)
    settings = Training(precision="fp32", learning_rate=1e-3, schedule="constant")
    return Engine(model, averager, comm, topology, settings, 3, plan), plan


def no_private_tensor_enters_a_collective(comm: HorovodComm, folder: Path) -> None:
    topology = one_rank_a_site(comm)
    engine, plan = engine_for(comm, topology, ENDS)
    tensors = engine.model.state_dict()
    kept = [tensors[name] for name in plan.names(Scope.PRIVATE) + plan.names(Scope.LOCAL)]
    batches = iter([random_batch(10 * comm.rank + step) for step in range(3)])
    shared_before: list[Tensor] = []
    after_update = engine.averager.after_update

    def note_then_average(*args: Any) -> None:
        shared_before.append(torch.cat([tensors[name].reshape(-1) for name in plan.names(Scope.SHARED)]))
        after_update(*args)

    engine.averager.after_update = note_then_average  # type: ignore[method-assign]
    with recorded_collectives() as records:
        engine.run(batches, 0, lambda report: None)
    for _, sent, address in records:
        for tensor in kept:
            start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
            assert address + sent.nbytes <= start or end <= address
    # Nothing but each step's shared tensors, once, and one pulse a step.
    averages = [sent for name, sent, _ in records if name.startswith("weights.")]
    others = [sent for name, sent, _ in records if not name.startswith("weights.")]
    sent = torch.cat(averages).sort().values
    assert torch.equal(sent, (torch.cat(shared_before) / comm.num_ranks).sort().values) or comm.num_ranks == 3
    assert sent.numel() == torch.cat(shared_before).numel()
    assert [each.numel() for each in others] == [5, 5, 5]


def private_tensors_train_as_alone_given_the_same_shared_weights(
    comm: HorovodComm, folder: Path, exchange: Exchange = "weights"
) -> None:
    topology = one_rank_a_site(comm)
    engine, plan = engine_for(comm, topology, ENDS, exchange)
    alone_at = Topology(0, ("alone",), (0,))
    alone, alone_plan = engine_for(LocalComm(), alone_at, ("*",))
    assert not alone_plan.names(Scope.SHARED)
    tensors, tensors_alone = engine.model.state_dict(), alone.model.state_dict()
    for step in range(3):
        batch = random_batch(10 * comm.rank + step)
        for name in plan.names(Scope.SHARED):
            tensors_alone[name].copy_(tensors[name])
        for each in (engine, alone):
            each.model.train()
            each.train_step(batch, step)
        for name in plan.names(Scope.PRIVATE) + plan.names(Scope.LOCAL):
            assert torch.equal(tensors[name], tensors_alone[name]), f"{name} in step {step}"
        assert is_equal_everywhere(comm, digest(tensors, plan.names(Scope.SHARED)))
    assert not is_equal_everywhere(comm, digest(tensors, plan.names(Scope.PRIVATE)))


def a_loss_that_is_not_finite_stops_all_ranks_and_names_the_site(comm: HorovodComm, folder: Path) -> None:
    engine, _ = engine_for(comm, one_rank_a_site(comm), ENDS)
    batch = random_batch(comm.rank)
    if comm.rank == 1:
        batch.images.fill_(float("nan"))
    fails_with(TrainingError, "site site1, rank 1", lambda: engine.run(iter([batch]), 0, lambda report: None))


def stop_after_the_first_checkpoint(comm: HorovodComm, config: Config, folder: Path) -> None:
    """Copy the run `whole`, which has two checkpoints, to `stopped`, which has only the first."""
    with together(comm, "copying the run"):
        if comm.rank == 0:
            shutil.copytree(folder / "whole", folder / "stopped", symlinks=True)
            for site in config.sites:
                checkpoints = folder / "stopped" / site / "checkpoints"
                first, last = sorted(checkpoints.glob("step-*"), key=lambda path: int(path.name[5:]))
                shutil.rmtree(last)
                point_link(checkpoints / "latest", first)


def resuming_equals_never_stopping_bit_for_bit(comm: HorovodComm, folder: Path) -> None:
    config = config_for(folder, comm)
    train(config, folder / "whole", comm)
    stop_after_the_first_checkpoint(comm, config, folder)
    other = config.model_copy(update={"seed": 99})
    fails_with(ConfigError, "seed was 1 and is 99 now", lambda: train(other, folder / "stopped", comm, GO_ON))
    train(config, folder / "stopped", comm, GO_ON)
    for file in ("shared", "private", "optimizer-0"):
        name = f"site{comm.rank}/checkpoints/latest/{file}.safetensors"
        assert (folder / "whole" / name).read_bytes() == (folder / "stopped" / name).read_bytes(), name
    assert oct((folder / "whole" / f"site{comm.rank}").stat().st_mode)[-3:] == "700"


def merged_training_deals_every_study_out_once_a_pass(comm: HorovodComm, folder: Path) -> None:
    from cxr_hvd.data.studies import open_training_data

    config = config_for(folder, comm, experiment="B")
    allgather(comm, torch.zeros(1), "verdict.files are written")
    data = open_training_data(config, one_rank_a_site(comm))
    mine = [
        position for step in range(data.shuffle.steps_per_epoch) for position, _ in data.shuffle.batch_at(step)
    ]
    dealt = [json.loads(text) for text in allgather_text(comm, json.dumps(mine), "contract.laws")]
    by_place = [p for step in range(0, len(mine), 4) for rank in dealt for p in rank[step : step + 4]]
    assert sorted(by_place[: len(data.studies)]) == list(range(len(data.studies)))


# ---- agreement


def a_failure_on_one_rank_is_a_verdict_on_all(comm: HorovodComm, folder: Path) -> None:
    def body() -> None:
        with together(comm, "reading a table"):
            if comm.rank == 1:
                raise DataError("secret.csv: row 7: no such column")

    if comm.rank == 1:
        fails_with(DataError, "row 7", body)
    else:
        fails_with(PeerError, "rank 1 failed while reading a table", body)


def a_difference_is_named_with_sites_and_values_on_every_rank(comm: HorovodComm, folder: Path) -> None:
    topology = one_rank_a_site(comm)
    items = {"config.seed": "1", "label order": "a, b", "version of torch": "2.14.1"}
    check_contract(Job(comm, topology), items)
    if comm.rank == 1:
        items["label order"] = "b, a"
    action = lambda: check_contract(Job(comm, topology), items)  # noqa: E731
    fails_with(ContractError, "label order", action)
    fails_with(ContractError, "'b, a' at site site1, rank 1", action)


def ranks_find_their_sites_by_order_or_by_their_own_word(comm: HorovodComm, folder: Path) -> None:
    last = comm.num_ranks - 1
    sites = {f"site{rank}": 1 for rank in range(comm.num_ranks)}
    assert bind(comm, sites).site == f"site{comm.rank}"
    said = {"CXR_SITE": f"site{last - comm.rank}"}
    assert bind(comm, sites, said).site == f"site{last - comm.rank}"
    by_host = {"SLURMD_NODENAME": f"node{comm.rank}.cluster"}
    by_host["CXR_SITE_HOSTS"] = " ".join(f"site{last - rank}=node{rank}" for rank in range(comm.num_ranks))
    assert bind(comm, sites, by_host).site == f"site{last - comm.rank}"
    assert bind(comm, sites, by_host | {"CXR_SITE": f"site{comm.rank}"}).site == f"site{comm.rank}"
    only_one = {"CXR_SITE": "site0"} if comm.rank == 0 else {}
    fails_with(ConfigError, "CXR_SITE is not set on rank 1", lambda: bind(comm, sites, only_one))
    fails_with(ConfigError, f"found {comm.num_ranks}", lambda: bind(comm, {"lone": 1}))
    wrong = {"CXR_SITE": "sitr1" if comm.rank == 1 else f"site{comm.rank}"}
    kind = ConfigError if comm.rank == 1 else PeerError
    fails_with(kind, "did you mean 'site1'" if comm.rank == 1 else "rank 1", lambda: bind(comm, sites, wrong))
    by_host["SLURMD_NODENAME"] = "login1" if comm.rank == 1 else f"node{comm.rank}"
    unknown = "has no site for host login1" if comm.rank == 1 else "rank 1"
    fails_with(kind, unknown, lambda: bind(comm, sites, by_host))


def texts_of_any_length_arrive_whole(comm: HorovodComm, folder: Path) -> None:
    texts = ["", "ä" * 1000, "plain"]
    assert allgather_text(comm, texts[comm.rank], "contract.laws") == texts[: comm.num_ranks]
    too_long = "x" * (2 << 20) if comm.rank == 1 else "x"
    fails_with(ContractError, "at most", lambda: allgather_text(comm, too_long, "contract.laws"))


def a_frozen_peer_does_not_stop_python(comm: HorovodComm, folder: Path) -> None:
    pids = allgather(comm, torch.tensor([os.getpid()]), "verdict.process ids").flatten().tolist()
    if comm.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    if comm.rank == 0:
        # Should this rank stand still, too, a process apart thaws the other, so that the law fails and ends.
        subprocess.Popen(["sh", "-c", f"sleep 10; kill -CONT {pids[1]}"])
        time.sleep(1.0)  # Horovod's own thread now waits for the frozen rank
        ticks: list[float] = []

        def tick_then_thaw() -> None:
            while len(ticks) < 20:
                ticks.append(time.monotonic())
                time.sleep(0.1)
            os.kill(pids[1], signal.SIGCONT)

        thread = threading.Thread(target=tick_then_thaw)
        thread.start()
    allgather(comm, torch.zeros(1), "verdict.handed over while rank 1 is frozen")
    if comm.rank == 0:
        thread.join()
        assert max(later - earlier for earlier, later in pairwise(ticks)) < 1.0


# ---- not a law: what a hanging rank looks like to the tests


def rank_1_hangs(comm: HorovodComm, folder: Path) -> None:
    if comm.rank == 1:
        time.sleep(10_000)
    allgather(comm, torch.from_numpy(np.zeros(1, dtype=np.float32)), "verdict.waits for rank 1")
