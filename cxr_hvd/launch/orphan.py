"""A rank whose launcher has died: how it learns that, so that it does not train on for nobody.

What is left when a launcher dies was measured (docs/operations.md). A killed mpirun leaves its ranks; a signal to
`horovodrun --mpi` ends the shell that it has become and leaves mpirun and the ranks; `horovodrun --gloo` has
helpers that end the ranks, unless these are killed as well. So a rank watches

- its parent, and all from there up to the launcher: wrappers, horovodrun's helpers;
- the shell that horovodrun becomes, known by how horovodrun writes its command;
- the supervisor (`supervise`) that started the launcher;

and nobody further up: the shell or batch script in which a user typed `mpirun` may end, and training goes on.

The death signal of the kernel (PR_SET_PDEATHSIG) is not used: it knows the parent alone, and comes when the thread
that started the child ends, with the process alive. Ranks on other machines watch what started them there; when
the job's launcher dies, MPI's own daemons end with it and are missed.
"""

import os
import threading
from collections.abc import Callable, Mapping

from cxr_hvd.launch.launchers import is_launcher, is_mpi_launcher, is_rank
from cxr_hvd.launch.processes import Process, ancestors, arguments_of, is_running

SUPERVISOR = "CXR_HVD_SUPERVISOR"
# How horovod.runner.mpi_run begins its command, for Open MPI and for MPICH.
HOROVODRUN_BEGINS = ("mpirun --allow-run-as-root --tag-output -np ", "mpirun -l -np ")


class LauncherWatch:
    """Calls `on_lost` once, from a thread of its own, when what started this rank has died.

    Started on every rank; a process that no launcher started watches nobody. One look takes some 0.1 ms.

    Args:
        on_lost: what to do then. `lost` is set before.
        poll_s: seconds from one look to the next.

    Attributes:
        watched: whose end it waits for, nearest first.
        lost: who has died, for a message, such as `mpirun (process 4711)`; None until then.
    """

    def __init__(self, on_lost: Callable[[], None], poll_s: float = 1.0) -> None:
        self.watched = who_matters(ancestors(), os.environ)
        self.lost: str | None = None
        self._on_lost = on_lost
        self._poll_s = poll_s
        self._stopped = threading.Event()
        # A parent that belongs to another user may be hidden; whose child one is can always be asked.
        self._parent = os.getppid() if self.watched or is_rank(os.environ) else None
        if self._parent is not None:
            threading.Thread(target=self._watch, name="launcher watch", daemon=True).start()

    def stop(self) -> None:
        """Watch no more."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(self._poll_s):
            gone = next((process for process in self.watched if not is_running(process)), None)
            if gone is not None or os.getppid() != self._parent:
                self.lost = f"{gone.name} (process {gone.pid})" if gone else f"process {self._parent}"
                self._on_lost()
                return


def who_matters(chain: list[Process], environment: Mapping[str, str]) -> list[Process]:
    """Return those of a rank's ancestors without which nobody waits for it any more, nearest first.

    Args:
        chain: its ancestors, the parent first.
        environment: what it was started with.
    """
    num_watched = 0
    if is_rank(environment):
        launchers = (number for number, process in enumerate(chain, 1) if is_launcher(process))
        num_watched = next(launchers, min(1, len(chain)))
        if is_mpi_launcher_below_horovodrun(chain[num_watched - 1 : num_watched + 1]):
            num_watched += 1
    if num_watched < len(chain) and chain[num_watched].identity == environment.get(SUPERVISOR):
        num_watched += 1
    return chain[:num_watched]


def is_mpi_launcher_below_horovodrun(pair: list[Process]) -> bool:
    """Return whether of a process and its parent the first is mpirun, and the second what horovodrun became."""
    if len(pair) < 2 or not is_mpi_launcher(pair[0]):
        return False
    words = arguments_of(pair[1].pid)
    return len(words) == 3 and words[1] == "-c" and words[2].startswith(HOROVODRUN_BEGINS)
