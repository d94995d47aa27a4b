"""A private Slurm for tests: munge, a controller and two nodes, on this machine and in one folder.

It uses the programs of an installed Slurm and nothing else of it. All is taken down at the end, whatever happens.
Needs root, since a node's daemon starts jobs as other users.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab.launch import environment

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "slurm-wlm-torque", "munge")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
NODES = ("node1", "node2")
OVER = ("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL")
POLL_S = 0.25

CONFIG = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/run/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
# Of each node's own, or two PMIx servers on one machine would share their files.
TmpFS={folder}/tmp/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
MpiDefault=none
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=10
InactiveLimit=0
KillWait=5
MinJobAge=600
OverTimeLimit=0
{nodes}
PartitionName=low Nodes=ALL Default=YES MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=10 State=UP
PartitionName=high Nodes=ALL MaxTime=60 PriorityTier=10 PreemptMode=OFF State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """A Slurm that runs until its context ends.

    Attributes:
        folder: all that it writes.
        jobs: where jobs are submitted, and their logs lie.
    """

    folder: Path
    jobs: Path

    def call(self, *command: str, may_fail: bool = False) -> str:
        """Run one of Slurm's commands, and return what it printed."""
        done = subprocess.run(
            command, env=self.environment(), cwd=self.jobs, capture_output=True, text=True, timeout=60, check=False
        )
        assert may_fail or not done.returncode, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def environment(self) -> dict[str, str]:
        """Return the environment that finds this Slurm; jobs inherit it."""
        as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        variables = environment(
            SLURM_CONF=str(self.folder / "slurm.conf"), OMPI_MCA_mpi_yield_when_idle="1", **as_root
        )
        return variables | {"PATH": f"{variables['PATH']}:/usr/sbin"}

    def submit(self, *words: str) -> str:
        """Submit a job, and return its id."""
        return self.call("sbatch", "--parsable", *words)

    def about(self, job: str) -> dict[str, str]:
        """Return the controller's record of a job; the first part's, where a job has several."""
        record = self.call("scontrol", "show", "job", job, may_fail=True).split("\n\n")[0]
        return dict(word.split("=", 1) for word in record.split() if "=" in word)

    def state(self, job: str) -> str:
        """Return PENDING, RUNNING, COMPLETED, ..."""
        return self.about(job).get("JobState", "UNKNOWN")

    def wait(self, job: str, is_so: Callable[[], bool], limit_s: float) -> None:
        """Wait until something is so; fail with the job's log where it does not come in time."""
        deadline = time.monotonic() + limit_s
        while not is_so():
            assert time.monotonic() < deadline, f"job {job}, {self.state(job)}:\n{self.log(job)[-6000:]}"
            time.sleep(POLL_S)

    def finish(self, job: str, limit_s: float) -> str:
        """Wait for a job's end, over all of its starts; return its state."""
        self.wait(job, lambda: self.state(job) in OVER, limit_s)
        return self.state(job)

    def log(self, job: str) -> str:
        """Return what a job has printed, in all of its starts."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.jobs.glob(f"*-{job}.log")))

    def stop_node(self, node: str) -> None:
        """Let a node vanish: its daemon, which could tell of it, and then all that runs on it are killed."""
        tasks = _pids_with(f"SLURMD_NODENAME={node}")
        os.kill(int((self.folder / f"slurmd.{node}.pid").read_text()), signal.SIGKILL)
        for pid in [*{_parent(pid) for pid in tasks if _name(_parent(pid)) == "slurmstepd"}, *tasks]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def start_node(self, node: str) -> None:
        """Start a node's daemon, on a disk that holds nothing of earlier jobs, as after a restart."""
        for kind in ("spool", "tmp"):
            shutil.rmtree(self.folder / kind / node, ignore_errors=True)
            (self.folder / kind / node).mkdir(parents=True)
        subprocess.run(["slurmd", "-N", node], env=self.environment(), check=True, timeout=30)

    def processes(self, job: str) -> list[int]:
        """Return the processes of a job that still run."""
        return _pids_with(f"SLURM_JOB_ID={job}")


@contextmanager
def private_slurm(folder: Path) -> Iterator[Slurm]:
    """Start a Slurm in a folder; end it, and all jobs, with the context."""
    slurm = Slurm(folder, folder / "jobs")
    munge = folder / "munge"
    for name in ("state", "jobs"):
        (folder / name).mkdir(parents=True)
    for parent in (folder, *folder.parents):  # munge's user has to reach its own folder
        if parent.stat().st_uid == os.geteuid() and parent != Path(parent.anchor):
            parent.chmod(parent.stat().st_mode | 0o011)
    for name, mode in (("key", 0o700), ("log", 0o700), ("seed", 0o700), ("run", 0o755)):
        (munge / name).mkdir(parents=True)
        (munge / name).chmod(mode)
    (munge / "key" / "munge.key").write_bytes(os.urandom(1024))
    (munge / "key" / "munge.key").chmod(0o400)
    for path in (munge, *munge.rglob("*")):
        shutil.chown(path, "munge", "munge")
    ports = _free_ports(len(NODES) + 1)
    host = socket.gethostname().partition(".")[0]
    nodes = "\n".join(
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 State=UNKNOWN"
        for node, port in zip(NODES, ports[1:], strict=True)
    )
    (folder / "slurm.conf").write_text(CONFIG.format(host=host, port=ports[0], folder=folder, nodes=nodes))
    try:
        munged = f"--key-file={munge}/key/munge.key --socket={munge}/run/socket --pid-file={munge}/run/pid"
        munged += f" --log-file={munge}/log/log --seed-file={munge}/seed/seed"
        as_munge = ["setpriv", "--reuid", "munge", "--regid", "munge", "--clear-groups"]
        start = [*as_munge, "munged", "--force", *munged.split()]
        subprocess.run(start, env=slurm.environment(), check=True, timeout=30)
        subprocess.run(["slurmctld", "-c"], env=slurm.environment(), check=True, timeout=30)
        for node in NODES:
            slurm.start_node(node)
        wait_for_nodes(slurm)
        yield slurm
    finally:
        _end(slurm)


def wait_for_nodes(slurm: Slurm, limit_s: float = 60) -> None:
    """Wait until all nodes are idle."""

    def are_idle() -> bool:
        states = slurm.call("sinfo", "--noheader", "--partition=low", "--Node", "--format=%N %t", may_fail=True)
        return states.split() == [word for node in NODES for word in (node, "idle")]

    deadline = time.monotonic() + limit_s
    while not are_idle():
        assert time.monotonic() < deadline, slurm.call("sinfo", "--Node", may_fail=True)
        time.sleep(POLL_S)


def _end(slurm: Slurm) -> None:
    jobs = _pids_with(f"SLURM_CONF={slurm.folder}/slurm.conf")
    files = [slurm.folder / "slurmctld.pid", *(slurm.folder / f"slurmd.{node}.pid" for node in NODES)]
    daemons = [int(path.read_text()) for path in [*files, slurm.folder / "munge" / "run" / "pid"] if path.exists()]
    for pid in {*jobs, *daemons} - {os.getpid()}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _pids_with(mark: str) -> list[int]:
    """Return the processes that were started with a variable in their environment, but for this one."""
    pids = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                pids.append(int(entry.name))
    return [pid for pid in pids if pid != os.getpid()]


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]
