"""What a batch job is to be: its size, its limits, its sites; checked before a script is written. Pure."""

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
"""A name that neither a shell nor a scheduler reads as anything else: it is not quoted in directives."""


def _setting(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Settings:
    """What `--set` may say, each with its default and its meaning; a machine's row and the user go before both."""

    account: str = _setting("", "whose hours are spent; empty where the centre asks for none")
    queue: str = _setting("", "partition, queue or QOS")
    walltime: str = _setting("12:00:00", "when the scheduler ends the job: 12:00:00, 90m, 3600")
    warn: int = _setting(300, "seconds before that at which the ranks are asked for a last checkpoint")
    nodes: int = _setting(0, "0: as many as the config's sites need")
    ranks_per_node: int = _setting(0, "0: one, or as many as the machine's row says")
    cores_per_node: int = _setting(16, "what a node has, shared out among its ranks")
    gpus_per_node: int = _setting(0, "what a node has")
    launcher: str = _setting("", "what starts the ranks; the machine's first if empty")
    mpi: str = _setting("pmix", "what srun speaks with the ranks")
    bind: str = _setting("cores", "cores: each rank keeps cores of its own; none: the system moves it about")
    binding: str = _setting("order", "how a rank finds its site: order, hosts, groups or applications")
    hosts: str = _setting("", "whose hosts are which: chexpert=node[1-2] mimic=node3")
    modules: str = _setting("", "to load, parted by blanks")
    activate: str = _setting(
        "source .venv/bin/activate", "how the Python environment is entered: a line of shell, taken as it is"
    )
    stage: str = _setting(
        "", "a folder of the node's own disk to copy each rank's study file to; may name $VARIABLES"
    )
    run: str = _setting("", "the run folder, or an experiment's folder of results")
    options: str = _setting("", "more words for the command, such as --key site.key; no $VARIABLES")
    resubmit: str = _setting("yes", "no: a job that was stopped does not queue itself again")
    queue_directive: str = _setting("partition", "Slurm's word for queue: partition or qos")
    source: str = _setting("chexpert", "preprocess: the layout of the files")
    root: str = _setting("/data/chexpert", "preprocess: the folder of the files")
    out: str = _setting("chexpert.h5", "preprocess: the study file")
    site: str = _setting("chexpert", "preprocess: the institution's name")
    names: str = _setting("A B C D", "experiment: what is compared")
    seeds: int = _setting(5, "experiment: runs of each")

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
    "bind": ("cores", "none"),
    "resubmit": ("yes", "no"),
    "queue_directive": ("partition", "qos"),
}
ONE_WORD = ("account", "queue", "mpi", "source")
WORDS = ("modules", "names")


def read_settings(
    recipe: str, machine: Machine, said: Sequence[str], ranks_per_site: Mapping[str, int]
) -> Settings:
    """Lay what the user said over the machine's row and the defaults, and complete it from the config's sites.

    Args:
        recipe: train, experiment or preprocess.
        machine: where the job is to run.
        said: `key=value`, each.
        ranks_per_site: how many ranks each site of the config wants, in its order.

    Raises:
        UsageError: a key or a value is unknown, or numbers do not fit each other.
    """
    if recipe not in RECIPES:
        raise UsageError(f"{recipe}: expected one of {', '.join(RECIPES)}{nearest(recipe, list(RECIPES))}")
    own = _pairs(said)
    values = {key: _value(key, text) for key, text in {**machine.defaults, **own}.items()}
    if recipe == "preprocess":
        values.setdefault("ranks_per_node", PREPROCESS_RANKS)
        values["ranks_per_node"] = values["ranks_per_node"] or PREPROCESS_RANKS
        values["nodes"] = values.get("nodes") or 1
        values["gpus_per_node"] = 0
        values.pop("hosts", None)
    else:
        _complete_size(values, sum(ranks_per_site.values()), is_fixed="ranks_per_node" in own)
    if machine.scheduler == "ssh":
        values["resubmit"] = "no"  # nobody queues
        letters = zip(ranks_per_site, ascii_lowercase, strict=False)
        hosts = " ".join(f"{site}=hospital-{letter}" for site, letter in letters)
        values["hosts"] = values.get("hosts") or hosts
    values["launcher"] = values.get("launcher") or machine.launchers[0]
    values["run"] = values.get("run") or ("runs/experiment" if recipe == "experiment" else "runs/train")
    settings = Settings(**values)  # type: ignore[arg-type]
    _check(recipe, machine, settings, ranks_per_site)
    return settings


def _pairs(said: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for each in said:
        key, sign, value = (part.strip() for part in each.partition("="))
        if not sign or not key:
            raise UsageError(f"--set {each}: expected key=value")
        pairs[key] = value
    return pairs


def _value(key: str, text: str) -> str | int:
    types = {each.name: type(each.default) for each in fields(Settings)}
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
    """Raise where a text cannot stand where a script needs it: no name may be an option, or the shell's."""
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
    """Fill in nodes and ranks per node where they were left open: as few nodes as hold all ranks.

    Args:
        values: the settings so far; a machine's own number of ranks per node is the most that it takes.
        num_ranks: what the sites want.
        is_fixed: whether the user gave the number of ranks per node.
    """
    nodes, per_node = int(values.get("nodes", 0)), int(values.get("ranks_per_node", 0)) or 1
    if not is_fixed:
        most = per_node if "ranks_per_node" in values else num_ranks
        per_node = min(most, ceil(num_ranks / nodes)) if nodes else min(per_node, num_ranks)
    values["ranks_per_node"] = per_node
    values["nodes"] = nodes or ceil(num_ranks / per_node)


def _check(recipe: str, machine: Machine, settings: Settings, ranks_per_site: Mapping[str, int]) -> None:
    wanted = sum(ranks_per_site.values())
    each = ", ".join(f"{name} {count}" for name, count in ranks_per_site.items())
    if recipe != "preprocess" and settings.num_ranks != wanted:
        raise UsageError(
            f"nodes={settings.nodes} with ranks_per_node={settings.ranks_per_node} make {settings.num_ranks} "
            f"ranks, the config's sites want {wanted} ({each}): change either, or sites.NAME.ranks"
        )
    if settings.launcher not in machine.launchers:
        raise UsageError(
            f"--set launcher={settings.launcher}: {machine.name} knows {', '.join(machine.launchers)}"
        )
    if settings.walltime_s < SHORTEST_WALLTIME_S or settings.work_s <= 0:
        raise UsageError(
            f"--set walltime={settings.walltime}: expected {SHORTEST_WALLTIME_S} s or more, and more than the "
            f"{settings.warn} s (warn) that ranks have for a last checkpoint"
        )
    if recipe == "train":
        _check_binding(machine, settings, ranks_per_site)
    elif settings.binding in ("groups", "applications"):
        raise UsageError(f"--set binding={settings.binding}: for train alone; {recipe} takes order or hosts")


def _check_binding(machine: Machine, settings: Settings, ranks_per_site: Mapping[str, int]) -> None:
    per_node = settings.ranks_per_node
    if settings.binding == "order":
        return
    if settings.binding in ("hosts", "groups") and any(count % per_node for count in ranks_per_site.values()):
        raise UsageError(
            f"--set binding={settings.binding}: a node belongs to one site, so each site's ranks have to be a "
            f"multiple of ranks_per_node={per_node}"
        )
    if settings.binding == "hosts" or (machine.scheduler == "ssh" and settings.binding == "applications"):
        named = read_site_hosts(settings.hosts)
        if set(named) != set(ranks_per_site):
            raise UsageError(
                f"--set hosts={settings.hosts or '(nothing)'}: expected hosts for each of "
                f"{', '.join(ranks_per_site)}, such as '{next(iter(ranks_per_site))}=node[1-2] ...'"
            )
    if settings.binding == "groups" and (machine.scheduler, settings.launcher) != ("slurm", "srun"):
        raise UsageError("--set binding=groups: heterogeneous jobs are Slurm's, and srun starts them")
    if settings.binding == "applications" and settings.launcher not in ("mpirun", "mpiexec"):
        raise UsageError(
            f"--set binding=applications: mpirun or mpiexec starts several applications as one job, not "
            f"{settings.launcher}; use order, hosts, or groups"
        )
