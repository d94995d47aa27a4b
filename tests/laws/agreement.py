"""Laws of ranks that agree: on failures, sites, the contract, the key, and the status of a step."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from cxr_hvd.comm.communicator import allgather, allgather_text, together
from cxr_hvd.comm.contract import check_contract, gather_digests
from cxr_hvd.comm.horovod import HorovodComm
from cxr_hvd.comm.job import Job
from cxr_hvd.comm.key import prove_key
from cxr_hvd.comm.sites import bind
from cxr_hvd.comm.step_status import StepStatus, StopReason, Writing, begin_statuses
from cxr_hvd.data.studies import open_training_data
from cxr_hvd.errors import ConfigError, ContractError, DataError, PeerError
from cxr_hvd.partial.blocks import tensor_specs
from cxr_hvd.training.agreement import contract_items
from cxr_hvd.training.sharing import plan_sharing
from tests.laws.law import law
from tests.laws.parts import config_for, fails_with, fresh_model, one_rank_a_site, recorded_collectives


@law(day="mpirun-2 gloo-2 mpirun-3", night="gloo-2 mpirun-2-densenet121")
def a_failure_on_one_rank_is_a_verdict_on_all(comm: HorovodComm, folder: Path) -> None:
    def body() -> None:
        with together(comm, "reading a table"):
            if comm.rank == 1:
                raise DataError("secret.csv: row 7: no such column")

    if comm.rank == 1:
        fails_with(DataError, "row 7", body)
    else:
        fails_with(PeerError, "rank 1 failed while reading a table", body)


@law(day="mpirun-2 mpirun-3", night="gloo-2 mpirun-2-densenet121")
def a_difference_is_named_with_sites_and_values_on_every_rank(comm: HorovodComm, folder: Path) -> None:
    topology = one_rank_a_site(comm)
    items = {"config.seed": "1", "label order": "a, b", "version of torch": "2.14.1"}
    check_contract(Job(comm, topology), items)
    if comm.rank == 1:
        items["label order"] = "b, a"
    action = lambda: check_contract(Job(comm, topology), items)  # noqa: E731
    fails_with(ContractError, "label order", action)
    fails_with(ContractError, "'b, a' at site site1, rank 1", action)


@law(day="mpirun-2", night="gloo-2 mpirun-2-densenet121")
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


@law(day="mpirun-2 mpirun-3", night="gloo-2 mpirun-2-densenet121")
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


@law(day="mpirun-2 mpirun-3", night="gloo-2 mpirun-2-densenet121")
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


@law(day="mpirun-2 mpirun-3", night="gloo-2 mpirun-2-densenet121")
def texts_of_any_length_arrive_whole(comm: HorovodComm, folder: Path) -> None:
    texts = ["", "ä" * 1000, "plain"]
    assert allgather_text(comm, texts[comm.rank], "contract.laws") == texts[: comm.num_ranks]
    too_long = "x" * (2 << 20) if comm.rank == 1 else "x"
    fails_with(ContractError, "at most", lambda: allgather_text(comm, too_long, "contract.laws"))


@law(day="mpirun-2", slow="gloo-2", night="mpirun-2 gloo-2 mpirun-3")
def every_rank_hears_every_pulse(comm: HorovodComm, folder: Path) -> None:
    own = StepStatus(0.5 + comm.rank, 2.0, comm.rank != 1, StopReason(comm.rank % 4), Writing.WRITTEN)
    statuses = begin_statuses(Job(comm, one_rank_a_site(comm)), own)()
    assert statuses[comm.rank] == own
    assert [status.loss for status in statuses] == [0.5 + rank for rank in range(comm.num_ranks)]
    assert [status.is_finite for status in statuses] == [rank != 1 for rank in range(comm.num_ranks)]


@law(day="mpirun-2 gloo-2", night="gloo-2 mpirun-2-densenet121")
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


@law()
def rank_1_hangs(comm: HorovodComm, folder: Path) -> None:
    """Not a law: what a hanging rank looks like to the tests."""
    if comm.rank == 1:
        time.sleep(10_000)
    allgather(comm, torch.from_numpy(np.zeros(1, dtype=np.float32)), "verdict.waits for rank 1")
