"""Examine this machine: is all there that training together needs, and do two ranks really add up?

Owns the checks behind `cxr-hvd doctor`. Every check yields a `Finding`, and every finding that is not in order
names the command that mends it. What a package says of itself is asked in a process of its own, so that one that
crashes on import, or waits for ever, is a finding and not the end of the examination. Asking (`ask`, `launch`) is
kept apart from judging (`judge_*`, pure functions), so that each verdict can be tested on made-up answers.

Leaves to others: printing and the exit code (`cxr_hvd.cli`), mending (`tools/install.sh`).
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.markup import escape
from rich.table import Table

Status = Literal["ok", "warn", "fail"]
Answer = Mapping[str, Any]  # what a question printed as JSON, or {"error": "one line"}

MIN_PYTHON = (3, 11)
MIN_TORCH = (2, 9)
LAUNCH_LIMIT_S = 60.0  # two ranks need 5 s on two busy cores
QUESTION_LIMIT_S = 60.0
GRACE_S = 5.0  # for a launcher to end its ranks
SCARCE_DISK_GB, ENOUGH_DISK_GB = 1.0, 10.0
ENOUGH_SHM_MIB = 128  # containers give 64 unless told otherwise; MPI puts its buffers there

SETUP = "make setup"
MPI_PACKAGES = "apt-get install -y openmpi-bin libopenmpi-dev && make setup"

# Each question is a program that prints one line of JSON. Horovod's is a string here for a second reason: only
# cxr_hvd.collective.comm imports Horovod into this program.
_LIBMPI = """
def libmpi():
    found = re.findall(r"/\\S*/libmpi\\.so\\S*", open("/proc/self/maps").read())
    return sorted({os.path.realpath(path) for path in found})
"""
QUESTIONS = {
    "torch": """
import json, torch
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "gpus": gpus}))
""",
    "torchvision": """
import json, torch, torchvision.ops
kept = torchvision.ops.nms(torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2]]), torch.tensor([0.9, 0.8]), 0.5)
print(json.dumps({"version": torchvision.__version__, "works": kept.tolist() == [0]}))
""",
    "horovod": "import json, os, re\n"
    + _LIBMPI
    + """
import horovod, torch, horovod.torch as hvd
built_for = json.load(open(os.path.dirname(horovod.__file__) + "/metadata.json")).get("pytorch")
print(json.dumps({"version": horovod.__version__, "built_for": built_for, "torch": torch.__version__,
    "mpi": bool(hvd.mpi_built()), "gloo": bool(hvd.gloo_built()), "nccl": bool(hvd.nccl_built()),
    "cuda": bool(hvd.cuda_built()), "libmpi": libmpi()}))
""",
    "mpi4py": "import json, os, re\n"
    + _LIBMPI
    + """
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
print(json.dumps({"version": mpi4py.__version__, "library": MPI.Get_library_version(), "libmpi": libmpi()}))
""",
    "h5py": """
import json, h5py
print(json.dumps({"version": h5py.__version__, "hdf5": h5py.version.hdf5_version}))
""",
    "opencv": """
import json, cv2, numpy
wide = numpy.full((64, 96), 128, numpy.uint8)
small = cv2.imdecode(cv2.imencode(".jpg", wide)[1], cv2.IMREAD_REDUCED_GRAYSCALE_4)
turned = cv2.warpAffine(small, numpy.eye(2, 3, dtype=numpy.float32), (8, 8))
works = small.shape == (16, 24) and abs(int(turned[4, 4]) - 128) < 3
print(json.dumps({"version": cv2.__version__, "works": works}))
""",
    "libraries": """
import json, numpy, pydantic, safetensors.torch, sklearn, yaml
from torch.utils.tensorboard import SummaryWriter
print(json.dumps({"versions": {m.__name__: m.__version__ for m in (numpy, pydantic, sklearn, yaml)}}))
""",
}

# Written by every rank, without a newline inside: launchers cut lines apart, not writes.
TWO_RANKS = """
import os, torch, horovod.torch as hvd
hvd.init()
total = hvd.allreduce(torch.tensor([hvd.rank() + 1.0]), op=hvd.Sum).item()
os.write(1, b"size=%d sum=%.1f\\n" % (hvd.size(), total))
hvd.shutdown()
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What was looked at.
        status: `ok`, `warn` (works, but not as well as it could) or `fail` (training will not run).
        found: What was found, in one line.
        mend: The command that mends it; None where nothing is to be mended.
    """

    name: str
    status: Status
    found: str
    mend: str | None = None


def examine(launches: bool = True) -> list[Finding]:
    """Look at everything.

    Args:
        launches: Also start two ranks, twice; this is what takes the time (5 to 15 s).

    Blocking: at most about four minutes, for every question and every launch has its limit.
    """
    with ThreadPoolExecutor(max_workers=2) as pool:
        answers = dict(zip(QUESTIONS, pool.map(ask, QUESTIONS.values()), strict=True))
    mpirun = ask_mpirun()
    findings = [
        judge_python(sys.version_info[:3]),
        judge_torch(answers["torch"]),
        judge_works("torchvision", answers["torchvision"]),
        judge_horovod(answers["horovod"]),
        judge_mpirun(mpirun),
        judge_mpi4py(answers["mpi4py"], mpirun, answers["horovod"]),
        judge_h5py(answers["h5py"]),
        judge_works("opencv", answers["opencv"]),
        judge_libraries(answers["libraries"]),
        judge_gpu(answers["torch"], has_driver=Path("/proc/driver/nvidia/version").exists()),
        judge_nccl(answers["torch"], answers["horovod"]),
        judge_threads(count_cores(), os.environ.get("OMP_NUM_THREADS")),
        judge_disk(str(Path.cwd()), shutil.disk_usage(Path.cwd()).free / 1e9),
        judge_shm(_size_mib(Path("/dev/shm"))),
    ]
    if launches:
        findings += [
            judge_launch("two ranks, mpirun", launch(mpirun_command(mpirun))),
            judge_launch("two ranks, horovodrun --gloo", launch(horovodrun_command())),
        ]
    return findings


def has_failed(findings: list[Finding]) -> bool:
    """Return whether anything was found that keeps training from running."""
    return any(finding.status == "fail" for finding in findings)


def to_dicts(findings: list[Finding]) -> list[dict[str, str | None]]:
    """Return the findings as JSON can hold them: keys `name`, `status`, `found`, `mend`."""
    return [asdict(finding) for finding in findings]


def render(findings: list[Finding]) -> Table:
    """Return a table for a terminal, with what mends a finding below it."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for column, style in (("status", ""), ("name", "bold"), ("found", "")):
        table.add_column(column, style=style, no_wrap=column != "found", overflow="fold")
    marks = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[red]FAIL[/]"}
    for finding in findings:
        table.add_row(marks[finding.status], finding.name, escape(finding.found))
        if finding.mend:
            table.add_row("", "", f"[cyan]mend:[/] {escape(finding.mend)}")
    return table


# ---------------------------------------------------------------- asking


def run_bounded(command: list[str], limit_s: float) -> tuple[int | None, str]:
    """Run a command with all that it starts, for a limited time.

    Returns:
        Its exit status, or None where it was stopped at the limit; and its output, errors included.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=_launch_environment(os.environ),
        )
        status: int | None
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end_session(process)
        output.seek(0)
        return status, output.read()


def ask(program: str, limit_s: float = QUESTION_LIMIT_S) -> Answer:
    """Run a Python program of its own and return the JSON that it prints last, or its `error` in one line."""
    status, output = run_bounded([sys.executable, "-c", program], limit_s)
    lines = output.strip().splitlines()
    if status == 0 and lines:
        answer: Answer = json.loads(lines[-1])
        return answer
    return {"error": _last_words(status, lines, limit_s)}


def ask_mpirun() -> Answer:
    """Return `path` and `version` (make and number, as it says them) of the mpirun on PATH, or an `error`."""
    path = shutil.which("mpirun")
    if path is None:
        return {"error": "no mpirun on PATH"}
    status, output = run_bounded([path, "--version"], QUESTION_LIMIT_S)
    lines = output.strip().splitlines()
    if status != 0 or not lines:
        return {"error": f"{path} --version: {_last_words(status, lines, QUESTION_LIMIT_S)}"}
    numbered = next((line for line in lines if _numbers(line)), "")  # MPICH's Hydra says it on its second line
    return {"path": path, "version": lines[0] if numbered == lines[0] else f"{lines[0]} {numbered.strip()}"}


def mpirun_command(mpirun: Answer) -> list[str]:
    """Return the command that starts two ranks with mpirun, or an empty list where there is none."""
    if "error" in mpirun:
        return []
    as_root = ["--allow-run-as-root"] if os.geteuid() == 0 and "Open MPI" in mpirun["version"] else []
    return [mpirun["path"], *as_root, "-np", "2"]


def horovodrun_command() -> list[str]:
    """Return the command that starts two ranks with Horovod's launcher over Gloo, or an empty list."""
    beside = Path(sys.executable).with_name("horovodrun")
    path = str(beside) if beside.exists() else shutil.which("horovodrun")
    return [path, "--gloo", "-np", "2"] if path else []


def launch(launcher: list[str], limit_s: float = LAUNCH_LIMIT_S) -> Answer:
    """Start two ranks that add up their numbers; return `ranks`, each rank's (size, sum), or an `error`."""
    if not launcher:
        return {"error": "its launcher is not on PATH"}
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "two_ranks.py")
        program.write_text(TWO_RANKS)
        status, output = run_bounded([*launcher, sys.executable, str(program)], limit_s)
    if status != 0:
        return {"error": _last_words(status, output.strip().splitlines(), limit_s)}
    ranks = [(int(size), float(total)) for size, total in re.findall(r"size=(\d+) sum=([\d.]+)", output)]
    return {"ranks": ranks}


def count_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many cores this process may use: its affinity, and a container's share where that is less."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        return cores  # no such file: the older cgroup layout, or no container at all


# ---------------------------------------------------------------- judging


def judge_python(version: tuple[int, ...]) -> Finding:
    """Judge the interpreter's version."""
    found = ".".join(map(str, version))
    if version[:2] < MIN_PYTHON:
        return Finding(
            "Python", "fail", f"{found}, expected 3.11 or newer", f"tools/install.sh --python PY  ({SETUP})"
        )
    return Finding("Python", "ok", found)


def judge_torch(answer: Answer) -> Finding:
    """Judge torch: it imports, and is not too old."""
    if "error" in answer:
        return Finding("torch", "fail", answer["error"], SETUP)
    found = f"{answer['version']}, built for {'CUDA ' + answer['cuda'] if answer['cuda'] else 'processors only'}"
    if _numbers(answer["version"])[:2] < MIN_TORCH:
        return Finding("torch", "fail", f"{found}; expected 2.9 or newer", SETUP)
    return Finding("torch", "ok", found)


def judge_works(name: str, answer: Answer) -> Finding:
    """Judge a package whose question computed something small with a known result."""
    if "error" in answer:
        return Finding(name, "fail", answer["error"], SETUP)
    if not answer["works"]:
        return Finding(name, "fail", f"{answer['version']} computes a wrong result", SETUP)
    return Finding(name, "ok", answer["version"])


def judge_horovod(answer: Answer) -> Finding:
    """Judge Horovod: built for the torch that is installed, with both controllers."""
    if "error" in answer:
        return Finding("Horovod", "fail", answer["error"], SETUP)
    parts = [name for name in ("mpi", "gloo", "nccl", "cuda") if answer[name]]
    found = f"{answer['version']} for torch {answer['built_for']} with {', '.join(parts) or 'nothing'}"
    if answer["built_for"] != answer["torch"]:
        return Finding("Horovod", "fail", f"{found}; torch is {answer['torch']}", SETUP)
    if not (answer["mpi"] and answer["gloo"]):
        return Finding("Horovod", "fail", f"{found}; expected mpi and gloo", MPI_PACKAGES)
    return Finding("Horovod", "ok", found)


def judge_mpirun(answer: Answer) -> Finding:
    """Judge the MPI launcher: there is one."""
    if "error" in answer:
        return Finding("mpirun", "fail", f"{answer['error']}, expected one (or load its module)", MPI_PACKAGES)
    return Finding("mpirun", "ok", f"{answer['version']} at {answer['path']}")


def judge_mpi4py(answer: Answer, mpirun: Answer, horovod: Answer) -> Finding:
    """Judge mpi4py: one and the same MPI library for mpi4py, Horovod and mpirun."""
    if "error" in answer:
        return Finding("mpi4py", "fail", answer["error"], SETUP)
    library = re.split(r"[,\n]", answer["library"])[0].strip()
    found = f"{answer['version']} on {library}"
    if "error" not in mpirun and _mpi(library) != _mpi(mpirun["version"]):
        return Finding("mpi4py", "fail", f"{found}, but mpirun is {mpirun['version']}", SETUP)
    if "error" not in horovod and horovod["mpi"] and horovod["libmpi"] != answer["libmpi"]:
        theirs, ours = horovod["libmpi"], answer["libmpi"]
        return Finding("mpi4py", "fail", f"{found} loads {ours}, Horovod loads {theirs}", SETUP)
    return Finding("mpi4py", "ok", found)


def judge_h5py(answer: Answer) -> Finding:
    """Judge h5py."""
    if "error" in answer:
        return Finding("h5py", "fail", answer["error"], SETUP)
    return Finding("h5py", "ok", f"{answer['version']} on HDF5 {answer['hdf5']}")


def judge_libraries(answer: Answer) -> Finding:
    """Judge the libraries that only have to be there."""
    if "error" in answer:
        return Finding("libraries", "fail", answer["error"], SETUP)
    return Finding(
        "libraries", "ok", ", ".join(f"{name} {version}" for name, version in answer["versions"].items())
    )


def judge_gpu(torch: Answer, has_driver: bool) -> Finding:
    """Judge the GPUs: none is in order, one that torch cannot use is not."""
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
    """Judge whether Horovod exchanges between GPUs directly."""
    if "error" in horovod:
        return Finding("NCCL", "fail", "cannot be told, Horovod does not import", SETUP)
    if horovod["nccl"]:
        return Finding("NCCL", "ok", "built into Horovod")
    if torch.get("gpus"):
        mend = f"install the CUDA {torch['cuda']} toolkit (nvcc), then {SETUP}"
        return Finding("NCCL", "warn", "not built into Horovod, although there are GPUs", mend)
    return Finding("NCCL", "ok", "not built into Horovod, and no GPU needs it")


def judge_threads(cores: int, omp_num_threads: str | None) -> Finding:
    """Judge OMP_NUM_THREADS against the cores that this process may use."""
    plural = "core" if cores == 1 else "cores"
    if omp_num_threads is None:
        return Finding("threads", "ok", f"{cores} {plural}, OMP_NUM_THREADS unset")
    found = f"OMP_NUM_THREADS={omp_num_threads} on {cores} {plural}"
    if not omp_num_threads.isdigit() or not 1 <= int(omp_num_threads) <= cores:
        return Finding("threads", "warn", f"{found}, expected 1 to {cores}", f"export OMP_NUM_THREADS={cores}")
    return Finding("threads", "ok", found)


def judge_disk(folder: str, free_gb: float) -> Finding:
    """Judge the free space (1e9 bytes) of the disk that runs are written to."""
    found = f"{free_gb:.1f} GB free in {folder}"
    if free_gb < ENOUGH_DISK_GB:
        status: Status = "fail" if free_gb < SCARCE_DISK_GB else "warn"
        return Finding(
            "disk", status, f"{found}, expected {ENOUGH_DISK_GB:.0f}", f"du -xh --max-depth=1 {folder} | sort -h"
        )
    return Finding("disk", "ok", found)


def judge_shm(size_mib: int | None) -> Finding:
    """Judge the shared memory through which the ranks of one machine talk; None where there is none."""
    mend = "mount -o remount,size=1g /dev/shm  (in Docker: docker run --shm-size=1g ...)"
    if size_mib is None:
        return Finding("/dev/shm", "warn", f"not there, expected {ENOUGH_SHM_MIB} MiB or more", mend)
    if size_mib < ENOUGH_SHM_MIB:
        return Finding("/dev/shm", "warn", f"{size_mib} MiB, expected {ENOUGH_SHM_MIB} or more", mend)
    return Finding("/dev/shm", "ok", f"{size_mib} MiB")


def judge_launch(name: str, answer: Answer) -> Finding:
    """Judge two ranks that held 1 and 2: both have to see two ranks, and the sum 3."""
    if "error" in answer:
        return Finding(name, "fail", answer["error"], SETUP)
    ranks = [tuple(rank) for rank in answer["ranks"]]
    if ranks == [(2, 3.0)] * 2:
        return Finding(name, "ok", "both see 1 + 2 = 3")
    if ranks == [(1, 1.0)] * 2:
        return Finding(name, "fail", "each rank sees only itself: Horovod is built for another MPI", SETUP)
    return Finding(name, "fail", f"expected (2 ranks, sum 3.0) twice, found {ranks}", SETUP)


# ---------------------------------------------------------------- small things


def _launch_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what an enclosing launcher left, which would make ranks join that job."""
    foreign = re.compile(
        r"^(OMPI_(?!MCA_|ALLOW_)|PMIX_|PMI_|PRTE_|HOROVOD_(RANK|SIZE|LOCAL|CROSS|GLOO|CONTROLLER))"
    )
    kept = {name: value for name, value in environ.items() if not foreign.match(name)}
    # Two ranks are to run on one core too, and beside busy neighbours: Open MPI spins while it waits.
    gentle = {
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "OMPI_MCA_mpi_yield_when_idle": "1",
        "OMP_NUM_THREADS": "1",
    }
    return gentle | kept


def _end_session(process: "subprocess.Popen[bytes]") -> None:
    """End a command and what it left running. Launchers end their ranks when asked to, so they are asked first."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_words(status: int | None, lines: list[str], limit_s: float) -> str:
    """Return in one line why a command failed: the last line that speaks of an error, else the last line."""
    if status is None:
        return f"no answer within {limit_s:.0f} s"
    telling = [line for line in lines if re.search(r"error|cannot|not found|failed", line, re.I)]
    line = (telling or lines or ["no output"])[-1]
    return f"{line.strip()[:300]} (exit status {status})"


def _numbers(text: str) -> tuple[int, ...]:
    """Return the first dotted number in a text: "Open MPI v4.1.4" gives (4, 1, 4)."""
    match = re.search(r"\d+(\.\d+)*", text)
    return tuple(map(int, match[0].split("."))) if match else ()


def _mpi(text: str) -> tuple[str, tuple[int, ...]]:
    """Return an MPI's make and version from what its library or its launcher says of itself."""
    make = next((make for make in ("Open MPI", "Intel", "MPICH", "HYDRA") if make in text), text)
    return ("MPICH" if make == "HYDRA" else make), _numbers(text)


def _size_mib(folder: Path) -> int | None:
    """Return the size of the file system that a folder is on, in MiB; None where there is no such folder."""
    return shutil.disk_usage(folder).total // 2**20 if folder.is_dir() else None
