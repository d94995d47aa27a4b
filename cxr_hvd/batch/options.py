"""The options of a batch job: size, time limit, sites. They are checked before a script is written. Pure."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import ceil
from string import ascii_lowercase
from typing import Any

from cxr_hvd.batch.machines import Machine
from cxr_hvd.errors import UsageError, nearest
from cxr_hvd.launch.launchers import parse_duration
from cxr_hvd.launch.site_hosts import read_site_hosts

RECIPES = ("train", "experiment", "preprocess")
BINDINGS = ("order", "hosts", "groups", "applications")
SHORTEST_WALLTIME_S = 60
PREPROCESS_RANKS = 8
WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,:@%+=/-]*")
"""A word without special meaning for shells and schedulers; directives hold such words unquoted."""


def _option(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class JobOptions:
    """The options of `--set`. The machine's row overrides the defaults here; the user overrides both."""

    account: str = _option("", "the account that pays; empty where the centre asks for none")
    queue: str = _option("", "partition, queue or QOS")
    walltime: str = _option("12:00:00", "time limit of the job: 12:00:00, 90m, 3600")
    warn: int = _option(300, "seconds before the time limit at which ranks write a last checkpoint")
    nodes: int = _option(0, "number of nodes; 0: as many as the config's sites need")
    ranks_per_node: int = _option(0, "0: one, or the number in the machine's row")
    cores_per_node: int = _option(16, "cores of a node, divided among its ranks")
    gpus_per_node: int = _option(0, "GPUs of a node")
    launcher: str = _option("", "what starts the ranks; empty: the machine's first")
    mpi: str = _option("pmix", "srun's --mpi: how it and MPI exchange data at the start")
    bind: str = _option("cores", "cores: bind each rank to cores of its own; none: no binding")
    binding: str = _option("order", "how a rank finds its site: order, hosts, groups or applications")
    hosts: str = _option("", "hosts of each site: chexpert=node[1-2] mimic=node3")
    line: str = _option("fast", "between hosts: fast, or slow as between institutions (docs/slow-line.md)")
    modules: str = _option("", "modules to load, separated by blanks")
    activate: str = _option(
        "source .venv/bin/activate", "a line of shell that activates the Python environment; not quoted"
    )
    stage: str = _option("", "local folder of a node to copy each rank's study file to; may contain $VARIABLES")
    run: str = _option("", "the run folder, or an experiment's folder of results")
    options: str = _option("", "more options of the command, such as --key site.key; no $VARIABLES")
    resubmit: str = _option("yes", "no: a stopped job does not queue itself again")
    queue_directive: str = _option("partition", "Slurm's word for queue: partition or qos")
    source: str = _option("chexpert", "preprocess: source layout, such as chexpert")
    root: str = _option("/data/chexpert", "preprocess: folder of the source files")
    out: str = _option("chexpert.h5", "preprocess: the study file")
    site: str = _option("chexpert", "preprocess: name of the site")
    names: str = _option("A B C D", "experiment: set-ups to compare")
    seeds: int = _option(5, "experiment: runs of each set-up")

    @property
    def walltime_s(self) -> int:
        """Seconds until the scheduler ends the job."""
        return int(parse_duration(self.walltime, "--set walltime"))

    @property
    def work_s(self) -> int:
        """Seconds until the ranks are asked for a last checkpoint."""
        return self.walltime_s - self.warn

    @property
    def clock(self) -> str:
        """The walltime as all schedulers read it: HH:MM:SS."""
        hours, rest = divmod(self.walltime_s, 3600)
        return f"{hours:02}:{rest // 60:02}:{rest % 60:02}"

    @property
    def num_ranks(self) -> int:
        """How many ranks there are in all."""
        return self.nodes * self.ranks_per_node

    @property
    def cores_per_rank(self) -> int:
        """A rank's share of its node, or of a GPU where there are more GPUs than ranks; at least one core."""
        return max(1, self.cores_per_node // max(self.ranks_per_node, self.gpus_per_node))


CHOICES = {
    "binding": BINDINGS,
    "line": ("fast", "slow"),
    "bind": ("cores", "none"),
    "resubmit": ("yes", "no"),
    "queue_directive": ("partition", "qos"),
}
ONE_WORD = ("account", "queue", "mpi", "source")
WORDS = ("modules", "names")


def read_job_options(
    recipe: str, machine: Machine, assignments: Sequence[str], ranks_per_site: Mapping[str, int]
) -> JobOptions:
    """Merge the user's options with the machine's row and the defaults; derive the size from the config's sites.

    Args:
        recipe: train, experiment or preprocess.
        machine: where the job will run.
        assignments: texts of the form `key=value`.
        ranks_per_site: number of ranks of each site, in the config's order; empty for preprocess.

    Raises:
        UsageError: a key or a value is unknown, or numbers do not fit each other.
    """
    if recipe not in RECIPES:
        raise UsageError(f"{recipe}: expected one of {', '.join(RECIPES)}{nearest(recipe, list(RECIPES))}")
    given = _parse_assignments(assignments)
    values = {key: _parse_value(key, text) for key, text in {**machine.defaults, **given}.items()}
    if recipe == "preprocess":
        values.setdefault("ranks_per_node", PREPROCESS_RANKS)
        values["ranks_per_node"] = values["ranks_per_node"] or PREPROCESS_RANKS
        values["nodes"] = values.get("nodes") or 1
        values["gpus_per_node"] = 0
        values.pop("hosts", None)
    else:
        _complete_size(values, sum(ranks_per_site.values()), is_fixed="ranks_per_node" in given)
    if machine.scheduler == "ssh":
        values["resubmit"] = "no"  # no scheduler queues it
        letters = zip(ranks_per_site, ascii_lowercase, strict=False)
        hosts = " ".join(f"{site}=hospital-{letter}" for site, letter in letters)
        values["hosts"] = values.get("hosts") or hosts
    values["launcher"] = values.get("launcher") or machine.launchers[0]
    values["run"] = values.get("run") or ("runs/experiment" if recipe == "experiment" else "runs/train")
    job = JobOptions(**values)  # type: ignore[arg-type]
    _check(recipe, machine, job, ranks_per_site)
    return job


def _parse_assignments(assignments: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for assignment in assignments:
        key, sign, value = (part.strip() for part in assignment.partition("="))
        if not sign or not key:
            raise UsageError(f"--set {assignment}: expected key=value")
        pairs[key] = value
    return pairs


def _parse_value(key: str, text: str) -> str | int:
    types = {option.name: type(option.default) for option in fields(JobOptions)}
    if key not in types:
        raise UsageError(f"--set {key}: expected one of {', '.join(types)}{nearest(key, list(types))}")
    if any(not (character.isprintable()) for character in text):
        raise UsageError(f"--set {key}: expected one line of text, found a control character")
    if types[key] is str:
        _check_text(key, text)
        return text
    if not re.fullmatch("0|[1-9][0-9]{0,5}", text):
        raise UsageError(f"--set {key}={text}: expected a whole number such as 10")
    return int(text)


def _check_text(key: str, text: str) -> None:
    """Raise where a text is no allowed choice or no safe word: the script holds names unquoted."""
    if key in CHOICES and text not in CHOICES[key]:
        raise UsageError(f"--set {key}={text}: expected one of {', '.join(CHOICES[key])}")
    words = [text] * bool(text) if key in ONE_WORD else text.split() if key in WORDS else []
    for word in words:
        if not WORD.fullmatch(word):
            raise UsageError(f"--set {key}={text}: expected letters, digits and _.,:@%+=/-, found '{word}'")
    if key == "options":
        try:
            shlex.split(text)
        except ValueError as error:
            raise UsageError(f"--set {key}={text}: {error}; close what is quoted") from error


def _complete_size(values: dict[str, str | int], num_ranks: int, is_fixed: bool) -> None:
    """Set the numbers of nodes and ranks per node that are not given: as few nodes as hold all ranks.

    Args:
        values: the options so far; changed in place. A machine's `ranks_per_node` is the maximum there.
        num_ranks: the sum over the sites.
        is_fixed: whether the user gave `ranks_per_node`.
    """
    nodes, per_node = int(values.get("nodes", 0)), int(values.get("ranks_per_node", 0)) or 1
    if not is_fixed:
        max_per_node = per_node if "ranks_per_node" in values else num_ranks
        per_node = min(max_per_node, ceil(num_ranks / nodes)) if nodes else min(per_node, num_ranks)
    values["ranks_per_node"] = per_node
    values["nodes"] = nodes or ceil(num_ranks / per_node)


def _check(recipe: str, machine: Machine, job: JobOptions, ranks_per_site: Mapping[str, int]) -> None:
    num_ranks = sum(ranks_per_site.values())
    sites = ", ".join(f"{name} {count}" for name, count in ranks_per_site.items())
    if recipe != "preprocess" and job.num_ranks != num_ranks:
        raise UsageError(
            f"nodes={job.nodes} with ranks_per_node={job.ranks_per_node} make {job.num_ranks} "
            f"ranks, the config's sites want {num_ranks} ({sites}): change either, or sites.NAME.ranks"
        )
    if job.launcher not in machine.launchers:
        raise UsageError(f"--set launcher={job.launcher}: {machine.name} knows {', '.join(machine.launchers)}")
    if job.walltime_s < SHORTEST_WALLTIME_S or job.work_s <= 0:
        raise UsageError(
            f"--set walltime={job.walltime}: expected {SHORTEST_WALLTIME_S} s or more, and more than the "
            f"{job.warn} s (warn) that ranks have for a last checkpoint"
        )
    if recipe == "train":
        _check_binding(machine, job, ranks_per_site)
    elif job.binding in ("groups", "applications"):
        raise UsageError(f"--set binding={job.binding}: for train alone; {recipe} takes order or hosts")


def _check_binding(machine: Machine, job: JobOptions, ranks_per_site: Mapping[str, int]) -> None:
    per_node = job.ranks_per_node
    if job.binding == "order":
        return
    if job.binding in ("hosts", "groups") and any(count % per_node for count in ranks_per_site.values()):
        raise UsageError(
            f"--set binding={job.binding}: a node belongs to one site, so each site's ranks have to be a "
            f"multiple of ranks_per_node={per_node}"
        )
    needs_hosts = job.binding == "hosts" or (machine.scheduler == "ssh" and job.binding == "applications")
    if needs_hosts and set(read_site_hosts(job.hosts)) != set(ranks_per_site):
        raise UsageError(
            f"--set hosts={job.hosts or '(nothing)'}: expected hosts for each of "
            f"{', '.join(ranks_per_site)}, such as '{next(iter(ranks_per_site))}=node[1-2] ...'"
        )
    if job.binding == "groups" and (machine.scheduler, job.launcher) != ("slurm", "srun"):
        raise UsageError("--set binding=groups: heterogeneous jobs are Slurm's, and srun starts them")
    if job.binding == "applications" and job.launcher not in ("mpirun", "mpiexec"):
        raise UsageError(
            f"--set binding=applications: mpirun or mpiexec starts several applications as one job, not "
            f"{job.launcher}; use order, hosts, or groups"
        )
