"""Ten checks of the CUDA path: `make gpu STAGE=build`. Without a GPU, those that make sense run on the CPU.

Each gives a verdict: pass, fail with the error, or skipped with the reason. Results go into one JSON file.
"""

import shutil
import sys
import tempfile
import warnings
from collections import Counter
from contextlib import closing
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file

from bench.gpu_loader import policy, time_loader, write_studies
from bench.gpu_ranks import NO_NCCL
from bench.gpu_setup import Bench, EngineLoop, round_digits
from bench.gpu_stage import run_stage
from bench.guarded import Figures, Part, Record, Skipped
from cxr_hvd.comm.local import LocalComm
from cxr_hvd.config.file import parse_config
from cxr_hvd.config.sections import Augmentation, Training
from cxr_hvd.data.loader import train_batches
from cxr_hvd.data.studies import Shuffle, StudySet
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.training.train import LaunchOptions, train
from lab.study_files import write_study_file

NO_GPU = "no GPU"
MAX_GRAYS = 1.5
"""How far an image that the GPU has moved may be from the CPU's, of 255: OpenCV rounds to whole grays."""
MAX_DRIFT = 0.02
"""How far numbers of a network may be apart after a few steps on a GPU, whose sums come in no fixed order."""
SPEED = "speed"


def check_collectives(bench: Bench) -> Figures:
    """Types and collectives on CUDA tensors: by NCCL at one rank, and at two ranks as they are staged."""
    return {f"np {num}": bench.launch("collectives", num, 60)[0] for num in ((1, 2) if bench.has_gpu else (2,))}


def check_exchanges(bench: Bench, kind: str = "gpu") -> Figures:
    """Both exchanges with every wire on two ranks: shared weights end alike, private ones do not."""
    ranks = train_ranks(bench, kind)
    if bench.has_gpu:
        assert all(rank["device"].startswith("cuda") for rank in ranks), [rank["device"] for rank in ranks]
    ways: Figures = {}
    for name, first in ranks[0]["ways"].items():
        others = [rank["ways"][name] for rank in ranks]
        assert len({way["shared"] for way in others}) == 1, f"{name}: ranks end with different shared weights"
        assert len({way["private"] for way in others}) > 1, f"{name}: ranks end with equal private weights"
        ways[name] = {key: value for key, value in first.items() if key not in ("shared", "private")}
    return {"device": ranks[0]["device"], "ways": ways}


@cache
def train_ranks(bench: Bench, kind: str) -> list[Any]:
    """Train on two ranks in every way, once; return what each rank wrote."""
    return bench.launch("exchanges", 2, 180, kind)


def check_one_gpu_for_two(bench: Bench) -> Figures:
    """Two ranks of NCCL on one GPU: refused with a line that says so, or summed; never a hang."""
    if not bench.has_gpu:
        raise Skipped(NO_GPU)
    outcomes = [rank["outcome"] for rank in bench.launch("direct", 2, 90, NCCL_DEBUG="WARN")]
    if NO_NCCL in outcomes:
        raise Skipped(NO_NCCL)
    assert all(outcome == "sum 2.0" or "rror" in outcome for outcome in outcomes), outcomes
    return {"outcomes": outcomes}


def check_cpu_build(bench: Bench) -> Figures:
    """Horovod that was built without CUDA, on a machine with or without a GPU: two ranks train and end alike."""
    if bench.builds is None:
        raise Skipped("dry run: nothing was built")
    return check_exchanges(bench, "cpu")


def check_short_wire(bench: Bench) -> Figures:
    """Short wires go on with the rounding errors of a checkpoint, which are on the CPU."""
    ways = {name: way for name, way in train_ranks(bench, "gpu")[0]["ways"].items() if "float32" not in name}
    broken = {name: way["goes_on"] for name, way in ways.items() if way["goes_on"] is not True}
    assert not broken, broken
    return {"ways": list(ways)}


def check_layout(bench: Bench) -> Figures:
    """The network runs channels_last with one image a study as with two, and one costs no more."""
    milliseconds: dict[str, list[float]] = {}
    loops = {}
    for images in (1, 2):
        loop = EngineLoop(bench, "bf16", bench.batch(bench.sizes[-1], images))
        seen: list[bool] = []

        def note(_module: Any, _inputs: Any, output: torch.Tensor, seen: list[bool] = seen) -> None:
            seen.append(output.is_contiguous(memory_format=torch.channels_last))

        hook = loop.engine.state.model.get_submodule("features.denseblock1").register_forward_hook(note)
        loop()
        hook.remove()
        assert seen == [True], f"{images} images a study: not channels_last"
        loops[f"{images} images"] = loop
    milliseconds = bench.in_turn(loops)
    return {name: round_digits(min(values)) for name, values in milliseconds.items()}


def check_waits(bench: Bench) -> Figures:
    """The waits of the host in a step, by file and line, as torch reports them."""
    if not bench.has_gpu:
        raise Skipped(NO_GPU)
    return {"waits": find_waits(bench)}


def find_waits(bench: Bench) -> dict[str, int]:
    """Return where the host waits for the GPU within a step of the engine, and how often."""
    loop = EngineLoop(bench, "bf16", bench.batch(bench.sizes[0]))
    for _ in range(3):
        loop()
    bench.wait()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loop()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    lines = [
        f"{Path(warning.filename).name}:{warning.lineno}"
        for warning in caught
        if "synchron" in str(warning.message)
    ]
    return dict(Counter(lines))


def check_runs(bench: Bench) -> Figures:
    """A run that is stopped goes on to the same weights: in each precision, and with all that a step may do."""
    everything = {"precision": "fp32", "accumulate": 2, "ema_decay": 0.9, "clip_norm": 1.0}
    kinds: dict[str, dict[str, Any]] = {"everything": everything}
    if not bench.is_dry_run:
        kinds |= {"bf16": {"precision": "bf16"}, "fp32": {"precision": "fp32"}}
    if bench.has_gpu:
        kinds["fp16"] = {"precision": "fp16"}
        if "deterministic" in Training.model_fields:
            kinds["deterministic"] = {"precision": "fp32", "deterministic": True}
    figures: Figures = {"tensorboard": "there" if has_tensorboard() else "missing: curves are not written"}
    with tempfile.TemporaryDirectory(prefix="cxr-gpu-") as name:
        data = write_study_file(Path(name) / "north.h5", 18, splits=(Split.TRAIN, Split.TRAIN, Split.VALIDATE))
        for kind, training in kinds.items():
            whole = train_to_end(bench, Path(name) / f"{kind}-whole", data, training)
            again = train_to_end(bench, Path(name) / f"{kind}-again", data, training)
            parts = train_to_end(bench, Path(name) / f"{kind}-parts", data, training, is_stopped=True)
            drift = {"repeated": compare_weights(whole, again), "resumed": compare_weights(whole, parts)}
            figures[kind] = drift
            allowed = MAX_DRIFT if bench.has_gpu and kind != "deterministic" else 0.0
            assert max(drift.values()) <= allowed, f"{kind}: weights differ by {drift}, at most {allowed} is right"
    return figures


def has_tensorboard() -> bool:
    """Return whether TensorBoard is there; where it is not, put a writer in its place that writes nothing."""
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: F401, asks for TensorBoard
    except ImportError:
        module = ModuleType("torch.utils.tensorboard")
        module.SummaryWriter = NoBoard  # type: ignore[attr-defined]
        sys.modules[module.__name__] = module
        return False
    return True


class NoBoard:
    """A writer of curves that writes nothing; TensorBoard is too large for the bundle."""

    def __init__(self, *_words: Any, **_settings: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *_words, **_settings: None


def train_to_end(
    bench: Bench, run: Path, data: Path, training: dict[str, Any], is_stopped: bool = False
) -> dict[str, torch.Tensor]:
    """Train a few steps; with `is_stopped` go on from the checkpoint in their middle. Return the last weights."""
    settings = {"epochs": 3, "batch_size": 4, "schedule": "constant", "max_steps": 4, "device": bench.device.type}
    tree = {
        "experiment": "A",
        "sites": {"north": {"data": str(data)}},
        "model": {"name": bench.network, "image_size": 32 if bench.is_dry_run else 64},
        "training": {**settings, **training},
        "checkpoints": {"every_steps": 2},
    }
    config = parse_config(tree, "check")
    train(config, run, LocalComm())
    checkpoints = run / "north" / "checkpoints"
    if is_stopped:
        shutil.rmtree(checkpoints / "step-4")
        (checkpoints / "latest").unlink()
        (checkpoints / "latest").symlink_to("step-2")
        train(config, run, LocalComm(), LaunchOptions(resume="auto"))
    tensors: dict[str, torch.Tensor] = {}
    for name in ("shared", "private"):
        file = checkpoints / "step-4" / f"{name}.safetensors"
        tensors |= load_file(file) if file.exists() else {}
    assert tensors, "the run has left no weights"
    return tensors


def compare_weights(of: dict[str, torch.Tensor], to: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of two networks, tensor by tensor; relative where numbers are above 1."""
    differences = []
    for name, tensor in of.items():
        other = to[name].double()
        differences.append(float(((tensor.double() - other).abs() / other.abs().clamp(min=1)).max()))
    return max(differences)


def check_loader(bench: Bench) -> Figures:
    """Batches that the device has augmented are those of the CPU; how many studies a second threads make."""
    figures: Figures = {}
    with tempfile.TemporaryDirectory(prefix="cxr-gpu-") as name:
        path, num_studies, size = write_studies(bench, Path(name) / "studies.h5")
        with StudyFile(path) as file:
            for kind, strength in (("default", Augmentation()), ("all", Augmentation(noise=0.05, cutout=0.25))):
                on_cpu, on_device = (
                    StudySet([file], Split.TRAIN, policy()),
                    StudySet([file], Split.TRAIN, policy()),
                )
                shuffle = Shuffle(num_studies, size, 1, 0, (0, 1))
                with (
                    closing(train_batches(on_cpu, shuffle, range(4), bench.side, strength, 1)) as expected,
                    closing(
                        train_batches(on_device, shuffle, range(4), bench.side, strength, 2, 2, bench.device)
                    ) as made,
                ):
                    grays = max(
                        255 * float((one.images - other.images.cpu()).abs().max())
                        for one, other in zip(expected, made, strict=True)
                    )
                allowed = MAX_GRAYS if bench.has_gpu else 0.0
                assert grays <= allowed, f"{kind}: {grays:.3f} grays from the CPU's batch, allowed {allowed}"
                figures[f"{kind}: grays"] = round(grays, 3)
            for threads in (1, 4, 8) if bench.has_gpu else (1,):
                figures[f"{threads} threads: studies_per_s"] = time_loader(bench, file, num_studies, threads)
    return figures


def check_speed(bench: Bench) -> Figures:
    """Studies a second, memory and kernels: the other stage's work."""
    raise Skipped("measured by the other stage: make gpu STAGE=measure")


CHECKS = {
    "collectives": (check_collectives, 130.0),
    "exchanges": (check_exchanges, 190.0),
    "one-gpu-for-two": (check_one_gpu_for_two, 100.0),
    "cpu-build": (check_cpu_build, 190.0),
    "short-wire": (check_short_wire, 60.0),
    "layout": (check_layout, 90.0),
    "waits": (check_waits, 60.0),
    "runs": (check_runs, 150.0),
    "loader": (check_loader, 120.0),
    SPEED: (check_speed, 5.0),
}


def parts(bench: Bench) -> list[Part]:
    """Return the ten checks."""
    return [Part(name, partial(check, bench), limit_s) for name, (check, limit_s) in CHECKS.items()]


def finish(content: Record) -> None:
    """Say how many checks passed."""
    verdicts = Counter(record["verdict"] for record in content["checks"].values())
    print(f"checks: {', '.join(f'{count} {verdict}' for verdict, count in sorted(verdicts.items()))}", flush=True)


if __name__ == "__main__":
    run_stage("bench.gpu_checks", "build", "checks", parts, finish)
