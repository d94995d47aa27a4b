"""The table of machines that batch scripts are written for: `machines.yaml` beside this file.

A row names a machine's scheduler, the launchers that start ranks there, and default options of a job. A new
machine is a new row.
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
    """A row of the table.

    Attributes:
        name: the value of `--machine`.
        scheduler: slurm, pbs, lsf, flux or ssh.
        launchers: the launchers that may start ranks; the first is the default.
        tried: where such scripts were run, in words.
        source, read: the public page that the row was taken from, and the date; empty for no particular centre.
        directives: further lines for the scheduler, with job options in braces.
        environment: variables that ranks need, each with its value and the reason.
        defaults: job options by name, written as in `--set`.
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
    columns = {column.name for column in fields(Machine)}
    values = {key: value for key, value in row.items() if key in columns}
    values["launchers"] = tuple(row["launchers"])
    values["directives"] = tuple(row.get("directives", ()))
    values["environment"] = {key: (value, why) for key, (value, why) in row.get("environment", {}).items()}
    defaults = {key: value for key, value in row.items() if key not in columns}
    return Machine(name=name, defaults=defaults, **values)
