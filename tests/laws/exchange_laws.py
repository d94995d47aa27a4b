"""Laws of the two exchanges, short wires, contract, key and ledger; run as those of laws.py."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import horovod.torch as hvd
import torch
from torch import Tensor, nn

from cxr_hvd.comm.communicator import together
from cxr_hvd.comm.contract import check_contract, gather_digests
from cxr_hvd.comm.horovod import HorovodComm
from cxr_hvd.comm.job import Job
from cxr_hvd.comm.key import prove_key
from cxr_hvd.comm.local import LocalComm
from cxr_hvd.comm.sites import Topology, bind
from cxr_hvd.config.schema import Config, Training
from cxr_hvd.data.loader import Batch
from cxr_hvd.data.studies import open_training_data
from cxr_hvd.errors import CheckpointError, ContractError
from cxr_hvd.ledger.audit import audit
from cxr_hvd.ledger.reader import load_folders
from cxr_hvd.models.build import as_channels_last, tensor_specs
from cxr_hvd.partial.buffers import SharedMean
from cxr_hvd.partial.plan import Kind, Scope, SharingPlan, build_plan
from cxr_hvd.partial.wire import SHORT_DTYPES, ShortWire
from cxr_hvd.training.agreement import contract_items
from cxr_hvd.training.engine import Engine
from cxr_hvd.training.loss import MultiLabelLoss
from cxr_hvd.training.sharing import plan_sharing
from cxr_hvd.training.train import train
from tests.laws.laws import (
    ENDS,
    GO_ON,
    assert_mean,
    average,
    averager_of,
    config_for,
    digest,
    fails_with,
    fresh_model,
    is_equal_everywhere,
    one_rank_a_site,
    private_tensors_train_as_alone_given_the_same_shared_weights,
    random_batch,
    recorded_collectives,
    scattered_model,
    scattered_tensors,
    stop_after_the_first_checkpoint,
    values,
)

LAYOUTS = {2: [(2,), (1, 1)], 3: [(1, 1, 1), (1, 2)], 4: [(1, 3), (2, 2)]}
bce = MultiLabelLoss()
WHOLE_OR_ENDS = ((), ENDS)


def layouts(comm: HorovodComm) -> Iterator[Topology]:
    """Bind the job's ranks to sites in several ways, one after the other: the last binding holds."""
    for ranks_of_site in LAYOUTS[comm.num_ranks]:
        yield bind(comm, {f"site{site}": ranks for site, ranks in enumerate(ranks_of_site)})


def common_folder(comm: HorovodComm, folder: Path) -> Path:
    """Make a folder for all ranks."""
    with together(comm, "making a folder"):
        folder.mkdir(exist_ok=True)
    return folder


def partly_known_batch(rank: int) -> Batch:
    """A batch of which each rank knows another number of labels."""
    batch = random_batch(rank)
    batch.known[:, : 3 * rank] = False
    return batch


def engine_of(
    comm: Any, topology: Topology, plan_settings: dict[str, Any], optimizer: str = "adamw", **more: Any
) -> tuple[Engine, SharingPlan]:
    model = fresh_model()
    plan = build_plan(tensor_specs(model), **plan_settings)
    settings = Training(
        precision="fp32", learning_rate=1e-3, schedule="constant", optimizer=optimizer, weight_decay=0.0, **more
    )
    return Engine(model, averager_of(model, plan, comm, topology), comm, topology, settings, 3, plan), plan


def gradients_of(model: nn.Module, batches: list[Batch]) -> dict[str, Tensor]:
    """Gradients of one batch made of several, in this process alone."""
    model.zero_grad()
    logits = model(torch.cat([each.images for each in batches]).to(next(model.parameters()).dtype))
    targets = torch.cat([each.targets for each in batches])
    loss = bce(logits, targets.to(logits.dtype), torch.cat([each.known for each in batches]))
    loss.backward()
    return {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }


# ---- two levels


def weights_become_the_mean_over_sites_whatever_their_ranks(comm: HorovodComm, folder: Path) -> None:
    of_rank = scattered_tensors(comm)
    for topology in layouts(comm):
        model = scattered_model(comm.rank)
        plan = build_plan(tensor_specs(model), ENDS)
        studies = [3, 1, 2][: topology.num_sites]
        average(averager_of(model, plan, comm, topology, studies))
        ranks_at = [topology.ranks_at(site) for site in range(topology.num_sites)]
        weights = [studies[s] / sum(studies) / len(ranks_at[s]) for s in topology.site_of_rank]
        mates = topology.ranks_of_site
        own = [1 / len(mates) if rank in mates else 0.0 for rank in range(comm.num_ranks)]
        for scope, expected in ((Scope.SHARED, weights), (Scope.PRIVATE, own)):
            assert_mean(model.state_dict(), plan.names(scope), of_rank, expected)


def gradients_are_those_of_each_sites_whole_batch(comm: HorovodComm, folder: Path) -> None:
    """N ranks of one site are one rank with the N-fold batch; sites weigh alike; private ones keep their scale.

    BatchNorm is in evaluation mode: its batch statistics are each rank's own.
    """
    batches = [partly_known_batch(rank) for rank in range(comm.num_ranks)]
    for topology in layouts(comm):
        model = fresh_model().eval()
        plan = build_plan(tensor_specs(model), ENDS, exchange="gradients")
        averager = averager_of(model, plan, comm, topology)
        batch = batches[comm.rank]
        loss = bce(model(batch.images), batch.targets, batch.known)
        averager.begin(0, int(batch.known.sum()))
        loss.backward()  # type: ignore[no-untyped-call]
        averager.before_update()
        found = {name: parameter.grad for name, parameter in model.named_parameters()}
        alone = fresh_model().eval().double()
        of_site = [
            gradients_of(alone, [batches[rank] for rank in topology.ranks_at(site)])
            for site in range(topology.num_sites)
        ]
        for planned in plan.tensors:
            name = planned.spec.name
            if planned.spec.kind is not Kind.PARAMETER:
                continue
            expected = of_site[topology.site_index][name]
            if planned.scope is Scope.SHARED:
                expected = torch.stack([each[name] for each in of_site]).mean(0)
            gradient = found[name]
            assert gradient is not None
            error = (gradient.double() - expected).abs().max() / expected.abs().max()
            assert error < 1e-3, f"{name}: {error}"


def the_order_of_sites_changes_no_gradient(comm: HorovodComm, folder: Path) -> None:
    results = []
    names = [f"site{rank}" for rank in range(comm.num_ranks)]
    for order in (names, names[::-1]):
        topology = bind(comm, dict.fromkeys(order, 1), {"CXR_SITE": f"site{comm.rank}"})
        engine, plan = engine_of(comm, topology, {"private_patterns": ENDS, "exchange": "gradients"}, "sgd")
        engine.run(iter([random_batch(10 * comm.rank + step) for step in range(3)]), 0, lambda report: None)
        results.append(values(engine.model))
    for name in plan.names(Scope.SHARED):
        if comm.num_ranks == 2:
            assert torch.equal(results[0][name], results[1][name]), name
        torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-3, atol=1e-4)


# ---- nothing shared, everything shared


def sharing_nothing_is_training_alone_bit_for_bit(comm: HorovodComm, folder: Path) -> None:
    for exchange in ("weights", "gradients"):
        settings = {"private_patterns": ("*",), "exchange": exchange}
        engine, _ = engine_of(comm, one_rank_a_site(comm), settings)
        alone, _ = engine_of(LocalComm(), Topology(0, ("alone",), (0,)), {"private_patterns": ()})
        for each in (engine, alone):
            each.run(iter([random_batch(10 * comm.rank + step) for step in range(3)]), 0, lambda report: None)
        found, expected = values(engine.model), values(alone.model)
        assert all(torch.equal(found[name], expected[name]) for name in expected), exchange


def sharing_everything_is_horovods_own_optimizer(comm: HorovodComm, folder: Path) -> None:
    """Up to the rounding of one multiplication more: gradients are weighed before the sum, and by 1/N."""
    engine, _ = engine_of(comm, one_rank_a_site(comm), {"private_patterns": (), "exchange": "gradients"}, "sgd")
    engine.run(iter([random_batch(10 * comm.rank + step) for step in range(3)]), 0, lambda report: None)
    peer = fresh_model().train()
    sgd = torch.optim.SGD(peer.parameters(), lr=1e-3, momentum=0.9)
    horovods = hvd.DistributedOptimizer(sgd, named_parameters=peer.named_parameters())
    for step in range(3):
        batch = random_batch(10 * comm.rank + step)
        horovods.zero_grad()
        bce(peer(as_channels_last(batch.images)), batch.targets, batch.known).backward()  # type: ignore[no-untyped-call]
        horovods.step()
    for (name, found), expected in zip(engine.model.named_parameters(), peer.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


def exchanged_gradients_keep_shared_tensors_equal_and_private_ones_apart(comm: HorovodComm, folder: Path) -> None:
    private_tensors_train_as_alone_given_the_same_shared_weights(comm, folder, "gradients")


def shared_optimizer_state_is_equal_everywhere_and_local_is_not(comm: HorovodComm, folder: Path) -> None:
    for moments, is_shared in ((("exp_avg", "exp_avg_sq"), True), ((), False)):
        settings = {"private_patterns": ENDS, "moments": moments}
        engine, plan = engine_of(comm, one_rank_a_site(comm), settings)
        engine.run(iter([random_batch(10 * comm.rank + step) for step in range(3)]), 0, lambda report: None)
        state = {n: engine.optimizer.state[p]["exp_avg_sq"] for n, p in engine.model.named_parameters()}
        names = tuple(name for name in plan.names(Scope.SHARED) if name in state)
        assert is_equal_everywhere(comm, digest(state, names)) is is_shared
        assert not is_equal_everywhere(comm, digest(state, tuple(set(state) - set(names))))


# ---- short wires


def short_wires_keep_shared_tensors_equal_and_near_the_exact_mean(comm: HorovodComm, folder: Path) -> None:
    """One step: 16 bits round by 1/256 at most. What many steps come to is the next law's."""
    for exchange in ("weights", "gradients"):
        results = {}
        for wire in ("float32", "bfloat16", "float16"):
            settings = {"private_patterns": ENDS, "exchange": exchange, "wire": wire}
            engine, plan = engine_of(comm, one_rank_a_site(comm), settings, "sgd")
            engine.model.train()
            engine.train_step(random_batch(comm.rank), 0)
            results[wire] = values(engine.model)
            assert is_equal_everywhere(comm, digest(results[wire], plan.names(Scope.SHARED))), wire
        start = fresh_model().state_dict()
        names = [n for n in plan.names(Scope.SHARED) if "running" not in n]
        way = torch.cat([(results["float32"][name] - start[name]).flatten() for name in names])
        for wire in SHORT_DTYPES:
            off = torch.cat([(results[wire][name] - results["float32"][name]).flatten() for name in names])
            assert off.norm() < 0.01 * way.norm(), f"{exchange} {wire}: {off.norm() / way.norm()}"


def what_rounding_takes_is_sent_later(comm: HorovodComm, folder: Path) -> None:
    """The sum over many exchanges is exact up to one rounding; without error feedback it would drift away."""
    generator = torch.Generator().manual_seed(comm.rank)
    own = torch.rand(1001, generator=generator) * 1e-3 + 1.0  # in bfloat16 every one of them is 1
    exact = torch.zeros_like(own, dtype=torch.float64)
    for rank in range(comm.num_ranks):
        other = torch.Generator().manual_seed(rank)
        exact += (torch.rand(1001, generator=other) * 1e-3 + 1.0).double()
    for dtype in SHORT_DTYPES.values():
        wire, total = ShortWire(comm, dtype), torch.zeros_like(exact)
        for _ in range(64):
            buffer = own.clone()
            wire.begin_allreduce("block", buffer, "gradients")()
            total += buffer.double()
        one_rounding = 4 * comm.num_ranks * float(torch.finfo(dtype).eps)
        assert float((total - 64 * exact).abs().max()) < one_rounding


def a_short_wire_rounds_the_last_step_and_not_the_whole_way(comm: HorovodComm, folder: Path) -> None:
    """Each rank walks 64 steps of its own length; the mean stays within a few roundings of one step."""
    for dtype in SHORT_DTYPES.values():
        buffer, length = torch.ones(1001), 1e-2 * (comm.rank + 1)
        mean = SharedMean({"block": buffer}, "weights", ShortWire(comm, dtype))
        for _ in range(64):
            buffer.add_(length)
            for wait in mean.begin(1 / comm.num_ranks):
                wait()
        exact = 1 + 64 * 1e-2 * (comm.num_ranks + 1) / 2
        off = float((buffer.double() - exact).abs().max())
        assert off < 2 * float(torch.finfo(dtype).eps) * 1e-2 * comm.num_ranks + 1e-5, f"{dtype}: {off}"


def what_16_bits_cannot_hold_goes_in_portions(comm: HorovodComm, folder: Path) -> None:
    wire, total = ShortWire(comm, torch.float16), torch.zeros(3)
    for step in range(8):
        buffer = torch.full((3,), 1e5 if step == 0 else 0.0)
        wire.begin_allreduce("block", buffer, "gradients")()
        assert bool(buffer.isfinite().all())
        total += buffer
    torch.testing.assert_close(total, torch.full((3,), 1e5 * comm.num_ranks), rtol=1e-3, atol=0)


# ---- resume


def lacking_exchange_files_are_refused(comm: HorovodComm, config: Config, own: Path, has_files: bool) -> None:
    """Rounding errors that are gone would change the result unseen: say so on every rank, in one line."""
    file = own / "stopped" / f"site{comm.rank}" / "checkpoints" / "latest" / "exchange-0.safetensors"
    if comm.rank == 1 and has_files:
        file.rename(file.with_suffix(".away"))
    if has_files:
        said = "no step of which all ranks hold a whole checkpoint: site site0, rank 0 "
        fails_with(CheckpointError, said, lambda: train(config, own / "stopped", comm, GO_ON))
    if comm.rank == 1 and has_files:
        file.with_suffix(".away").rename(file)


def resuming_equals_never_stopping_for_every_exchange(comm: HorovodComm, folder: Path) -> None:
    variants: dict[str, dict[str, Any]] = {
        "gradients-bf16": {"exchange": "gradients", "wire": "bfloat16"},
        "weights-bf16-every-3": {"wire": "bfloat16", "every": 3},
        "weights-every-4-shared-state": {"every": 4, "optimizer_state": "shared"},
    }
    for name, sharing in variants.items():
        own = common_folder(comm, folder / name)
        config = config_for(own, comm, sharing=sharing)
        train(config, own / "whole", comm)
        stop_after_the_first_checkpoint(comm, config, own)
        lacking_exchange_files_are_refused(comm, config, own, has_files="bf16" in name)
        train(config, own / "stopped", comm, GO_ON)
        latest = own / "whole" / f"site{comm.rank}" / "checkpoints" / "latest"
        for file in sorted(latest.glob("*.safetensors")):
            other = own / "stopped" / f"site{comm.rank}" / "checkpoints" / "latest" / file.name
            assert file.read_bytes() == other.read_bytes(), f"{name}: {file.name}"
        assert (latest / "exchange-0.safetensors").exists() is ("bf16" in name)


# ---- budget, contract, key


def all_take_the_steps_that_were_agreed_on(comm: HorovodComm, folder: Path) -> None:
    """Site r has 16 + 8r training studies or so; batches of 4."""
    for asked, epochs in (("largest", 1), ("smallest", 1), (3, 2)):
        own = common_folder(comm, folder / f"{asked}")
        config = config_for(own, comm, training={"steps_per_epoch": asked, "epochs": epochs})
        train(config, own / "run", comm)
        site = own / "run" / f"site{comm.rank}"
        budget = json.loads((site / "environment.json").read_text())["budget"]
        lines = (site / "metrics.jsonl").read_text().splitlines()
        needed = [-(-studies // 4) for studies in budget["studies_per_site"]]
        assert len(set(needed)) == comm.num_ranks
        assert len(lines) == {"largest": max(needed), "smallest": min(needed), 3: 6}[asked]
        passes = budget["passes_per_epoch"][comm.rank]
        assert passes == budget["steps_per_epoch"] * 4 / budget["studies_per_site"][comm.rank]


def a_difference_in_any_item_is_named_on_every_rank_within_seconds(comm: HorovodComm, folder: Path) -> None:
    config = config_for(folder, comm)
    topology = one_rank_a_site(comm)
    data = open_training_data(config, topology)
    model = fresh_model()
    items = contract_items(config, plan_sharing(config, tensor_specs(model)), model, data)
    check_contract(Job(comm, topology), items)
    wanted = ["label order", "config.seed", "config.sharing.every", "version of torch", "plan order"]
    assert not set(wanted) - set(items)
    assert any(name.startswith("pixel pipeline") for name in items)
    assert "model's first shared weights" in items
    others = [name for name in items if not name.startswith("plan ")] + ["plan classifier.weight", "plan order"]
    for name in others:
        started = time.monotonic()
        own = items | {name: "something else"} if comm.rank == 1 else items
        fails_with(
            ContractError, f"the sites differ on {name}", lambda own=own: check_contract(Job(comm, topology), own)
        )
        without = {key: value for key, value in items.items() if key != name} if comm.rank == 0 else items
        action: Callable[[], None] = lambda without=without: check_contract(Job(comm, topology), without)  # noqa: E731
        fails_with(ContractError, f"the sites differ on {name}", action)
        assert time.monotonic() - started < 10
    for site in data.files:
        site.close()


def ranks_prove_the_same_key_or_all_stop(comm: HorovodComm, folder: Path) -> None:
    topology = one_rank_a_site(comm)
    digests = gather_digests(Job(comm, topology), {"a": "1"})

    def prove(key: bytes | None, of: torch.Tensor = digests) -> None:
        prove_key(Job(comm, topology), key, of)

    prove(None)
    prove(b"the same for all")
    own = b"another, 16 bytes" if comm.rank == 1 else b"the same for all"
    fails_with(ContractError, "key", lambda: prove(own))
    if comm.num_ranks > 2:
        fails_with(ContractError, "site site1, rank 1 does not hold", lambda: prove(own))
    missing = None if comm.rank == 1 else b"the same for all"
    fails_with(ContractError, "site site1, rank 1 started without --key", lambda: prove(missing))
    # What one rank was given otherwise on the way is no common job.
    changed = digests + 1 if comm.rank == 1 else digests
    fails_with(ContractError, "key", lambda: prove(b"the same for all", changed))
    with recorded_collectives() as records:
        prove(b"the same for all")
    sent = [bytes(tensor.flatten().view(torch.uint8).tolist()) for _, tensor, _ in records]
    assert not any(b"the same" in each for each in sent)


# ---- ledger


def the_ledger_holds_all_that_horovod_was_given(comm: HorovodComm, folder: Path) -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"exchange": "gradients", "wire": "bfloat16"},
        {"wire": "float16", "every": 3},
        {"optimizer_state": "shared", "batchnorm": "private"},
    ]
    for number, sharing in enumerate(variants):
        own = common_folder(comm, folder / str(number))
        config = config_for(own, comm, sharing=sharing)
        comm.ledger.__init__()  # type: ignore[misc]  # as in a process of its own
        with recorded_collectives() as records:
            train(config, own / "run", comm)
        path = own / "run" / f"site{comm.rank}" / "ledger.jsonl"
        entries = [e for line in path.read_text().splitlines() for e in json.loads(line).get("entries", [])]
        noted = sum(entry["bytes"] * entry["count"] for entry in entries)
        assert noted == sum(tensor.nbytes for _, tensor, _ in records), sharing
        assert sum(entry["count"] for entry in entries) == len(records)
        is_equal_everywhere(comm, "all ledgers are closed")
        judged = audit(load_folders(own / "run"))
        assert not judged.faults, judged.faults[:5]
        kept = {each.spec.block for each in plan_sharing(config, tensor_specs(fresh_model())).tensors}
        assert kept - {entry["name"] for entry in entries} >= {"stem", "head"}


def many_ranks_of_a_site_stand_in_ledgers_of_their_own(comm: HorovodComm, folder: Path) -> None:
    """With 3 ranks: sites of 1 and 2, whose private tensors stay between the two."""
    for number, sharing in enumerate(({}, {"exchange": "gradients"})):
        comm.ledger.__init__()  # type: ignore[misc]  # as in a process of its own
        own = common_folder(comm, folder / str(number))
        config = config_for(own, comm, sharing=sharing)
        sites = {"site0": config.sites["site0"], "site1": config.sites["site1"].model_copy(update={"ranks": 2})}
        train(config.model_copy(update={"sites": sites}), own / "run", comm)
        is_equal_everywhere(comm, "all ledgers are closed")
        judged = audit(load_folders(own / "run"))
        assert not judged.faults, judged.faults[:5]
        assert (own / "run" / "site1" / "ledger-rank1.jsonl").exists()
