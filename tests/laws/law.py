"""Declare a law: a function that every rank of a job runs, and the jobs in which tests try it.

A law takes this rank's communicator and a folder that all ranks share, and asserts. It is declared once:

    @law(day="mpirun-2 mpirun-3", night="gloo-2 mpirun-2-densenet121")
    def averaging_equal_models_changes_nothing(comm: HorovodComm, folder: Path) -> None:

A job is named LAUNCHER-RANKS[-NETWORK]; the network is `tiny` where none is named. Laws of the same job and the
same time of day share one launch.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lab.launch import LAUNCHERS

Function = Callable[..., None]
When = Literal["day", "slow", "night"]


@dataclass(frozen=True, order=True)
class Launch:
    """One start of ranks, which try laws one after the other.

    Attributes:
        when: by day in `make test`; slow as continuous integration; night alone.
    """

    when: When
    launcher: str
    num_ranks: int
    network: str = "tiny"

    @classmethod
    def parse(cls, when: When, job: str) -> "Launch":
        """Read a job's name, such as mpirun-2 or mpirun-2-densenet121."""
        launcher, num_ranks, *network = job.split("-")
        assert launcher in LAUNCHERS, f"{job}: no launcher {launcher}"
        return cls(when, launcher, int(num_ranks), *network)

    def __str__(self) -> str:
        network = "" if self.network == "tiny" else f"-{self.network}"
        return f"{self.when}-{self.launcher}-{self.num_ranks}{network}"


@dataclass(frozen=True)
class Law:
    """A declared law.

    Attributes:
        launches: that try it.
    """

    function: Function
    launches: tuple[Launch, ...]


LAWS: dict[str, Law] = {}


def law(*, day: str = "", slow: str = "", night: str = "") -> Callable[[Function], Function]:
    """Declare a law and the jobs that try it by day, in the slow tests, and by night.

    Raises:
        AssertionError: for a second law of this name, or a job of an unknown launcher.
    """
    times: tuple[tuple[When, str], ...] = (("day", day), ("slow", slow), ("night", night))
    launches = tuple(Launch.parse(when, job) for when, jobs in times for job in jobs.split())

    def declare(function: Function) -> Function:
        name = function.__name__
        assert name not in LAWS, f"two laws are called {name}"
        LAWS[name] = Law(function, launches)
        return function

    return declare


def load_laws() -> dict[str, Law]:
    """Import every module of this folder that may declare laws, and return the laws by name."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if not module.name.startswith("test_"):
            importlib.import_module(f"{__package__}.{module.name}")
    return LAWS


def laws_by_launch() -> dict[Launch, list[str]]:
    """Return the names of the laws that each launch tries."""
    launches: dict[Launch, list[str]] = {}
    for name, declared in load_laws().items():
        for launch in declared.launches:
            launches.setdefault(launch, []).append(name)
    return dict(sorted(launches.items()))
