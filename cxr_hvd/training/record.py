"""What a run writes down beside its checkpoints: what it is, its metrics, and the ledger of what left."""

import json
import platform
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from cxr_hvd import __version__
from cxr_hvd.collective.comm import Communicator, gather, together
from cxr_hvd.collective.ledger import head_name, ledger_name, opening
from cxr_hvd.collective.sharing import SharingPlan
from cxr_hvd.collective.sites import Topology
from cxr_hvd.config import Config
from cxr_hvd.training.agreement import COMPARED_VERSIONS
from cxr_hvd.training.budget import Budget
from cxr_hvd.training.checkpoint import RunFolder
from cxr_hvd.training.data import TrainingData
from cxr_hvd.training.engine import StepReport


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


def open_ledger(folder: RunFolder, comm: Communicator, topology: Topology, first_step: int) -> None:
    """Write what leaves this rank to its run folder from now on. Collective: every rank."""
    with together(comm, "opening its ledger"):
        said = opening(
            topology.site,
            topology.rank,
            topology.num_ranks,
            topology.rank_in_site,
            len(topology.ranks_of_site),
            folder.path / "plan.json",
            first_step,
        )
        comm.ledger.open(folder.path / ledger_name(topology.rank_in_site), said)


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
