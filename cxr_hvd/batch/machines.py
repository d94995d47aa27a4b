"""The table of machines that batch scripts are written for: `machines.yaml` beside this file.

A row says which scheduler a machine has, what starts ranks there, and which settings a script begins with. Adding
a machine is adding a row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cxr_hvd.errors import UsageError, nearest
from cxr_hvd.yaml_text import load_yaml

TABLE = Path(__file__).with_name("machines.yaml")


@dataclass(frozen=True)
class Machine:
    """One row.

    Attributes:
        name: how `--machine` calls it.
        scheduler: slurm, pbs, lsf, flux or ssh.
        launchers: what may start ranks, the preferred one first.
        tried: where such scripts were run, in words.
        source, read: the public page that the row was taken from, and when; empty for no centre in particular.
        directives: lines of the scheduler, with settings in braces.
        environment: variables that ranks need, each with its value and the reason.
        defaults: settings of a job, by name, as `--set` would give them.
    """

    name: str
    scheduler: str
    launchers: tuple[str, ...]
    tried: str
    source: str = ""
    read: str = ""
    directives: tuple[str, ...] = ()
    environment: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    defaults: Mapping[str, str] = field(default_factory=dict)


def load_machines() -> dict[str, Machine]:
    """Read the table."""
    rows = load_yaml(TABLE, is_text=True)
    return {name: _machine(name, row) for name, row in rows.items()}


def choose_machine(name: str) -> Machine:
    """Return a machine by its name.

    Raises:
        UsageError: the table has no such row.
    """
    machines = load_machines()
    if name not in machines:
        raise UsageError(f"--machine {name}: expected one of {', '.join(machines)}{nearest(name, list(machines))}")
    return machines[name]


def _machine(name: str, row: dict[str, Any]) -> Machine:
    own = {each.name for each in fields(Machine)}
    said = {key: value for key, value in row.items() if key in own}
    said["launchers"] = tuple(row["launchers"])
    said["directives"] = tuple(row.get("directives", ()))
    said["environment"] = {key: (value, why) for key, (value, why) in row.get("environment", {}).items()}
    defaults = {key: value for key, value in row.items() if key not in own}
    return Machine(name=name, defaults=defaults, **said)
