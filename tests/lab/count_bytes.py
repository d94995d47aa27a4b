"""One rank of each of two sites: exchanges DenseNet121 a few times, by each way, and compares two accounts.

Run by mpirun as `python -m tests.lab.count_bytes DEVICE`. Rank 0 prints a JSON object: for each way, what the
ledger noted as sent to what the interface sent.
"""

import json
import sys

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

WAYS = (("weights", "float32"), ("weights", "bfloat16"), ("gradients", "float32"))
UNCOUNTED, COUNTED = 2, 9


def compare(exchange: str, wire: str, device: str, comm: Communicator, topology: Topology) -> float:
    """Return bytes by the ledger to bytes by the interface, of the step in which TCP sent the fewest twice."""
    model = build_model(Model(), 14, seed=1)
    plan = build_plan(tensor_specs(model), (), exchange=exchange, wire=wire)  # type: ignore[arg-type]
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
        if exchange == "gradients":
            averager.average()
        optimizer.step()
        if exchange == "weights":
            averager.average()
        allgather(comm, torch.zeros(1), "status")
        shares.append((comm.ledger.sent_bytes() - noted) / (traffic_here(device).sent_bytes - counted))
    return max(shares[UNCOUNTED:])


def main() -> None:
    """Compare for all ways, in one job."""
    torch.set_num_threads(1)
    comm = start_comm()
    topology = bind(comm, {"a": 1, "b": 1})
    shares = {" ".join(way): compare(*way, sys.argv[1], comm, topology) for way in WAYS}
    if comm.rank == 0:
        print(json.dumps(shares))
    comm.close()


if __name__ == "__main__":
    main()
