"""Batch scripts: a recipe (what is done), filled in for a machine (how it is done there). Pure.

The scripts' text stands in `recipes/*.jinja`, one for each scheduler, over a frame that all have in common. Here
are the words that start the ranks, for each launcher, and what binds ranks to sites.
"""

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cxr_hvd.batch.machines import Machine
from cxr_hvd.batch.options import Settings
from cxr_hvd.errors import UsageError
from cxr_hvd.launch.launchers import path_word
from cxr_hvd.launch.site_hosts import VARIABLE, read_site_hosts

TEMPLATES = Path(__file__).with_name("templates")
INDENT = "\n    "
HANDED_ON = "-x PATH -x OMP_NUM_THREADS -x PYTHONUNBUFFERED"
PURPOSES = {
    "train": "Train one model over all sites of a config. Stopped, it goes on where it stood.",
    "experiment": "Train and score the study's set-ups, one after the other. Stopped, it goes on where it stood.",
    "preprocess": "Read an institution's files into its study file, on many ranks. Stopped, it goes on.",
}
SUBMIT = {"slurm": "sbatch", "pbs": "qsub", "lsf": "bsub <", "flux": "flux batch", "ssh": "bash"}
# What a scheduler does before it ends a job. PBS and Flux leave no time: the ranks look at the clock themselves.
LIMITS_ITSELF = ("pbs", "flux")


@dataclass(frozen=True)
class Word:
    """Words of a command that stand on a line of their own in a script, and why they are there."""

    text: str
    why: str = ""


def render(
    recipe: str,
    machine: Machine,
    settings: Settings,
    ranks_per_site: Mapping[str, int],
    config: Path,
    command: str,
    path: str,
) -> str:
    """Return the script.

    Args:
        recipe: train, experiment or preprocess.
        machine, settings: where and how, as `read_settings` checked it.
        ranks_per_site: of the config, in its order.
        config: where the config will be, seen from the folder that the job is submitted in.
        command: how the script was made, for its head.
        path: where the script will be.

    Raises:
        UsageError: a name holds a control character, which would end a comment at the script's head.
    """
    for where, text in (("--config", str(config)), ("--out", path), ("the command", command)):
        if not text.isprintable():
            raise UsageError(f"{where}: expected a name of printable characters, found {text!a}")
    path = shlex.quote(path_word(path))
    templates = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True)
    template = templates.get_template(f"{machine.scheduler}.sh.jinja")
    text = template.render(
        recipe=recipe,
        machine=machine,
        settings=settings,
        purpose=PURPOSES[recipe],
        submit=SUBMIT[machine.scheduler],
        path=path,
        command=command,
        job_name=f"cxr-{recipe}",
        modules=_quoted(settings.modules.split()),
        names=_quoted(settings.names.split()),
        directives=[_filled(line, settings) for line in machine.directives],
        groups=_nodes_of_groups(settings, ranks_per_site),
        variables=_variables(recipe, settings, config),
        stage=shlex.quote(settings.stage) if settings.stage and recipe == "train" else "",
        environment=_environment(machine, settings, recipe),
        size=_size(settings, ranks_per_site, recipe),
        launcher=_in_lines(_words(machine, settings)),
        start=_start(settings, ranks_per_site),
        again=_again(machine.scheduler, path),
        more=_more(recipe, settings, machine.scheduler),
        within=f"timeout {settings.work_s} " if machine.scheduler in LIMITS_ITSELF else "",
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _filled(line: str, settings: Settings) -> str:
    """Fill settings into a directive of the table."""
    ngpus = f":ngpus={settings.gpus_per_node}" if settings.gpus_per_node else ""
    return line.format(**{**vars(settings), "ngpus": ngpus})


def _variables(recipe: str, settings: Settings, config: Path) -> list[tuple[str, str]]:
    quoted = {
        "train": [("CONFIG", str(config)), ("RUN", settings.run)],
        "experiment": [("CONFIG", str(config)), ("RUN", settings.run), ("SEEDS", str(settings.seeds))],
        "preprocess": [
            ("SOURCE", settings.source),
            ("ROOT", settings.root),
            ("OUT", settings.out),
            ("SITE", settings.site),
        ],
    }[recipe]
    return [(name, shlex.quote(value)) for name, value in quoted]


def _environment(machine: Machine, settings: Settings, recipe: str) -> list[tuple[str, str, str]]:
    threads = settings.cores_per_rank if recipe != "preprocess" else 1
    lines = [
        ("OMP_NUM_THREADS", str(threads), "one thread of torch for each core of the rank"),
        ("PYTHONUNBUFFERED", "1", "the log says what happens when it happens"),
    ]
    if recipe == "preprocess":
        lines.append(("HDF5_USE_FILE_LOCKING", "BEST_EFFORT", "shared file systems may have no locks"))
    if settings.gpus_per_node:
        lines.append(("NCCL_DEBUG", "WARN", "say so if the GPUs' own network is not found"))
    if settings.launcher in ("mpirun", "mpiexec", "horovodrun"):
        lines.append(("OMPI_MCA_mpi_warn_on_fork", "0", "the version of git is asked once"))
    lines += [(name, f'"{value}"', why) for name, (value, why) in machine.environment.items()]
    if settings.binding == "hosts" and recipe != "preprocess":
        lines.append((VARIABLE, shlex.quote(settings.hosts), "each rank finds its site by its host"))
    return lines


def _size(settings: Settings, ranks_per_site: Mapping[str, int], recipe: str) -> str:
    nodes, cores = settings.nodes, settings.cores_per_rank
    size = f"{nodes} {'node' if nodes == 1 else 'nodes'} x {settings.ranks_per_node}, "
    size += f"{cores} {'core' if cores == 1 else 'cores'} each"
    if recipe == "preprocess":
        return size
    each = ", ".join(f"{name} {count}" for name, count in ranks_per_site.items())
    how = {
        "order": "dealt out in this order",
        "hosts": "by the host that a rank is on",
        "groups": "a group of the scheduler each",
        "applications": "an application of the launch each",
    }[settings.binding]
    return f"{size}; {each}, {how}"


# ---- the words that start the ranks


def _srun(settings: Settings) -> list[Word]:
    words = [Word(f"srun --mpi={shlex.quote(settings.mpi)}", "what MPI and srun tell each other when ranks start")]
    if settings.binding != "groups":  # there, each group says how many are its own
        words.append(Word(f"--ntasks={settings.num_ranks} --ntasks-per-node={settings.ranks_per_node}"))
    words.append(
        Word(f"--cpus-per-task={settings.cores_per_rank}", "said again: srun does not take it from the job")
    )
    if settings.bind == "cores":
        words.append(Word("--cpu-bind=cores", "a rank keeps its cores and the memory beside them"))
    if settings.gpus_per_node:
        words.append(
            Word(
                f"--gpus-per-node={settings.gpus_per_node} --gpu-bind=none",
                "a rank takes the GPU of its place on the node; NCCL has to see all",
            )
        )
    words.append(Word("--kill-on-bad-exit=1", "one rank fails: all end at once"))
    return words


def _mpirun(settings: Settings, program: str = "mpirun") -> list[Word]:
    per_node, cores = settings.ranks_per_node, settings.cores_per_rank
    words = [Word(program)]
    if settings.binding != "applications":
        words[0] = Word(f"{program} -np {settings.num_ranks}")
    if settings.bind == "cores":
        words.append(Word(f"--map-by ppr:{per_node}:node:pe={cores} --bind-to core", "a rank keeps its cores"))
    else:
        words.append(Word(f"--map-by ppr:{per_node}:node --bind-to none"))
    words.append(Word("--tag-output", "which rank said it"))
    return words


def _pals(settings: Settings) -> list[Word]:
    cores = settings.cores_per_rank
    return [
        Word(f"mpiexec -n {settings.num_ranks} --ppn {settings.ranks_per_node}"),
        Word(f"--depth={cores} --cpu-bind depth", "a rank keeps its cores and the memory beside them"),
    ]


def _jsrun(settings: Settings) -> list[Word]:
    gpus = 1 if settings.gpus_per_node else 0
    return [
        Word(f"jsrun -n {settings.num_ranks} -r {settings.ranks_per_node}", "a resource set for each rank"),
        Word(
            f"-a 1 -c {settings.cores_per_rank} -g {gpus} -b packed:{settings.cores_per_rank}",
            "its cores, its GPU",
        ),
    ]


def _horovodrun(settings: Settings) -> list[Word]:
    return [Word(f"horovodrun -np {settings.num_ranks}")]


def _flux(settings: Settings) -> list[Word]:
    words = [
        Word(f"flux run --nodes={settings.nodes} --ntasks={settings.num_ranks}"),
        Word(f"--cores-per-task={settings.cores_per_rank} -o cpu-affinity=per-task", "a rank keeps its cores"),
    ]
    if settings.gpus_per_node:
        words.append(Word("--gpus-per-task=1 -o gpu-affinity=per-task", "and its GPU"))
    return words


Launcher = Callable[[Settings], list[Word]]
LAUNCHERS: dict[str, Launcher] = {
    "srun": _srun,
    "mpirun": _mpirun,
    "mpiexec": partial(_mpirun, program="mpiexec"),
    "pals": _pals,
    "jsrun": _jsrun,
    "horovodrun": _horovodrun,
    "flux": _flux,
}


def _words(machine: Machine, settings: Settings) -> list[Word]:
    words = LAUNCHERS[settings.launcher](settings)
    return words + _by_ssh(settings) if machine.scheduler == "ssh" else words


def _by_ssh(settings: Settings) -> list[Word]:
    """Return what a launcher has to be told where no scheduler names the hosts; nothing on one host alone."""
    if not settings.hosts:
        return []
    hosts = ",".join(_hosts_with_slots(settings, site) for site in read_site_hosts(settings.hosts))
    if settings.launcher == "horovodrun":
        return [Word(f"-H '{hosts}'", "hosts and how many ranks each takes")]
    words = [Word("--mca pml ob1 --mca btl 'tcp,vader,self'", "plain sockets between hospitals")]
    if settings.binding != "applications":
        handed_on = HANDED_ON + (f" -x {VARIABLE}" if settings.binding == "hosts" else "")
        words += [Word(f"-host '{hosts}'"), Word(handed_on, "ssh hands no variables on")]
    return words


def _in_lines(words: list[Word]) -> str:
    """Write words into a shell's array, each on a line with the reason for it."""
    return INDENT.join(f"{word.text}    # {word.why}" if word.why else word.text for word in words) + "\n"


def _more(recipe: str, settings: Settings, scheduler: str) -> str:
    """Write what follows the command's first words."""
    words = []
    if scheduler in LIMITS_ITSELF and recipe != "preprocess":
        words.append(f"--time-limit {settings.work_s}")
    if settings.stage and recipe == "train":
        words.append('--stage="$SCRATCH"')
    return "".join(f" {word}" for word in [*words, _quoted(shlex.split(settings.options))] if word)


def _quoted(words: Sequence[str]) -> str:
    return " ".join(map(shlex.quote, words))


def _start(settings: Settings, ranks_per_site: Mapping[str, int]) -> str:
    """Write the line that starts training, with each site's ranks bound to it."""
    if settings.binding == "groups":
        parts = []
        for number, (site, count) in enumerate(ranks_per_site.items()):
            own = "" if number == 0 else " ".join(["", *(word.text for word in _srun(settings)[1:-1])])
            ntasks = f"--ntasks={count} --ntasks-per-node={settings.ranks_per_node}"
            parts.append(f'--het-group={number}{own} {ntasks} env CXR_SITE={shlex.quote(site)} "${{train[@]}}"')
        return '"${launcher[@]}" ' + " : \\\n    ".join(parts)
    if settings.binding == "applications":
        parts = []
        for site, count in ranks_per_site.items():
            host = f"-host {_hosts_with_slots(settings, site)} {HANDED_ON} " if settings.hosts else ""
            parts.append(f'-np {count} {host}-x CXR_SITE={shlex.quote(site)} "${{train[@]}}"')
        return '"${launcher[@]}" ' + " : \\\n    ".join(parts)
    return '"${launcher[@]}" "${train[@]}"'


def _hosts_with_slots(settings: Settings, site: str) -> str:
    hosts = read_site_hosts(settings.hosts)[site]
    return ",".join(f"{host}:{settings.ranks_per_node}" for host in hosts)


def _nodes_of_groups(settings: Settings, ranks_per_site: Mapping[str, int]) -> list[int]:
    """Return the nodes of each group of a heterogeneous job; of the one group that others are."""
    if settings.binding != "groups":
        return [settings.nodes]
    return [count // settings.ranks_per_node for count in ranks_per_site.values()]


def _again(scheduler: str, path: str) -> str:
    """Write what queues the job again, as the last thing that it does; nothing where there is no queue."""
    return {
        "slurm": 'scontrol requeue "$SLURM_JOB_ID"',
        "pbs": f"qsub {path}",
        "lsf": "exit 75    # LSF queues it again, by -Q 75",
        "flux": f"flux batch {path}",
        "ssh": "",
    }[scheduler]
