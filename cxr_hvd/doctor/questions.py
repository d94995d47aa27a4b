"""The questions: ask packages, launchers and the machine for versions and parts, each within a time limit."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypedDict


class Answer(TypedDict, total=False):
    """The JSON of a question: `error` in one line, or the other keys of that question."""

    error: str
    version: str
    cuda: str | bool | None  # torch: the CUDA version that it is built for; Horovod: whether it is built with CUDA
    gpus: list[str]
    works: bool
    built_for: str | None  # Horovod: the version of torch
    torch: str
    mpi: bool
    gloo: bool
    nccl: bool
    libmpi: list[str]  # real paths of the MPI libraries that are loaded
    library: str  # mpi4py: the MPI library's version text
    hdf5: str
    versions: dict[str, str]
    path: str
    ranks: list[tuple[int, float]]
    way: str  # how tensors of GPUs travel


LAUNCH_LIMIT_S = 60.0  # two ranks need 5 s on two busy cores
QUESTION_LIMIT_S = 60.0
GRACE_S = 5.0  # for a launcher to end its ranks

# Each question is a program that prints one line of JSON. A new process runs it, and only
# cxr_hvd.comm.horovod may import Horovod into this program, so the programs are texts.
_LIBMPI = """
def libmpi():
    paths = re.findall(r"/\\S*/libmpi\\.so\\S*", open("/proc/self/maps").read())
    return sorted({os.path.realpath(path) for path in paths})
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

# Every rank writes its line in one call, so that launchers do not mix the lines of ranks.
TWO_RANKS = """
import os, torch, horovod.torch as hvd
hvd.init()
total = hvd.allreduce(torch.tensor([hvd.rank() + 1.0]), op=hvd.Sum).item()
os.write(1, b"size=%d sum=%.1f\\n" % (hvd.size(), total))
hvd.shutdown()
"""
# The same with tensors on GPUs where there are any, by the way that training would take.
GPU_RANKS = """
import os, torch
from cxr_hvd.comm.device import choose_device
from cxr_hvd.comm.horovod import HorovodComm
comm = HorovodComm()
device = choose_device("auto", comm)
way = comm.use_device(device)
total = comm.begin_allgather(torch.tensor([comm.rank + 1.0], device=device), "device.doctor")().sum().item()
os.write(1, f"size={comm.num_ranks} sum={total:.1f} way={way}\\n".encode())
comm.close()
"""


def run_bounded(command: list[str], limit_s: float) -> tuple[int | None, str]:
    """Run a command in a session of its own, for a limited time; then end all that is left of the session.

    Returns:
        The exit status, or None at the time limit; and standard output with standard error.
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
    """Run a program in a new Python process; return the JSON of its last line, or its `error` in one line."""
    status, output = run_bounded([sys.executable, "-c", program], limit_s)
    lines = output.strip().splitlines()
    if status == 0 and lines:
        answer: Answer = json.loads(lines[-1])
        return answer
    return {"error": describe_failure(status, lines, limit_s)}


def ask_mpirun() -> Answer:
    """Return `path` and `version` (make and number) of the mpirun on PATH, or an `error`."""
    path = shutil.which("mpirun")
    if path is None:
        return {"error": "no mpirun on PATH"}
    status, output = run_bounded([path, "--version"], QUESTION_LIMIT_S)
    lines = output.strip().splitlines()
    if status != 0 or not lines:
        return {"error": f"{path} --version: {describe_failure(status, lines, QUESTION_LIMIT_S)}"}
    # MPICH's Hydra prints the number on its second line.
    numbered = next((line for line in lines if numbers_in(line)), "")
    return {"path": path, "version": lines[0] if numbered == lines[0] else f"{lines[0]} {numbered.strip()}"}


def ask_other_launcher() -> str | None:
    """Return the launcher of a cluster that has no mpirun: `srun`, for example; None where there is none."""
    return next((name for name in ("srun", "jsrun", "flux", "palsrun") if shutil.which(name)), None)


def mpirun_command(mpirun: Answer) -> list[str]:
    """Return the command that starts two ranks with mpirun, or an empty list where there is none."""
    if "error" in mpirun:
        return []
    as_root = ["--allow-run-as-root"] if os.geteuid() == 0 and "Open MPI" in mpirun["version"] else []
    return [mpirun["path"], *as_root, "-np", "2"]


def horovodrun_command(num_ranks: int = 2) -> list[str]:
    """Return the command that starts ranks with Horovod's launcher over Gloo, or an empty list."""
    in_environment = Path(sys.executable).with_name("horovodrun")
    path = str(in_environment) if in_environment.exists() else shutil.which("horovodrun")
    return [path, "--gloo", "-np", str(num_ranks)] if path else []


def launch(launcher: list[str], limit_s: float = LAUNCH_LIMIT_S, program: str | None = None) -> Answer:
    """Start ranks that sum their numbers from 1; return `ranks`, (size, sum) of every rank, or an `error`.

    Args:
        launcher: the words before the program.
        limit_s: the longest that it may take.
        program: `TWO_RANKS` where none is given, or `GPU_RANKS`, which gives the `way` of the tensors as well.
    """
    if not launcher:
        return {"error": "its launcher is not on PATH"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ranks.py")
        path.write_text(program or TWO_RANKS)
        status, output = run_bounded([*launcher, sys.executable, str(path)], limit_s)
    if status != 0:
        return {"error": describe_failure(status, output.strip().splitlines(), limit_s)}
    ranks = [(int(size), float(total)) for size, total in re.findall(r"size=(\d+) sum=([\d.]+)", output)]
    ways = re.findall(r"way=(.+)", output)
    return {"ranks": ranks, "way": ways[0]} if ways else {"ranks": ranks}


def count_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many cores this process may use: its affinity, and a container's share where that is less."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        return cores  # no such file: the older cgroup layout, or no container at all


def size_mib(folder: Path) -> int | None:
    """Return the size of the file system that a folder is on, in MiB; None where there is no such folder."""
    return shutil.disk_usage(folder).total // 2**20 if folder.is_dir() else None


def numbers_in(text: str) -> tuple[int, ...]:
    """Return the first dotted number in a text: "Open MPI v4.1.4" gives (4, 1, 4)."""
    match = re.search(r"\d+(\.\d+)*", text)
    return tuple(map(int, match[0].split("."))) if match else ()


def _launch_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without an enclosing launcher's variables, which would make ranks join its job."""
    foreign = re.compile(
        r"^(OMPI_(?!MCA_|ALLOW_)|PMIX_|PMI_|PRTE_|HOROVOD_(RANK|SIZE|LOCAL|CROSS|GLOO|CONTROLLER))"
    )
    kept = {name: value for name, value in environ.items() if not foreign.match(name)}
    # Two ranks may share one core with other work, and Open MPI spins while it waits.
    defaults = {
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "OMPI_MCA_mpi_yield_when_idle": "1",
        "OMP_NUM_THREADS": "1",
    }
    return defaults | kept


def _end_session(process: "subprocess.Popen[bytes]") -> None:
    """End a command and the rest of its session: SIGTERM first, since launchers then end their ranks."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def describe_failure(status: int | None, lines: list[str], limit_s: float) -> str:
    """Return in one line why a command failed: the last line about an error, or else the last line."""
    if status is None:
        return f"no answer within {limit_s:.0f} s"
    errors = [line for line in lines if re.search(r"error|cannot|not found|failed", line, re.I)]
    line = (errors or lines or ["no output"])[-1]
    return f"{line.strip()[:300]} (exit status {status})"
