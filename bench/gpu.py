"""Training on a GPU: studies a second, memory, kernels, what bounds a step, and what might make it faster.

`make gpu STAGE=measure`. All ways of a part take turns in interleaved rounds; what counts are ratios. CUDA graphs
and torch.compile are candidates here and no settings of the product: nothing has shown that they pay. Without a
GPU, or in a dry run, everything is tiny and runs on the CPU. Results go into one JSON file.
"""

import gc
import itertools
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from bench.gpu_checks import NO_GPU, find_waits
from bench.gpu_conclusions import PAYS, draw_conclusions
from bench.gpu_kernels import sort_kernel
from bench.gpu_loader import policy, time_loader, write_studies
from bench.gpu_setup import PRECISIONS, BareLoop, Bench, EngineLoop, compare_rounds, round_digits
from bench.gpu_stage import run_stage
from bench.guarded import Figures, Part, Skipped
from cxr_hvd.config.sections import Augmentation
from cxr_hvd.data.loader import train_batches
from cxr_hvd.data.studies import Shuffle, StudySet
from cxr_hvd.models.build import as_channels_last
from cxr_hvd.models.channels import pad_channels
from cxr_hvd.models.densenet import DenseNet
from cxr_hvd.models.forward import AUTOCAST_TYPES
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile

UNCOUNTED = 4


class BehindFirstConvolution(nn.Module):
    """A DenseNet without its first convolution: the only layer that sees the number of channels.

    Its input has one shape for all batches of a size, so that it can be recorded as a CUDA graph.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        assert isinstance(model, DenseNet)
        self.features = model.features[1:]
        self.classifier = model.classifier

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Return logits (B, L) for the first convolution's output."""
        features_BCHW = functional.relu(self.features(features_BCHW), inplace=True)
        logits_BL: Tensor = self.classifier(
            torch.flatten(functional.adaptive_avg_pool2d(features_BCHW, (1, 1)), 1)
        )
        return logits_BL


class CandidateLoop(BareLoop):
    """The bare loop, with all that lies behind the first convolution made faster in some way.

    Attributes:
        prepare_s: seconds that this took.
    """

    def __init__(
        self, bench: Bench, precision: str, batch: Any, prepare: Callable[[nn.Module, Tensor], Any]
    ) -> None:
        super().__init__(bench, precision, batch)
        self._device_type = bench.device.type
        began = time.perf_counter()
        with self._autocast():
            sample = self._first(self.batch.images).detach().clone(memory_format=torch.preserve_format)
            self._rest = prepare(BehindFirstConvolution(self.model), sample.requires_grad_())
        self()
        bench.wait()
        self.prepare_s = time.perf_counter() - began

    def logits(self) -> Tensor:
        with self._autocast():
            logits_BL: Tensor = self._rest(self._first(self.batch.images))
        return logits_BL.float()

    def _first(self, images_BMHW: Tensor) -> Tensor:
        features_BCHW: Tensor = self.model.get_submodule("features.conv0")(as_channels_last(images_BMHW))
        return features_BCHW

    def _autocast(self) -> Any:
        dtype = AUTOCAST_TYPES.get(self.precision)
        # A graph must not hold weights that an earlier pass has cast.
        return torch.autocast(self._device_type, dtype=dtype, enabled=dtype is not None, cache_enabled=False)


def measure_step(bench: Bench, precision: str, size: int) -> Figures:
    """The engine's step to a bare loop's, with studies a second and the most memory of the engine."""
    batch = bench.batch(size)
    if bench.has_gpu:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    engine = EngineLoop(bench, precision, batch)
    for _ in range(UNCOUNTED if bench.has_gpu else 1):
        engine()
    bench.wait()
    peak_gb = torch.cuda.max_memory_allocated() / 1e9 if bench.has_gpu else 0.0
    bare = BareLoop(bench, precision, batch)
    milliseconds = bench.in_turn({"engine": engine, "bare": bare})
    step_ms = statistics.median(milliseconds["engine"])
    return {
        "engine_ms": round_digits(step_ms),
        "bare_ms": round_digits(statistics.median(milliseconds["bare"])),
        "studies_per_s": round_digits(size / step_ms * 1e3),
        "engine_to_bare": compare_rounds(milliseconds["engine"], milliseconds["bare"]),
        "peak_gb": round_digits(peak_gb),
    }


def measure_kernels(bench: Bench, precision: str, size: int) -> Figures:
    """Kernels of a step, how long the GPU works on them, and on which kinds; on the CPU, operators instead."""
    loop = EngineLoop(bench, precision, bench.batch(size))
    for _ in range(UNCOUNTED if bench.has_gpu else 1):
        loop()
    bench.wait()
    began = time.perf_counter()
    loop()
    bench.wait()
    step_ms = (time.perf_counter() - began) * 1e3
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.has_gpu else [])]
    with profile(activities=activities) as profiler:
        loop()
        bench.wait()
    events = profiler.events()
    assert events is not None
    rows = Counter[str]()
    counts = Counter[str]()
    for event in events:
        is_kernel = event.device_type.name == "CUDA"
        if is_kernel != bench.has_gpu or event.is_user_annotation:  # of `record_function`, which spans kernels
            continue
        rows[event.name] += event.self_device_time_total if is_kernel else event.self_cpu_time_total
        counts[event.name] += 1
    kinds = Counter[str]()
    for name, microseconds in rows.items():
        kinds[sort_kernel(name)] += microseconds
    busy_ms = sum(rows.values()) / 1e3
    return {
        "kernels": sum(counts.values()),
        "copies": sum(count for name, count in counts.items() if sort_kernel(name) == "copies"),
        "busy_ms": round_digits(busy_ms),
        "step_ms": round_digits(step_ms),
        "busy_share": round_digits(busy_ms / step_ms),
        "shares": {kind: round_digits(microseconds / 1e3 / busy_ms) for kind, microseconds in kinds.most_common()},
        "longest": [f"{name[:60]} {counts[name]}x {spent / 1e3:.2f} ms" for name, spent in rows.most_common(10)],
    }


def measure_layout(bench: Bench, size: int) -> Figures:
    """NCHW to channels_last, in bfloat16."""
    batch = bench.batch(size)
    milliseconds = bench.in_turn({"nchw": PlainLoop(bench, "bf16", batch), "last": BareLoop(bench, "bf16", batch)})
    return {
        "nchw_to_channels_last": compare_rounds(milliseconds["nchw"], milliseconds["last"]),
        "channels_last_ms": round_digits(statistics.median(milliseconds["last"])),
    }


class PlainLoop(BareLoop):
    """The bare loop in NCHW."""

    def logits(self) -> Tensor:
        dtype = AUTOCAST_TYPES.get(self.precision)
        with torch.autocast(self.batch.images.device.type, dtype=dtype, enabled=dtype is not None):
            logits_BL: Tensor = self.model(self.batch.images)
        return logits_BL.float()


def measure_first_convolution(bench: Bench, size: int) -> Figures:
    """Batches of one image a study: all 20 channels, to the occupied one alone."""
    batch = bench.batch(size, images=1)
    padded = BareLoop(bench, "bf16", batch)
    padded.model.register_forward_pre_hook(pad_channels)
    milliseconds = bench.in_turn({"all": padded, "occupied": BareLoop(bench, "bf16", batch)})
    return {
        "all_to_occupied": compare_rounds(milliseconds["all"], milliseconds["occupied"]),
        "all_ms": round_digits(statistics.median(milliseconds["all"])),
        "occupied_ms": round_digits(statistics.median(milliseconds["occupied"])),
    }


def measure_cuda_graphs(bench: Bench, size: int) -> Figures:
    """The bare loop to one with a CUDA graph of all that lies behind the first convolution."""

    def prepare(rest: nn.Module, sample: Tensor) -> Any:
        if not bench.has_gpu:
            return rest  # the same path, with nothing recorded
        return torch.cuda.make_graphed_callables(rest, (sample,))

    return compare_candidate(bench, size, prepare)


def measure_compile(bench: Bench, size: int) -> Figures:
    """The bare loop to one with all that lies behind the first convolution compiled."""
    if not bench.has_gpu and not bench.is_dry_run:
        raise Skipped(f"{NO_GPU}: on processors compilation takes minutes and gains 1.1")
    backend = "inductor" if bench.has_gpu else "eager"
    return compare_candidate(bench, size, lambda rest, _sample: torch.compile(rest, backend=backend))


def compare_candidate(bench: Bench, size: int, prepare: Callable[[nn.Module, Tensor], Any]) -> Figures:
    """Time the bare loop and a candidate in turn, and compare what they compute first."""
    batch = bench.batch(size)
    candidate, bare = CandidateLoop(bench, "bf16", batch, prepare), BareLoop(bench, "bf16", batch)
    bare()  # as the candidate has done once
    off = float((candidate.logits() - bare.logits()).detach().abs().max())
    assert off < 0.1, f"logits differ by {off:.3f}"
    milliseconds = bench.in_turn({"bare": bare, "candidate": candidate})
    gain = compare_rounds(milliseconds["bare"], milliseconds["candidate"])
    return {
        "bare_to_candidate": gain,
        "pays": bench.has_gpu and gain["median"] >= PAYS,
        "is_real": bench.has_gpu,
        "prepare_s": round_digits(candidate.prepare_s),
        "logits_differ_by": round_digits(off),
    }


def measure_run(bench: Bench, size: int) -> Figures:
    """The engine with the loader beside it, as in a run: studies a second, and the share of waits for data."""
    with tempfile.TemporaryDirectory(prefix="cxr-gpu-") as name:
        path, num_studies, usual_size = write_studies(bench, Path(name) / "studies.h5")
        size, threads = (size, 8) if bench.has_gpu else (usual_size, 1)
        engine = bench.build_engine("bf16")
        num_steps = 30 if bench.has_gpu else 2
        with StudyFile(path) as file:
            studies, shuffle = StudySet([file], Split.TRAIN, policy()), Shuffle(num_studies, size, 1, 0, (0, 1))
            steps, strength = itertools.count(), Augmentation()
            batches = train_batches(studies, shuffle, steps, bench.side, strength, threads, 2, bench.device)
            with closing(batches):
                for step in range(UNCOUNTED):
                    engine.train_step(next(batches), step)
                bench.wait()
                began, waited_s = time.perf_counter(), 0.0
                for step in range(UNCOUNTED, UNCOUNTED + num_steps):
                    asked = time.perf_counter()
                    batch = next(batches)
                    waited_s += time.perf_counter() - asked
                    engine.train_step(batch, step)
                bench.wait()
                spent_s = time.perf_counter() - began
            alone = time_loader(bench, file, num_studies, threads)
    return {
        "studies_per_s": round_digits(num_steps * size / spent_s),
        "waiting_for_data": round_digits(waited_s / spent_s),
        "loader_studies_per_s": alone,
        "threads": threads,
    }


def measure_waits(bench: Bench) -> Figures:
    """The waits of the host in a step, by file and line."""
    if not bench.has_gpu:
        raise Skipped(NO_GPU)
    return {"waits": find_waits(bench)}


def parts(bench: Bench) -> list[Part]:
    """Return all measurements, those that decide most first."""
    sizes, last = bench.sizes, bench.sizes[-1]
    steps = [(precision, size) for precision in PRECISIONS for size in sizes]
    return [
        *[
            Part(f"step-{precision}-{size}", partial(measure_step, bench, precision, size), 60)
            for precision, size in steps
        ],
        *[
            Part(f"kernels-{precision}-{size}", partial(measure_kernels, bench, precision, size), 40)
            for precision, size in steps
        ],
        *[Part(f"cuda-graphs-{size}", partial(measure_cuda_graphs, bench, size), 60) for size in sizes],
        Part("waits", partial(measure_waits, bench), 40),
        *[Part(f"run-{size}", partial(measure_run, bench, size), 60) for size in sizes],
        Part("layout", partial(measure_layout, bench, last), 60),
        Part("first-convolution", partial(measure_first_convolution, bench, last), 60),
        *[Part(f"compile-{size}", partial(measure_compile, bench, size), 150) for size in sizes[:2]],
    ]


if __name__ == "__main__":
    run_stage("bench.gpu", "measure", "measurements", parts, draw_conclusions)
