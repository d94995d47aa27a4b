"""Batch scripts: a recipe (train, experiment or preprocess), filled in for a machine. Pure.

The text is in `templates/`: a frame, `job.sh.jinja`, and one template for each scheduler. This module computes the
values that the templates insert. Leaves to others: the launcher's command line (`launch_command`).
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cxr_hvd.batch.launch_command import launcher_array, start_line
from cxr_hvd.batch.machines import Machine
from cxr_hvd.batch.options import JobOptions
from cxr_hvd.errors import UsageError
from cxr_hvd.launch.launchers import path_word
from cxr_hvd.launch.site_hosts import VARIABLE
from cxr_hvd.launch.slow_line import SEND_ONLY, WHY_SEND_ONLY

TEMPLATES = Path(__file__).with_name("templates")
PURPOSES = {
    "train": "Train one model over all sites of a config. Stopped, it goes on where it stood.",
    "experiment": "Train and score the study's set-ups, one after the other. Stopped, it goes on where it stood.",
    "preprocess": "Read an institution's files into its study file, on many ranks. Stopped, it goes on.",
}
SUBMIT = {"slurm": "sbatch", "pbs": "qsub", "lsf": "bsub <", "flux": "flux batch", "ssh": "bash"}
# These schedulers send no signal before the time limit, so the ranks get a limit of their own.
NO_WARNING = ("pbs", "flux")


def render(
    recipe: str,
    machine: Machine,
    job: JobOptions,
    ranks_per_site: Mapping[str, int],
    config: Path,
    command: str,
    path: str,
) -> str:
    """Return the text of a batch script.

    Args:
        recipe: train, experiment or preprocess.
        machine: the row of the table.
        job: the options, from `read_job_options`.
        ranks_per_site: number of ranks of each site, in the config's order.
        config: path of the config, relative to the folder that the job is submitted in.
        command: the command that makes the script; a comment at its head.
        path: path of the script.

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
        job=job,
        purpose=PURPOSES[recipe],
        submit=SUBMIT[machine.scheduler],
        path=path,
        command=command,
        job_name=f"cxr-{recipe}",
        modules=_quoted(job.modules.split()),
        names=_quoted(job.names.split()),
        directives=[_fill(line, job) for line in machine.directives],
        groups=_nodes_of_groups(job, ranks_per_site),
        variables=_variables(recipe, job, config),
        stage=shlex.quote(job.stage) if job.stage and recipe == "train" else "",
        environment=_environment(machine, job, recipe),
        size=_size(job, ranks_per_site, recipe),
        launcher=launcher_array(machine, job),
        start=start_line(job, ranks_per_site),
        requeue=_requeue(machine.scheduler, path),
        arguments=_arguments(recipe, job, machine.scheduler),
        timeout=f"timeout {job.work_s} " if machine.scheduler in NO_WARNING else "",
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _fill(line: str, job: JobOptions) -> str:
    """Insert job options into a directive of the table."""
    ngpus = f":ngpus={job.gpus_per_node}" if job.gpus_per_node else ""
    return line.format(**{**vars(job), "ngpus": ngpus})


def _variables(recipe: str, job: JobOptions, config: Path) -> list[tuple[str, str]]:
    variables = {
        "train": [("CONFIG", str(config)), ("RUN", job.run)],
        "experiment": [("CONFIG", str(config)), ("RUN", job.run), ("SEEDS", str(job.seeds))],
        "preprocess": [
            ("SOURCE", job.source),
            ("ROOT", job.root),
            ("OUT", job.out),
            ("SITE", job.site),
        ],
    }[recipe]
    return [(name, shlex.quote(value)) for name, value in variables]


def _environment(machine: Machine, job: JobOptions, recipe: str) -> list[tuple[str, str, str]]:
    threads = job.cores_per_rank if recipe != "preprocess" else 1
    lines = [
        ("OMP_NUM_THREADS", str(threads), "torch: one thread for each core of the rank"),
        ("PYTHONUNBUFFERED", "1", "log lines appear at once"),
    ]
    if recipe == "preprocess":
        lines.append(("HDF5_USE_FILE_LOCKING", "BEST_EFFORT", "shared file systems may not support locks"))
    if job.gpus_per_node:
        lines.append(("NCCL_DEBUG", "WARN", "warn if NCCL does not find the GPUs' network"))
    if job.launcher in ("mpirun", "mpiexec", "horovodrun"):
        lines.append(("OMPI_MCA_mpi_warn_on_fork", "0", "the only fork is git, once, at the start"))
    if job.line == "slow" and recipe != "preprocess":  # preprocessing stays at one site
        lines.append((*SEND_ONLY, WHY_SEND_ONLY))
    lines += [(name, f'"{value}"', why) for name, (value, why) in machine.environment.items()]
    if job.binding == "hosts" and recipe != "preprocess":
        lines.append((VARIABLE, shlex.quote(job.hosts), "each rank finds its site by its host"))
    return lines


def _size(job: JobOptions, ranks_per_site: Mapping[str, int], recipe: str) -> str:
    nodes, cores = job.nodes, job.cores_per_rank
    size = f"{nodes} {'node' if nodes == 1 else 'nodes'} x {job.ranks_per_node}, "
    size += f"{cores} {'core' if cores == 1 else 'cores'} each"
    if recipe == "preprocess":
        return size
    sites = ", ".join(f"{name} {count}" for name, count in ranks_per_site.items())
    binding = {
        "order": "assigned in this order",
        "hosts": "each rank by its host",
        "groups": "each site a group of the job",
        "applications": "each site an application of the launch",
    }[job.binding]
    return f"{size}; {sites}, {binding}"


def _arguments(recipe: str, job: JobOptions, scheduler: str) -> str:
    """Return the command's further arguments, each with a blank before it."""
    words = []
    if scheduler in NO_WARNING and recipe != "preprocess":
        words.append(f"--time-limit {job.work_s}")
    if job.stage and recipe == "train":
        words.append('--stage="$SCRATCH"')
    return "".join(f" {word}" for word in [*words, _quoted(shlex.split(job.options))] if word)


def _quoted(words: Sequence[str]) -> str:
    return " ".join(map(shlex.quote, words))


def _nodes_of_groups(job: JobOptions, ranks_per_site: Mapping[str, int]) -> list[int]:
    """Return the number of nodes of each group of a heterogeneous job; other jobs are one group."""
    if job.binding != "groups":
        return [job.nodes]
    return [count // job.ranks_per_node for count in ranks_per_site.values()]


def _requeue(scheduler: str, path: str) -> str:
    """Return the command that queues the job again; empty where there is no queue."""
    return {
        "slurm": 'scontrol requeue "$SLURM_JOB_ID"',
        "pbs": f"qsub {path}",
        "lsf": "exit 75    # LSF queues it again, by -Q 75",
        "flux": f"flux batch {path}",
        "ssh": "",
    }[scheduler]
