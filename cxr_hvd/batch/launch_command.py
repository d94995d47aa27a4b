"""The command that starts the ranks of a batch job, for each launcher. Pure."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from cxr_hvd.batch.machines import Machine
from cxr_hvd.batch.options import JobOptions
from cxr_hvd.launch.site_hosts import VARIABLE, read_site_hosts

INDENT = "\n    "
FORWARDED = "-x PATH -x OMP_NUM_THREADS -x PYTHONUNBUFFERED"


@dataclass(frozen=True)
class Word:
    """Words of a command that share a line of the script, and the reason for them."""

    text: str
    reason: str = ""


def launcher_array(machine: Machine, job: JobOptions) -> str:
    """Return the elements of the script's array `launcher`: words and the reasons for them, one a line."""
    words = LAUNCHERS[job.launcher](job)
    if machine.scheduler == "ssh":
        words += _host_words(job)
    return INDENT.join(f"{word.text}    # {word.reason}" if word.reason else word.text for word in words) + "\n"


def start_line(job: JobOptions, ranks_per_site: Mapping[str, int]) -> str:
    """Return the shell line that starts training, with the binding of ranks to sites."""
    if job.binding == "groups":
        parts = []
        for number, (site, count) in enumerate(ranks_per_site.items()):
            options = "" if number == 0 else " ".join(["", *(word.text for word in _srun(job)[1:-1])])
            ntasks = f"--ntasks={count} --ntasks-per-node={job.ranks_per_node}"
            parts.append(
                f'--het-group={number}{options} {ntasks} env CXR_SITE={shlex.quote(site)} "${{train[@]}}"'
            )
        return '"${launcher[@]}" ' + " : \\\n    ".join(parts)
    if job.binding == "applications":
        parts = []
        for site, count in ranks_per_site.items():
            host = f"-host {_hosts_with_slots(job, site)} {FORWARDED} " if job.hosts else ""
            parts.append(f'-np {count} {host}-x CXR_SITE={shlex.quote(site)} "${{train[@]}}"')
        return '"${launcher[@]}" ' + " : \\\n    ".join(parts)
    return '"${launcher[@]}" "${train[@]}"'


def _hosts_with_slots(job: JobOptions, site: str) -> str:
    hosts = read_site_hosts(job.hosts)[site]
    return ",".join(f"{host}:{job.ranks_per_node}" for host in hosts)


def _srun(job: JobOptions) -> list[Word]:
    words = [Word(f"srun --mpi={shlex.quote(job.mpi)}", "how srun and MPI exchange data at the start")]
    if job.binding != "groups":  # each group has its own numbers
        words.append(Word(f"--ntasks={job.num_ranks} --ntasks-per-node={job.ranks_per_node}"))
    words.append(
        Word(f"--cpus-per-task={job.cores_per_rank}", "repeated here: srun does not inherit it from the job")
    )
    if job.bind == "cores":
        words.append(Word("--cpu-bind=cores", "bind each rank to its cores and their memory"))
    if job.gpus_per_node:
        words.append(
            Word(
                f"--gpus-per-node={job.gpus_per_node} --gpu-bind=none",
                "a rank takes the GPU of its local rank; NCCL needs to see all GPUs",
            )
        )
    words.append(Word("--kill-on-bad-exit=1", "when one rank fails, end all"))
    return words


def _mpirun(job: JobOptions, program: str = "mpirun") -> list[Word]:
    per_node, cores = job.ranks_per_node, job.cores_per_rank
    words = [Word(program)]
    if job.binding != "applications":
        words[0] = Word(f"{program} -np {job.num_ranks}")
    if job.bind == "cores":
        words.append(
            Word(f"--map-by ppr:{per_node}:node:pe={cores} --bind-to core", "bind each rank to its cores")
        )
    else:
        words.append(Word(f"--map-by ppr:{per_node}:node --bind-to none"))
    words.append(Word("--tag-output", "mark each line with its rank"))
    return words


def _pals(job: JobOptions) -> list[Word]:
    cores = job.cores_per_rank
    return [
        Word(f"mpiexec -n {job.num_ranks} --ppn {job.ranks_per_node}"),
        Word(f"--depth={cores} --cpu-bind depth", "bind each rank to its cores and their memory"),
    ]


def _jsrun(job: JobOptions) -> list[Word]:
    gpus = 1 if job.gpus_per_node else 0
    return [
        Word(f"jsrun -n {job.num_ranks} -r {job.ranks_per_node}", "one resource set for each rank"),
        Word(
            f"-a 1 -c {job.cores_per_rank} -g {gpus} -b packed:{job.cores_per_rank}",
            "its cores and its GPU",
        ),
    ]


def _horovodrun(job: JobOptions) -> list[Word]:
    return [Word(f"horovodrun -np {job.num_ranks}")]


def _flux(job: JobOptions) -> list[Word]:
    words = [
        Word(f"flux run --nodes={job.nodes} --ntasks={job.num_ranks}"),
        Word(f"--cores-per-task={job.cores_per_rank} -o cpu-affinity=per-task", "bind each rank to its cores"),
    ]
    if job.gpus_per_node:
        words.append(Word("--gpus-per-task=1 -o gpu-affinity=per-task", "and its GPU"))
    return words


Launcher = Callable[[JobOptions], list[Word]]
LAUNCHERS: dict[str, Launcher] = {
    "srun": _srun,
    "mpirun": _mpirun,
    "mpiexec": partial(_mpirun, program="mpiexec"),
    "pals": _pals,
    "jsrun": _jsrun,
    "horovodrun": _horovodrun,
    "flux": _flux,
}


def _host_words(job: JobOptions) -> list[Word]:
    """Return the words that name the hosts, where no scheduler does; none on a single host."""
    if not job.hosts:
        return []
    hosts = ",".join(_hosts_with_slots(job, site) for site in read_site_hosts(job.hosts))
    if job.launcher == "horovodrun":
        return [Word(f"-H '{hosts}'", "hosts and their numbers of ranks")]
    words = [Word("--mca pml ob1 --mca btl 'tcp,vader,self'", "TCP between sites")]
    if job.binding != "applications":
        forwarded = FORWARDED + (f" -x {VARIABLE}" if job.binding == "hosts" else "")
        words += [Word(f"-host '{hosts}'"), Word(forwarded, "ssh does not forward variables")]
    return words
