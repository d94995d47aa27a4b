"""The launchers: which one starts the ranks here, how it is recognised, how it is asked to stop them; time limits.

What each does with a signal was measured with Open MPI 4.1 and Horovod 0.28 (docs/operations.md). `mpirun` hands
SIGUSR1 to its ranks, but on SIGTERM kills them a second after they heard of it. `horovodrun --gloo` dies of
SIGUSR1; on SIGTERM it asks the ranks to end, and kills them after five seconds.
"""

import os
import re
import shlex
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from sys import executable

from cxr_hvd.environment import SIZES, is_parallel
from cxr_hvd.errors import UsageError
from cxr_hvd.launch.processes import Process

RANK_VARIABLES = (*SIZES, "PMIX_RANK")
# Set for each rank of horovodrun and of mpirun, also where it is the only one.
ONE_RANK_TOO = ("HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE")
MPI_LAUNCHERS = ("mpirun", "mpiexec", "orterun", "prterun")
MPI_DAEMONS = ("orted", "prted", "hydra_pmi_proxy")
# Like mpirun; at SIGTERM srun ends its ranks without a word.
HAND_SIGUSR1_ON = ("srun",)

MAX_SHOWN = 40
# Days, hours, minutes, seconds.
SECONDS_PER = (86_400, 3_600, 60, 1)
SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,3})?")
UNITS = re.compile(r"(?=[0-9])(?:([0-9]{1,6})d)?(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,9})s)?")
CLOCK = re.compile(r"(?:([0-9]{1,4})-)?([0-9]{1,5}):([0-5][0-9]):([0-5][0-9])")


def is_rank(environment: Mapping[str, str]) -> bool:
    """Return whether a launcher started this process, judged by the variables that launchers set."""
    return any(environment.get(name) for name in ONE_RANK_TOO) or is_parallel(environment)


def is_mpi_launcher(process: Process) -> bool:
    """Return whether a process is mpirun, under any of its names (mpirun, mpiexec.openmpi, ...)."""
    return process.name.partition(".")[0] in MPI_LAUNCHERS


def is_launcher(process: Process) -> bool:
    """Return whether a process is a launcher, or its hand on this machine."""
    return is_mpi_launcher(process) or process.name in (*MPI_DAEMONS, "horovodrun")


def choose_launcher(num_ranks: int, given: list[str] | None) -> list[str]:
    """Return the words that stand before the command; none for one rank, which needs no launcher.

    Raises:
        UsageError: the launcher is not installed.
    """
    if given:
        if not shutil.which(given[0]):
            raise UsageError(f"--launcher: '{given[0]}' is not a program on PATH; install it or name another")
        return given
    if num_ranks == 1:
        return []
    if shutil.which("mpirun"):
        return ["mpirun", "-np", str(num_ranks)]  # not its whole path: Open MPI would take that for --prefix
    beside = f"{Path(executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    if horovodrun := shutil.which("horovodrun", path=beside):
        return [horovodrun, "--gloo", "-np", str(num_ranks)]
    raise UsageError(
        f"{num_ranks} ranks need a launcher, and neither mpirun nor horovodrun is on PATH; "
        "install one, or name yours with --supervise N --launcher WORDS"
    )


def split_launcher(text: str) -> list[str]:
    """Return the words of `--launcher`, parted as a shell does.

    Raises:
        UsageError: it holds no word, or a quotation without an end.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--launcher {text}: {error}; close what is quoted") from error
    if not words:
        raise UsageError("--launcher: expected a command such as 'mpirun -np 2 --hostfile hosts', found nothing")
    return words


def path_word(path: Path | str) -> str:
    """Write a path so that no program takes it for an option: `-x` becomes `./-x`."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def receiver(launcher: Process, started: list[Process]) -> Process:
    """Return which process takes the signals for the ranks: mpirun, wherever it stands, or else the launcher.

    `horovodrun --mpi` and scripts put a shell above mpirun, which would die of a signal and hand nothing on.

    Args:
        launcher: what was started.
        started: all that came from it.
    """
    mpi_launchers = [process for process in started if is_mpi_launcher(process)]
    parents = {process.parent for process in mpi_launchers}
    return next((process for process in mpi_launchers if process.pid not in parents), launcher)


def stop_signal(receives: Process, has_launcher: bool, asked: signal.Signals) -> signal.Signals:
    """Return the signal that asks the ranks to stop, and leaves them time to write a checkpoint.

    Args:
        receives: who takes it, of `receiver`.
        has_launcher: whether that is a launcher, not the one rank itself.
        asked: the signal that came.
    """
    if is_mpi_launcher(receives) or receives.name in HAND_SIGUSR1_ON:
        return signal.SIGUSR1
    return signal.SIGTERM if has_launcher or asked != signal.SIGUSR1 else signal.SIGUSR1


def remark_on_stop(environment: Mapping[str, str]) -> str:
    """Return what a clean stop has to add under Open MPI's mpirun, which calls every exit code but 0 an abort.

    Nothing where it is told to be quiet, as `mpirun --quiet` is and all that this program starts.
    """
    if "OMPI_COMM_WORLD_SIZE" not in environment or environment.get("OMPI_MCA_orte_execute_quiet", "0") != "0":
        return ""
    return ' (mpirun calls every exit code but 0 "aborted": nothing is lost)'


def parse_duration(text: str, name: str = "--time-limit") -> float:
    """Return the seconds, more than 0, of a time limit as people and batch systems write it.

    Read are seconds (`3600`), counts with units d, h, m and s (`90m`, `1h30m`) and clocks as Slurm prints them
    (`12:00:00`, `1-00:00:00`). `MM:SS` is refused: some would read it as hours and minutes.

    Args:
        text: what was given.
        name: of the option or the variable of the environment, for the error.

    Raises:
        UsageError: it is none of these, or no time at all.
    """
    seconds = 0.0
    if SECONDS.fullmatch(text):
        seconds = float(text)
    elif match := UNITS.fullmatch(text) or CLOCK.fullmatch(text):
        counts = zip(match.groups(), SECONDS_PER, strict=True)
        seconds = float(sum(int(count or 0) * seconds_per for count, seconds_per in counts))
    if not seconds:
        raise UsageError(
            f"{name} {text[:MAX_SHOWN]}: expected 3600 (seconds), 90m, 1h30m, 12:00:00 or 1-00:00:00, and more "
            "than 0"
        )
    return seconds
