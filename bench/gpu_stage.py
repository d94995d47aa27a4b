"""A stage of `make gpu`: takes its parts within their limits, and writes what came of them into one JSON file."""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench.gpu_setup import Bench
from bench.guarded import Figures, Part, Record, run_parts, work, write_json


def run_stage(
    module: str, stage: str, section: str, parts: Callable[[Bench], list[Part]], finish: Callable[[Record], None]
) -> None:
    """Take the parts of a stage, and write what came of them into the JSON file. The whole of a module's `main`.

    Args:
        stage: `build` or `measure`.
        section: of the file, that the records go to.
        parts: builds them; also in the worker.
        finish: completes the file's content once all records are there.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--builds", type=Path, help="environments of tools/gpu.sh")
    parser.add_argument("--limit-s", type=float, default=540.0)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--worker", type=Path)
    parser.add_argument("--parts", default="")
    parser.add_argument("--deadline", type=float)
    options = parser.parse_args()
    bench = Bench(options.dry_run, options.builds)
    by_name = {part.name: part for part in [Part("machine", lambda: describe(bench)), *parts(bench)]}
    if options.worker:
        torch.manual_seed(0)
        work(by_name, options.parts.split(","), options.worker, options.deadline, bench.has_gpu)
        return
    began = time.monotonic()
    content = read_results(options.out)
    if content.get("is_dry_run") != options.dry_run:
        content = {}
    content |= {"schema": 1, "is_dry_run": options.dry_run, section: {}}
    content["builds"] = content.get("builds", {}) | read_builds(options.builds)

    def keep(name: str, record: Record) -> None:
        if name == "machine":
            content["machine"] = record.get("figures", {"reason": record["reason"]})
        else:
            content[section][name] = record
        write_json(options.out, content)
        reason = f": {record['reason']}" if record["reason"] else ""
        print(f"{name}: {record['verdict']}, {record['seconds']:.1f} s{reason}", flush=True)

    words = [
        *(["--dry-run"] if options.dry_run else []),
        *(["--builds", str(options.builds)] if options.builds else []),
    ]
    with tempfile.TemporaryDirectory(prefix="cxr-gpu-") as folder:
        limits = {name: part.limit_s for name, part in by_name.items()}
        run_parts(module, limits, words, Path(folder), began + options.limit_s, keep)
    finish(content)
    content.setdefault("stages", {})[stage] = {"seconds": round(time.monotonic() - began, 1)}
    write_json(options.out, content)


def read_results(path: Path) -> Record:
    """Return what an earlier stage has written; nothing where there is no such file."""
    content: Record = json.loads(path.read_text()) if path.exists() else {}
    return content


def read_builds(folder: Path | None) -> dict[str, Record]:
    """Return what tools/gpu.sh has noted of each build."""
    builds: dict[str, Record] = {}
    for path in sorted(folder.glob("*.build")) if folder else []:
        verdict, seconds, detail = path.read_text().strip().split("\n", 2)
        builds[path.stem] = {"verdict": "fail", "reason": detail, "seconds": float(seconds)}
        if verdict == "built":
            holds = {word.partition("=")[0]: word.endswith("=1") for word in detail.split()}
            builds[path.stem] |= {"verdict": "pass", "reason": "", "figures": holds}
    return builds


def describe(bench: Bench) -> Figures:
    """Return what the machine has: GPUs, driver, torch, CUDA's compiler, NCCL, cores, packages."""
    from importlib.metadata import PackageNotFoundError, version
    from platform import python_version

    from bench.report import describe_machine

    packages = {}
    for name in ("torch", "torchvision", "numpy", "h5py", "horovod", "opencv-python-headless", "scikit-learn"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "missing"
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "gpus": gpus,
        "gpu_memory_gb": round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1) if gpus else 0,
        "driver": read_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        "nvcc": read_line(["nvcc", "--version"], "release"),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if gpus else "no GPU",  # type: ignore[no-untyped-call]
        "cuda_of_torch": torch.version.cuda or "none",
        "processor": describe_machine(),
        "python": python_version(),
        "packages": packages,
        "measured_on": str(bench.device),
    }


def read_line(command: list[str], containing: str = "") -> str:
    """Return the first line of a command's output that holds a text; `none` where it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "none"
    return next((line.strip() for line in done.stdout.splitlines() if containing in line), "none")
