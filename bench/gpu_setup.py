"""What the checks and measurements on a GPU have in common: the device, sizes, engines, batches, clocks, ranks.

Needs no MPI and no mpi4py. Without a GPU, or in a dry run, everything is small and runs on the CPU.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.report import ratios, turns
from cxr_hvd.comm.job import Job
from cxr_hvd.comm.local import LocalComm
from cxr_hvd.comm.sites import Topology
from cxr_hvd.config.sections import Model, Training
from cxr_hvd.data.loader import Batch
from cxr_hvd.models.build import build_model
from cxr_hvd.models.forward import forward
from cxr_hvd.partial.blocks import tensor_specs
from cxr_hvd.partial.plan import build_plan
from cxr_hvd.study.labels import LABELS
from cxr_hvd.training.engine import Engine
from cxr_hvd.training.loss import MultiLabelLoss
from cxr_hvd.training.state import start_state

PROJECT = Path(__file__).resolve().parent.parent
PRECISIONS = ("bf16", "fp32")
IMAGES = 2
BCE = MultiLabelLoss()


@dataclass(frozen=True)
class Bench:
    """Where and how large everything is.

    Attributes:
        is_dry_run: whether everything is tiny, on the CPU.
        builds: the folder with environments that tools/gpu.sh has made; None: that of this process.
    """

    is_dry_run: bool
    builds: Path | None = None

    @cached_property
    def device(self) -> torch.device:
        """The first GPU; the CPU where there is none, and in a dry run."""
        is_there = torch.cuda.is_available() and not self.is_dry_run
        return torch.device("cuda", 0) if is_there else torch.device("cpu")

    @property
    def has_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def network(self) -> str:
        return "densenet121" if self.has_gpu else "tiny"

    @property
    def side(self) -> int:
        """Pixels a side."""
        return 256 if self.has_gpu else 32

    @property
    def sizes(self) -> tuple[int, ...]:
        """Studies a batch."""
        return (16, 64, 128) if self.has_gpu else (4,)

    @property
    def num_rounds(self) -> int:
        return 7 if self.has_gpu else 2

    @property
    def steps_a_round(self) -> int:
        return 6 if self.has_gpu else 1

    def build_network(self) -> nn.Module:
        """Build the network with first weights of a fixed seed, on the device."""
        return build_model(Model(name=self.network), len(LABELS), seed=1).to(self.device).train()

    def build_engine(self, precision: str, **settings: Any) -> Engine:
        """Build an engine of one rank that shares all tensors."""
        model = self.build_network()
        plan = build_plan(tensor_specs(model), "none")
        job = Job(LocalComm(), Topology(0, ("site",), (0,)), self.device)
        settings = {"learning_rate": 1e-5, "schedule": "constant", "precision": precision, **settings}
        training = Training.model_validate(settings)
        return Engine(start_state(model, training, job, plan, [1.0]), job, plan, training, 1_000_000_000)

    def batch(self, size: int, images: int = IMAGES) -> Batch:
        """Return studies of random images, and random labels that are all known."""
        generator = torch.Generator().manual_seed(0)
        pixels = torch.rand(size, images, self.side, self.side, generator=generator)
        targets = (torch.rand(size, len(LABELS), generator=generator) < 0.2).float()
        known = torch.ones(size, len(LABELS), dtype=torch.bool)
        return Batch(pixels.to(self.device), targets.to(self.device), known.to(self.device))

    def wait(self) -> None:
        """Wait until the GPU has done what it was given."""
        if self.has_gpu:
            torch.cuda.synchronize()

    def in_turn(self, ways: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
        """Time each way in turn, in interleaved rounds of several steps; return milliseconds of a step."""
        milliseconds: dict[str, list[float]] = {name: [] for name in ways}
        for name, is_counted in turns(list(ways), self.num_rounds):
            self.wait()
            began = time.perf_counter()
            for _ in range(self.steps_a_round):
                ways[name]()
            self.wait()
            if is_counted:
                milliseconds[name].append((time.perf_counter() - began) * 1e3 / self.steps_a_round)
        return milliseconds

    def launch(
        self, program: str, num_ranks: int, limit_s: float, kind: str = "gpu", **environment: str
    ) -> list[Any]:
        """Run a program of `bench.gpu_ranks` on ranks of this machine over Gloo; return what each rank wrote.

        Args:
            kind: whose build: `gpu` or `cpu`, of tools/gpu.sh.

        Raises:
            RuntimeError: the job failed or did not end; with its last lines.
        """
        binaries = self.builds / kind / "bin" if self.builds else Path(sys.executable).parent
        if not (binaries / "horovodrun").exists():
            raise RuntimeError(f"there is no Horovod in {binaries}: what its build said stands under builds")
        path = f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}"
        settings = {"PATH": path, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "2", "CXR_STALL_LIMIT_S": "30"}
        with tempfile.TemporaryDirectory(prefix="cxr-gpu-") as folder:
            command = [str(binaries / "horovodrun"), "--gloo", "-np", str(num_ranks)]
            command += ["-H", f"localhost:{num_ranks}"]
            command += [str(binaries / "python"), "-u", "-m", "bench.gpu_ranks", program, folder]
            command += ["--dry-run"] if self.is_dry_run else []
            process = subprocess.Popen(
                command,
                env={**os.environ, **settings, **environment},
                cwd=PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",  # in the worker's own session: who ends the worker ends the job
            )
            try:
                output, _ = process.communicate(timeout=limit_s)
            except subprocess.TimeoutExpired:
                process.terminate()  # horovodrun then ends its ranks
                output, _ = process.communicate()
                raise RuntimeError(f"no end after {limit_s:.0f} s: {output[-1500:]}") from None
            files = [Path(folder) / f"{rank}.json" for rank in range(num_ranks)]
            if process.returncode or not all(file.exists() for file in files):
                raise RuntimeError(f"status {process.returncode}: {last_errors(output)}")
            return [json.loads(file.read_text()) for file in files]


class BareLoop:
    """A training step as one would write it for one GPU: forward, backward, fused AdamW, no look at the loss."""

    def __init__(self, bench: Bench, precision: str, batch: Batch) -> None:
        self.model = bench.build_network()
        self.batch = batch
        self.precision = precision
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)

    def logits(self) -> Tensor:
        return forward(self.model, self.batch.images, self.precision)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        loss = BCE(self.logits(), self.batch.targets, self.batch.known)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


class EngineLoop:
    """The engine's own step, with all that it does besides."""

    def __init__(self, bench: Bench, precision: str, batch: Batch) -> None:
        self.engine = bench.build_engine(precision)
        self.batch = batch
        self.step = 0

    def __call__(self) -> None:
        self.engine.train_step(self.batch, self.step)
        self.step += 1


def last_errors(output: str) -> str:
    """Return the lines of a job's output that say most: those with an error, or else the last ones."""
    lines = [line for line in output.splitlines() if line.strip() and "horovod/runner" not in line]
    errors = [line for line in lines if "rror" in line]
    return " | ".join(line.strip() for line in (errors or lines)[-6:])[-1500:]


def compare_rounds(of: list[float], to: list[float]) -> dict[str, float]:
    """Return the ratio of two timings, round by round: median, least and greatest."""
    values = ratios(of, to)
    return {
        "median": round_digits(statistics.median(values)),
        "least": round_digits(min(values)),
        "greatest": round_digits(max(values)),
    }


def round_digits(number: float) -> float:
    """Round to four digits."""
    return float(f"{number:.4g}")
