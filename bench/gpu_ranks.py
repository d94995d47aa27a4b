"""One rank of the jobs that check exchanges on a GPU: `horovodrun ... python -m bench.gpu_ranks PROGRAM FOLDER`.

Each rank writes `RANK.json` into the folder. `collectives` and `direct` call Horovod itself; `exchanges` trains
with the library, as a run does.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from bench.guarded import Figures, write_json
from cxr_hvd.comm.job import Job
from cxr_hvd.config.sections import Model, Training
from cxr_hvd.data.loader import Batch
from cxr_hvd.models.build import build_model
from cxr_hvd.partial.blocks import tensor_specs
from cxr_hvd.partial.plan import Exchange, Scope, SharingPlan, Wire, build_plan
from cxr_hvd.study.labels import LABELS
from cxr_hvd.training.engine import Engine
from cxr_hvd.training.state import start_state
from cxr_hvd.training.step_report import StepReport

REPEATS = 20
NO_NCCL = "Horovod was built without NCCL"


def collectives(is_dry_run: bool) -> Figures:
    """Sum, gather and swap tensors of each type by Horovod, and keep the order of a busy stream.

    On CUDA tensors where Horovod has NCCL and each rank a GPU of its own; otherwise on those of the CPU, which is
    what staging hands over.
    """
    import horovod.torch as hvd

    hvd.init()
    num_gpus = 0 if is_dry_run else torch.cuda.device_count()
    is_cuda = bool(hvd.nccl_built()) and hvd.local_size() <= num_gpus
    device = torch.device("cuda", hvd.local_rank()) if is_cuda else torch.device("cpu")
    if is_cuda:
        torch.cuda.set_device(device)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.int64, torch.int32):
        pair = [torch.ones(5, dtype=dtype, device=device), torch.ones(3, dtype=dtype, device=device)]
        hvd.grouped_allreduce_(pair, name=f"sum.{dtype}", op=hvd.Sum)
        assert all(bool((tensor == hvd.size()).all()) for tensor in pair), (dtype, pair)
    for dtype in (torch.int16, torch.uint8, torch.int8, torch.float32, torch.float64):
        rows = torch.full((hvd.size(), 4), hvd.rank(), dtype=dtype, device=device)
        gathered = hvd.allgather(rows, name=f"gather.{dtype}")
        assert gathered[:: hvd.size(), 0].tolist() == list(range(hvd.size())), (dtype, gathered)
        swapped, _ = hvd.synchronize(hvd.alltoall_async(rows, name=f"swap.{dtype}"))
        assert swapped[:, 0].tolist() == list(range(hvd.size())), (dtype, swapped)
    # What was queued before an exchange comes before it, and what is queued after it comes after it.
    large = torch.zeros(1 << (14 if device.type == "cpu" else 26), device=device)
    for _ in range(REPEATS):
        for _ in range(REPEATS):
            large.add_(1)
        hvd.synchronize(hvd.grouped_allreduce_async_([large], name="order", op=hvd.Sum))
        large.div_(hvd.size())
    assert float(large.min()) == float(large.max()) == REPEATS**2
    megabytes = large[: 1 << 20]
    pulse = torch.zeros(1, 5, dtype=torch.float64)
    sum_ms = time_calls(lambda: hvd.synchronize(hvd.grouped_allreduce_async_([megabytes], name="4MB", op=hvd.Sum)))
    pulse_ms = time_calls(lambda: hvd.synchronize(hvd.allgather_async(pulse, name="pulse")))
    hvd.shutdown()
    return {"device": device.type, "sum_ms": sum_ms, "sum_bytes": megabytes.nbytes, "status_ms": pulse_ms}


def direct(is_dry_run: bool) -> Figures:
    """Have all ranks sum on the first GPU by NCCL, and return what came of it: a sum, or an error's text."""
    import horovod.torch as hvd
    from horovod.common.exceptions import HorovodInternalError

    if not hvd.nccl_built():
        return {"outcome": NO_NCCL}
    hvd.init()
    torch.cuda.set_device(0)
    try:
        total = hvd.allreduce(torch.ones(4, device="cuda"), name="one", op=hvd.Sum)
        outcome = f"sum {float(total[0])}"
    except (HorovodInternalError, RuntimeError) as error:
        outcome = f"{type(error).__name__}: {error}"
    return {"outcome": outcome[:600]}


def exchanges(is_dry_run: bool) -> Figures:
    """Train by every exchange and wire that there is, and return a digest of the shared weights of each."""
    from cxr_hvd.comm.start import join

    if is_dry_run or not torch.cuda.is_available():
        return train_ways(join(["a", "b"], device="cpu"), "tiny", 32, 4, 2)
    return train_ways(join(["a", "b"]), "densenet121", 256, 16, 12)


def train_ways(joined: Any, network: str, side: int, size: int, num_steps: int) -> Figures:
    """Take steps in each way within one job."""
    at_once = [(exchange, wire, False) for exchange in get_args(Exchange) for wire in get_args(Wire)]
    ways: Figures = {}
    with joined as job:
        batch = draw_batch(job.rank, size, side, job.device)
        for exchange, wire, overlap in [*at_once, ("weights", "float32", True)]:
            name = f"{exchange} {wire}{' overlap' if overlap else ''}"
            model = build_model(Model(name=network), len(LABELS), seed=1).to(job.device)
            plan = build_plan(tensor_specs(model), ["head"], exchange=exchange, wire=wire, overlap=overlap)
            ways[name] = train_way(job, model, plan, batch, num_steps)
    return {"device": str(job.device), "ways": ways}


def train_way(job: Job, model: nn.Module, plan: SharingPlan, batch: Batch, num_steps: int) -> Figures:
    """Take steps by a plan, the last one with the exchange's state as a checkpoint gives it."""
    training = Training(learning_rate=1e-4, schedule="constant")
    engine = Engine(start_state(model, training, job, plan, [0.5, 0.5]), job, plan, training, num_steps + 1)
    reports: list[StepReport] = []
    spent_s: list[float] = []
    for step in range(num_steps):
        began = time.perf_counter()
        reports += engine.train_step(batch, step)
        spent_s.append(time.perf_counter() - began)
    goes_on: bool | str = True
    if plan.wire != "float32":
        averager = engine.state.averager
        kept = {name: tensor.cpu() for name, tensor in averager.state_dict().items()}
        assert len(kept) > 1, "the wire has kept no rounding errors"
        averager.load_state_dict(kept)
    try:
        reports += [*engine.train_step(batch, num_steps), *engine.catch_up()]
    except RuntimeError as error:  # of tensors on two devices: on all ranks alike, and before anything is sent
        goes_on = str(error)[:300]
    uncounted = num_steps // 3
    names = set(plan.names(Scope.SHARED))
    tensors = model.state_dict().items()
    return {
        "goes_on": goes_on,
        "step_ms": round(min(spent_s[uncounted:]) * 1e3, 2),
        "averaging_ms": round(min(report.averaging_s for report in reports[uncounted:]) * 1e3, 2),
        "loss": reports[-1].loss,
        "shared": hash_tensors([tensor for name, tensor in tensors if name in names]),
        "private": hash_tensors([tensor for name, tensor in tensors if name not in names]),
    }


def draw_batch(seed: int, size: int, side: int, device: torch.device) -> Batch:
    """Return studies of two random images, different on every rank."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(size, 2, side, side, generator=generator).to(device)
    targets = (torch.rand(size, len(LABELS), generator=generator) < 0.3).float().to(device)
    return Batch(images, targets, torch.ones(size, len(LABELS), dtype=torch.bool, device=device))


def hash_tensors(tensors: list[Tensor]) -> str:
    """Return a digest of the tensors' bytes."""
    summed = hashlib.sha256()
    for tensor in tensors:
        summed.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return summed.hexdigest()[:16]


def time_calls(take: Callable[[], object]) -> float:
    """Return the milliseconds of one call, over several."""
    began = time.perf_counter()
    for _ in range(REPEATS):
        take()
    return round((time.perf_counter() - began) * 1e3 / REPEATS, 3)


PROGRAMS: dict[str, Callable[[bool], Figures]] = {
    "collectives": collectives,
    "direct": direct,
    "exchanges": exchanges,
}


def main() -> None:
    """Run one program as this rank."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", choices=tuple(PROGRAMS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    figures = PROGRAMS[options.program](options.dry_run)
    write_json(options.folder / f"{os.environ['HOROVOD_RANK']}.json", figures)
    print(json.dumps(figures), flush=True)
    sys.stdout.flush()
    if options.program == "direct":  # after NCCL's error Horovod cannot leave in order
        os._exit(0)


if __name__ == "__main__":
    main()
