"""One rank of the jobs of `bench.library`: averages a network by the library, or as a user would write it by hand.

`python -m bench.by_hand KIND --ways "NETWORK WAY,..." --rounds N --out FILE`, under mpirun or alone. KIND is
`average`, with no training around it, or `step`, a whole one. Rank 0 writes a JSON object: for each way and each
clock a list of seconds, round by round. `BUILDERS` has the ways.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from mpi4py import MPI  # before Horovod, which then takes over an MPI that several threads may call
from torch import Tensor, nn
from torch.nn import functional

import cxr_hvd
from bench.exchanges import measure_in_turn, several
from bench.steps import WORLD
from cxr_hvd.comm.job import Job
from cxr_hvd.config.sections import Model
from cxr_hvd.models.build import build_model
from cxr_hvd.partial.blocks import tensor_specs
from cxr_hvd.partial.plan import Scope, build_plan
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import MAX_IMAGES

BATCH, SIDE = 8, 96
PRIVATE = ["stem", "head"]
Average = Callable[[], Any]


class Loop:
    """A user's own training loop: float32, plain AdamW, and a way to average after the optimizer's step."""

    def __init__(self, network: str, way: str, job: Job) -> None:
        torch.manual_seed(1)
        self.model = build_network(network).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        generator = torch.Generator().manual_seed(job.rank)
        self.images = torch.rand(BATCH, MAX_IMAGES, SIDE, SIDE, generator=generator)
        self.targets = (torch.rand(BATCH, len(LABELS), generator=generator) < 0.2).float()
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)  # torch averages no parameter without a gradient
        self.average = BUILDERS[way](self.model, self.optimizer, job)

    def __call__(self) -> dict[str, float]:
        """Take a step; return seconds of the step, and of the average within it."""
        started = time.perf_counter()
        loss = functional.binary_cross_entropy_with_logits(self.model(self.images), self.targets)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        updated = time.perf_counter()
        self.average()
        ended = time.perf_counter()
        return {"step": ended - started, "exchange": ended - updated}


def build_network(name: str) -> nn.Module:
    """Build a network of torchvision for 20 channels, or the published one."""
    if name == "densenet121":
        return build_model(Model(name="densenet121"), len(LABELS), seed=1)
    model: nn.Module = torchvision.models.get_model(name, num_classes=len(LABELS))
    model.conv1 = nn.Conv2d(MAX_IMAGES, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return model


def shared_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return what the library shares with these private blocks: parameters and running statistics."""
    tensors = model.state_dict(keep_vars=True)
    return {name: tensors[name] for name in build_plan(tensor_specs(model), PRIVATE).names(Scope.SHARED)}


def bare(model: nn.Module, optimizer: Any, job: Job) -> Average:
    """Average nothing."""
    return lambda: None


def flat(model: nn.Module, optimizer: Any, job: Job) -> Average:
    """Sum as many bytes by one Allreduce of mpi4py, in place: less cannot be done."""
    values = torch.zeros(sum(tensor.numel() for tensor in shared_tensors(model).values())).numpy()
    return lambda: WORLD.Allreduce(MPI.IN_PLACE, values)


def ours(model: nn.Module, optimizer: Any, job: Job) -> Average:
    """Average by the library."""
    averager = cxr_hvd.PartialAverager(model, optimizer, job, private=PRIVATE)
    return averager.average


def horovod_loop(model: nn.Module, optimizer: Any, job: Job) -> Average:
    """Average one tensor after the other by Horovod."""
    import horovod.torch as hvd

    shared = {name: tensor.data for name, tensor in shared_tensors(model).items()}

    def average() -> None:
        for name, tensor in shared.items():
            hvd.allreduce_(tensor, name=name)

    return average


def horovod_async(model: nn.Module, optimizer: Any, job: Job) -> Average:
    """Begin to average all tensors by Horovod, then wait for all."""
    import horovod.torch as hvd

    shared = {name: tensor.data for name, tensor in shared_tensors(model).items()}

    def average() -> None:
        for handle in [hvd.allreduce_async_(tensor, name=name) for name, tensor in shared.items()]:
            hvd.synchronize(handle)

    return average


def horovod_grouped(model: nn.Module, optimizer: Any, job: Job) -> Average:
    """Average the list of tensors by Horovod as one group."""
    import horovod.torch as hvd

    shared = [tensor.data for tensor in shared_tensors(model).values()]
    return lambda: hvd.grouped_allreduce_(shared, name="shared")


def post_local_sgd(model: nn.Module, optimizer: Any, job: Job) -> Average:
    """Average by torch's model averager over Gloo; it takes parameters alone, no running statistics."""
    from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager

    averager = PeriodicModelAverager(period=1)
    parameters = [tensor for tensor in shared_tensors(model).values() if isinstance(tensor, nn.Parameter)]
    return lambda: averager.average_parameters(parameters)


BUILDERS: dict[str, Callable[[nn.Module, Any, Job], Average]] = {
    "bare": bare,
    "flat": flat,
    "ours": ours,
    "allreduce": horovod_loop,
    "allreduce_async": horovod_async,
    "grouped_allreduce": horovod_grouped,
    "post-local SGD": post_local_sgd,
}


def main() -> None:
    """Take part in one job."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("average", "step"))
    parser.add_argument("--ways", required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "When period is 1")
    names = options.ways.split(",")
    with cxr_hvd.join(sites=[f"site{rank}" for rank in range(WORLD.size)]) as job:
        if any(name.endswith("post-local SGD") for name in names):
            torch.distributed.init_process_group("gloo", rank=job.rank, world_size=job.num_ranks)
        timed: dict[str, Callable[[], dict[str, float]]] = {}
        for name in names:
            loop = Loop(*name.split(maxsplit=1), job)
            timed[name] = several(loop.average) if options.kind == "average" else loop
        results = measure_in_turn(timed, options.rounds)
        if job.is_leader:
            options.out.write_text(json.dumps(results))
        WORLD.Barrier()


if __name__ == "__main__":
    main()
