"""The verdicts: turn answers into findings, with the command that mends a fault. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cxr_hvd.doctor.questions import Answer, numbers_in

Status = Literal["ok", "warn", "fail"]


MIN_PYTHON = (3, 11)
MIN_TORCH = (2, 9)
SCARCE_DISK_GB, ENOUGH_DISK_GB = 1.0, 10.0
ENOUGH_SHM_MIB = 128  # the default of containers is 64; MPI puts its buffers there

SETUP = "make setup"
MPI_PACKAGES = "apt-get install -y openmpi-bin libopenmpi-dev && make setup"
# The mending commands where the package was installed without its sources, and so without a Makefile.
BUILD_HOROVOD = (
    "make setup in a clone of the sources: it builds Horovod for the torch that is there, pip alone does not"
)
WITHOUT_MAKEFILE = {
    "Python": "install cxr_hvd anew, into an environment of Python 3.11 or newer",
    "torch": "pip install --force-reinstall 'torch>=2.9' torchvision",
    "torchvision": "pip install --force-reinstall 'torch>=2.9' torchvision",
    "Horovod": BUILD_HOROVOD,
    "mpirun": "apt-get install -y openmpi-bin libopenmpi-dev",
    "mpi4py": "pip install --force-reinstall --no-cache-dir --no-binary mpi4py mpi4py",
    "h5py": "pip install --force-reinstall h5py",
    "opencv": "pip install --force-reinstall opencv-python-headless",
    "libraries": "pip install --force-reinstall cxr_hvd",
    "GPU": "pip install --force-reinstall 'torch>=2.9' torchvision",
}
FOR_SEVERAL_RANKS = ("Horovod", "mpirun", "NCCL")
NO_HOROVOD = "No module named 'horovod'"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: the part of the machine.
        status: `ok`, `warn` (works, but not as well as it could) or `fail` (training will not run).
        detail: versions, sizes or the error, in one line.
        mend: the command that mends it; None where all is in order.
    """

    name: str
    status: Status
    detail: str
    mend: str | None = None


def judge_python(version: tuple[int, ...]) -> Finding:
    """Judge the interpreter's version."""
    detail = ".".join(map(str, version))
    if version[:2] < MIN_PYTHON:
        return Finding(
            "Python", "fail", f"{detail}, expected 3.11 or newer", f"tools/install.sh --python PY  ({SETUP})"
        )
    return Finding("Python", "ok", detail)


def judge_torch(answer: Answer) -> Finding:
    """Judge torch: it imports and is new enough."""
    if "error" in answer:
        return Finding("torch", "fail", answer["error"], SETUP)
    target = f"CUDA {answer['cuda']}" if answer["cuda"] else "processors only"
    detail = f"{answer['version']}, built for {target}"
    if numbers_in(answer["version"])[:2] < MIN_TORCH:
        return Finding("torch", "fail", f"{detail}; expected 2.9 or newer", SETUP)
    return Finding("torch", "ok", detail)


def judge_works(name: str, answer: Answer) -> Finding:
    """Judge a package by a small computation with a known result."""
    if "error" in answer:
        return Finding(name, "fail", answer["error"], SETUP)
    if not answer["works"]:
        return Finding(name, "fail", f"{answer['version']} computes a wrong result", SETUP)
    return Finding(name, "ok", answer["version"])


def judge_horovod(answer: Answer) -> Finding:
    """Judge Horovod: built for the installed torch, with Gloo. MPI may be left out (`--without-mpi`)."""
    if is_not_installed(answer):
        detail = "not installed: one site alone trains without it (--site NAME), several ranks need it"
        return Finding("Horovod", "warn", detail, SETUP)
    if "error" in answer:
        return Finding("Horovod", "fail", answer["error"], SETUP)
    parts = [name for name in ("mpi", "gloo", "nccl", "cuda") if answer.get(name)]
    detail = f"{answer['version']} for torch {answer['built_for']} with {', '.join(parts) or 'nothing'}"
    if answer["built_for"] != answer["torch"]:
        return Finding("Horovod", "fail", f"{detail}; torch is {answer['torch']}", SETUP)
    if not answer["gloo"]:
        return Finding("Horovod", "fail", f"{detail}; expected gloo", MPI_PACKAGES)
    return Finding("Horovod", "ok", detail)


def judge_mpirun(answer: Answer, horovod: Answer, other_launcher: str | None = None) -> Finding:
    """Judge the MPI launcher: one is on PATH, or none is needed.

    Args:
        answer: of mpirun.
        horovod: of Horovod, which may be built without MPI.
        other_launcher: that of a cluster, such as srun.
    """
    if "error" in answer and other_launcher:
        return Finding("mpirun", "ok", f"{answer['error']}; {other_launcher} starts ranks")
    if "error" in answer and is_without_mpi(horovod):
        return Finding("mpirun", "ok", f"{answer['error']}; Horovod is built without MPI: horovodrun --gloo")
    if "error" in answer:
        return Finding("mpirun", "fail", f"{answer['error']}, expected one (or load its module)", MPI_PACKAGES)
    return Finding("mpirun", "ok", f"{answer['version']} at {answer['path']}")


def judge_mpi4py(answer: Answer, mpirun: Answer, horovod: Answer) -> Finding:
    """Judge mpi4py: it uses the same MPI library as Horovod and mpirun."""
    if "error" in answer and "error" in mpirun and is_without_mpi(horovod):
        return Finding("mpi4py", "ok", "finds no MPI, and needs none: preprocessing runs in one process")
    if "error" in answer:
        return Finding("mpi4py", "fail", answer["error"], SETUP)
    library = re.split(r"[,\n]", answer["library"])[0].strip()
    detail = f"{answer['version']} on {library}"
    if "error" not in mpirun and _make_and_version(library) != _make_and_version(mpirun["version"]):
        return Finding("mpi4py", "fail", f"{detail}, but mpirun is {mpirun['version']}", SETUP)
    if "error" not in horovod and horovod["mpi"] and horovod["libmpi"] != answer["libmpi"]:
        return Finding(
            "mpi4py", "fail", f"{detail} loads {answer['libmpi']}, Horovod loads {horovod['libmpi']}", SETUP
        )
    return Finding("mpi4py", "ok", detail)


def judge_h5py(answer: Answer) -> Finding:
    """Judge h5py: it imports."""
    if "error" in answer:
        return Finding("h5py", "fail", answer["error"], SETUP)
    return Finding("h5py", "ok", f"{answer['version']} on HDF5 {answer['hdf5']}")


def judge_libraries(answer: Answer) -> Finding:
    """Judge the libraries that need no more than an import."""
    if "error" in answer:
        return Finding("libraries", "fail", answer["error"], SETUP)
    return Finding(
        "libraries", "ok", ", ".join(f"{name} {version}" for name, version in answer["versions"].items())
    )


def judge_gpu(torch: Answer, has_driver: bool) -> Finding:
    """Judge the GPUs: no GPU is in order, a GPU that torch cannot use is not."""
    gpus = torch.get("gpus", [])
    if gpus:
        return Finding("GPU", "ok", f"{len(gpus)}: {', '.join(sorted(set(gpus)))}")
    if not has_driver:
        return Finding("GPU", "ok", "none, training runs on the processor")
    if not torch.get("cuda"):
        return Finding(
            "GPU", "warn", "an NVIDIA driver, but torch is built without CUDA", "rm -r .venv && make setup"
        )
    return Finding("GPU", "warn", f"an NVIDIA driver, but torch (CUDA {torch['cuda']}) sees no GPU", "nvidia-smi")


def judge_nccl(torch: Answer, horovod: Answer) -> Finding:
    """Judge NCCL: with GPUs, Horovod should be built with it."""
    if "error" in horovod:
        return Finding("NCCL", "fail", "unknown, Horovod does not import", SETUP)
    if horovod["nccl"]:
        return Finding("NCCL", "ok", "built into Horovod")
    if torch.get("gpus"):
        mend = f"install the CUDA {torch['cuda']} toolkit (nvcc), then {SETUP}"
        detail = "not built into Horovod: several ranks exchange through the host's memory"
        return Finding("NCCL", "warn", detail, mend)
    return Finding("NCCL", "ok", "not built into Horovod, and no GPU needs it")


def judge_threads(cores: int, omp_num_threads: str | None) -> Finding:
    """Judge OMP_NUM_THREADS against the cores that this process may use."""
    plural = "core" if cores == 1 else "cores"
    if omp_num_threads is None:
        return Finding("threads", "ok", f"{cores} {plural}, OMP_NUM_THREADS unset")
    detail = f"OMP_NUM_THREADS={omp_num_threads} on {cores} {plural}"
    if not omp_num_threads.isdigit() or not 1 <= int(omp_num_threads) <= cores:
        return Finding("threads", "warn", f"{detail}, expected 1 to {cores}", f"export OMP_NUM_THREADS={cores}")
    return Finding("threads", "ok", detail)


def judge_disk(folder: str, free_gb: float) -> Finding:
    """Judge the free space (1e9 bytes) of the disk that runs are written to."""
    detail = f"{free_gb:.1f} GB free in {folder}"
    if free_gb < ENOUGH_DISK_GB:
        status: Status = "fail" if free_gb < SCARCE_DISK_GB else "warn"
        return Finding(
            "disk", status, f"{detail}, expected {ENOUGH_DISK_GB:.0f}", f"du -xh --max-depth=1 {folder} | sort -h"
        )
    return Finding("disk", "ok", detail)


def judge_shm(size_mib: int | None) -> Finding:
    """Judge the shared memory that MPI uses between ranks of a machine; None where there is none."""
    mend = "mount -o remount,size=1g /dev/shm  (in Docker: docker run --shm-size=1g ...)"
    if size_mib is None:
        return Finding("/dev/shm", "warn", f"not there, expected {ENOUGH_SHM_MIB} MiB or more", mend)
    if size_mib < ENOUGH_SHM_MIB:
        return Finding("/dev/shm", "warn", f"{size_mib} MiB, expected {ENOUGH_SHM_MIB} or more", mend)
    return Finding("/dev/shm", "ok", f"{size_mib} MiB")


def judge_launch(name: str, answer: Answer) -> Finding:
    """Judge the sum of 1 and 2 over two ranks: both must report two ranks and the sum 3."""
    if "error" in answer:
        return Finding(name, "fail", answer["error"], SETUP)
    ranks = [tuple(rank) for rank in answer["ranks"]]
    if ranks == [(2, 3.0)] * 2:
        return Finding(name, "ok", "both see 1 + 2 = 3")
    if ranks == [(1, 1.0)] * 2:
        return Finding(name, "fail", "each rank sees only itself: Horovod is built for another MPI", SETUP)
    return Finding(name, "fail", f"expected (2 ranks, sum 3.0) twice, found {ranks}", SETUP)


def gpu_launches(num_gpus: int, has_nccl: bool) -> list[int]:
    """Return the numbers of ranks that try out this machine's GPUs; a single GPU's NCCL is tried by one rank."""
    if not num_gpus:
        return []
    return [1, 2] if num_gpus == 1 and has_nccl else [2]


def judge_gpu_launch(num_ranks: int, answer: Answer) -> Finding:
    """Judge a sum of tensors on GPUs, and say which way they took."""
    name = "GPU, two ranks" if num_ranks == 2 else "GPU, one rank"
    if "error" in answer:
        return Finding(name, "fail", answer["error"], f"NCCL_DEBUG=INFO cxr-hvd doctor, then {SETUP}")
    ranks, wanted = [tuple(rank) for rank in answer["ranks"]], (num_ranks, num_ranks * (num_ranks + 1) / 2)
    if ranks != [wanted] * num_ranks:
        return Finding(name, "fail", f"expected (ranks, sum) {wanted} of each, found {ranks}", SETUP)
    return Finding(name, "ok", answer["way"])


def is_without_mpi(horovod: Answer) -> bool:
    """Return whether Horovod is there and built without MPI."""
    return "error" not in horovod and not horovod["mpi"]


def is_not_installed(horovod: Answer) -> bool:
    """Return whether Horovod is not installed at all, which is no fault where one site trains alone."""
    return NO_HOROVOD in str(horovod.get("error", ""))


def fit_to_installation(findings: Sequence[Finding], has_makefile: bool, has_horovod: bool) -> list[Finding]:
    """Adapt findings to an installation without Horovod or without a Makefile.

    Args:
        findings: the verdicts for an installation by `make setup`.
        has_makefile: whether `make` can mend; where not, another command is named.
        has_horovod: whether Horovod is installed; where not, parts that only several ranks need are no failure.
    """
    fitted = []
    for finding in findings:
        if not has_horovod and finding.name in FOR_SEVERAL_RANKS and finding.status == "fail":
            finding = replace(finding, status="warn")
        if not has_makefile and finding.mend and re.search(r"make setup|install\.sh|nvcc", finding.mend):
            finding = replace(finding, mend=WITHOUT_MAKEFILE.get(finding.name, BUILD_HOROVOD))
        fitted.append(finding)
    return fitted


def _make_and_version(text: str) -> tuple[str, tuple[int, ...]]:
    """Return an MPI's make and version from the version text of its library or launcher."""
    make = next((make for make in ("Open MPI", "Intel", "MPICH", "HYDRA") if make in text), text)
    return ("MPICH" if make == "HYDRA" else make), numbers_in(text)
