"""Share tasks among the ranks of a job while they work: whoever is free takes the next one.

A static partition would have to know what an image costs before it is read, and how fast each core is today; a
counter need not. See docs/decisions/0008-preprocess-shards.md.
"""

from typing import Any, Protocol

import numpy as np

DONE, RESUMED = 1, 2
_WORD_BYTES = 8


class Pool(Protocol):
    """Tasks that ranks take one after the other: whoever is free takes the next."""

    def take(self) -> int | None:
        """Return the next task that nobody has taken, or None; lower ones first."""

    def finish(self, task: int, state: int) -> None:
        """Tell the leader that a task is `DONE` or `RESUMED`: an earlier run had done it."""

    def state(self, task: int) -> int:
        """Return the state of a task, or 0 where it is not finished. Leader only."""

    def close(self) -> None:
        """End the sharing. Collective: every rank, and only where none has failed."""


class OnePool:
    """All tasks, for one process."""

    def __init__(self, num_tasks: int) -> None:
        self._tasks = iter(range(num_tasks))
        self._states = [0] * num_tasks

    def take(self) -> int | None:
        return next(self._tasks, None)

    def finish(self, task: int, state: int) -> None:
        self._states[task] = state

    def state(self, task: int) -> int:
        return self._states[task]

    def close(self) -> None:
        pass


class MpiPool:
    """Tasks behind a counter in the leader's memory, with a flag for each that is done.

    One-sided: a rank counts up by itself, and the leader need not answer. Where the network has no such
    operation, MPI makes the leader serve it whenever it calls MPI, so it should look for peers often.
    """

    def __init__(self, mpi: Any, comm: Any, num_tasks: int) -> None:
        self._sum, self._comm, self._num_tasks = mpi.SUM, comm, num_tasks
        is_leader = comm.Get_rank() == 0
        self._window = mpi.Win.Allocate((1 + num_tasks) * _WORD_BYTES if is_leader else 0, _WORD_BYTES, comm=comm)
        if is_leader:
            self._words = np.frombuffer(self._window.tomemory(), dtype=np.int64)
            self._words[:] = 0
        self._window.Lock_all()
        self._window.Sync()
        comm.Barrier()

    def take(self) -> int | None:
        one, taken = np.ones(1, np.int64), np.empty(1, np.int64)
        self._window.Fetch_and_op(one, taken, 0, 0, self._sum)
        self._window.Flush(0)
        return int(taken[0]) if taken[0] < self._num_tasks else None

    def finish(self, task: int, state: int) -> None:
        self._window.Accumulate(np.array([state], np.int64), 0, 1 + task, self._sum)
        self._window.Flush(0)

    def state(self, task: int) -> int:
        self._window.Sync()
        return int(self._words[1 + task])

    def close(self) -> None:
        self._comm.Barrier()
        self._window.Unlock_all()
        self._window.Free()
