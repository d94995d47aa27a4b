"""One rank of each of two sites: exchanges DenseNet121 a few times, by each way, and compares two accounts.

Run by mpirun as `python -m tests.lab.count_bytes DEVICE`. Rank 0 prints a JSON object: for each way, what the
ledger noted as sent to what the interface sent.
"""

import json
import sys
from typing import Any

import torch

from cxr_hvd.comm.communicator import Communicator, allgather
from cxr_hvd.comm.job import Job
from cxr_hvd.comm.sites import Topology, bind
from cxr_hvd.comm.start import start_comm
from cxr_hvd.config.sections import Model
from cxr_hvd.models.build import build_model
from cxr_hvd.partial.averager import PartialAverager
from cxr_hvd.partial.blocks import tensor_specs
from cxr_hvd.partial.plan import build_plan
from lab.two_sites import traffic_here

WAYS: dict[str, dict[str, Any]] = {
    "weights": {},
    "weights bfloat16": {"wire": "bfloat16"},
    "weights int8": {"wire": "int8"},
    "weights overlapped": {"every": 4, "overlap": True},
    "gradients": {"exchange": "gradients"},
}
UNCOUNTED, COUNTED = 2, 9


def compare(way: dict[str, Any], device: str, comm: Communicator, topology: Topology) -> float:
    """Return bytes by the ledger to bytes by the interface, of the step in which TCP sent the fewest twice."""
    model = build_model(Model(), 14, seed=1)
    plan = build_plan(tensor_specs(model), (), **way)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    averager = PartialAverager.of_plan(model, optimizer, Job(comm, topology), plan, [0.5, 0.5])
    images = torch.rand(2, 1, 32, 32)
    shares = []
    for _ in range(UNCOUNTED + COUNTED):
        allgather(comm, torch.zeros(1), "status")
        counted, noted = traffic_here(device).sent_bytes, comm.ledger.sent_bytes()
        optimizer.zero_grad()
        loss = model(images).sum()
        averager.begin(28)
        loss.backward()
        if plan.exchange == "gradients":
            averager.average()
        optimizer.step()
        if plan.exchange == "weights":
            averager.average()
        averager.state_dict()  # waits for what is under way
        allgather(comm, torch.zeros(1), "status")
        shares.append((comm.ledger.sent_bytes() - noted) / (traffic_here(device).sent_bytes - counted))
    return max(shares[UNCOUNTED:])


def main() -> None:
    """Compare for all ways, in one job."""
    torch.set_num_threads(1)
    comm = start_comm()
    topology = bind(comm, {"a": 1, "b": 1})
    shares = {name: compare(way, sys.argv[1], comm, topology) for name, way in WAYS.items()}
    if comm.rank == 0:
        print(json.dumps(shares))
    comm.close()


if __name__ == "__main__":
    main()
