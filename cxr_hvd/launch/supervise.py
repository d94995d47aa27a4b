"""Start the ranks of `cxr-hvd train`: once, or with `--supervise N` again when the run fails.

`Start` runs the launcher in a session of its own, waits for its end, and ends the processes that it left.
`supervise` starts it again, with growing pauses, unless the run is done, was asked to stop, or cannot work. A
signal to this process is passed on in the way that gives the ranks time for a checkpoint.
"""

import os
import queue
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TextIO

from cxr_hvd.errors import UsageError
from cxr_hvd.launch.early import environment_of_ranks
from cxr_hvd.launch.launchers import choose_launcher, is_rank, receiver, stop_signal
from cxr_hvd.launch.orphan import SUPERVISOR
from cxr_hvd.launch.outcome import DONE, STOPPED, USAGE, judge, newest_step, read_last_statuses
from cxr_hvd.launch.processes import Process, descendants, end, read_process, send, wait_for_end
from cxr_hvd.launch.slow_line import SEND_ONLY, crosses_hosts
from cxr_hvd.terminal import shown

FIRST_PAUSE_S = 10.0
LONGEST_PAUSE_S = 600.0
GRACE_S = 60.0
LEFT_S = 15.0  # horovodrun --gloo takes ten seconds to end its ranks
SETTLE_S = 1.0  # its helpers see its end and go, too
POLL_S = 0.1
TWICE_S = 1.0  # `timeout`, for one, sends the same signal to a process and to its group
HURRY = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LISTENED = (*HURRY, signal.SIGUSR1)
# Open MPI 4 and 5 bind each of two ranks to one core, and leave the others idle.
UNBOUND = ("OMPI_MCA_hwloc_base_binding_policy", "PRTE_MCA_hwloc_default_binding_policy")
OPTIONS_OF_SUPERVISOR = ("--supervise", "--launcher", "--resume")

Requests = queue.SimpleQueue[signal.Signals]


def run_ranks(command: list[str], run: Path, num_ranks: int, grace_s: float = GRACE_S) -> int:
    """Run a command once, on several ranks of this machine; return its exit code.

    Arguments, signals and exit codes are those of `supervise`.

    Raises:
        UsageError: no launcher is installed.

    Blocking: as long as the run takes.
    """
    words = [*choose_launcher(num_ranks, None), *command]
    say_event(sys.stderr, f"{num_ranks} ranks on this machine: {shlex.join(words)}")
    with listening() as requests:
        began = time.time()
        code, was_asked = Start(words, True, environment=environment_of_ranks()).wait(requests, grace_s)
        code = judge(code, read_last_statuses(run, began), was_asked)
    if code not in (DONE, USAGE, STOPPED):
        # A rank that is killed says nothing, and a launcher that starts none is kept quiet, too.
        why = "where no line above says why, type the launcher's line yourself"
        say_event(sys.stderr, f"{words[0]} ended with {code} {_reached(run)}; {why}")
    return code


def supervise(
    command: list[str],
    run: Path,
    num_ranks: int,
    num_restarts: int,
    launcher: list[str] | None = None,
    first_pause_s: float = FIRST_PAUSE_S,
    grace_s: float = GRACE_S,
    deadline: float | None = None,
    log: TextIO | None = None,
) -> int:
    """Run a command on all ranks, and again where it fails; return the exit code of the last start.

    SIGTERM, SIGINT and SIGHUP ask the ranks to stop, make them after `grace_s`, and end all at once when they
    come a second time; SIGUSR1 asks and leaves them all the time that they want. Nothing is started after that.
    One that was ignored when this process began, as `nohup` does, stays ignored. Called in the main thread.

    Args:
        command: what each rank runs; it goes on from its checkpoints by itself.
        run: the run folder, where checkpoints and last words are looked for.
        num_ranks: how many ranks there are.
        num_restarts: how often it is started again at most, whatever it reached in between.
        launcher: the words before the command, instead of `mpirun -np R` or `horovodrun --gloo -np R`.
        first_pause_s: seconds before the second start; each further pause is twice as long, at most ten minutes.
        grace_s: seconds from a request to stop until the ranks are made to.
        deadline: when the run has to be over, by `time.monotonic()`. Each start is told what is left by
            `--time-limit`, and none comes after it.
        log: a file for the output of the ranks and of this function, instead of the terminal.

    Returns:
        0 done, 2 wrong usage or config, 75 stopped on request, anything else: failed too often.

    Raises:
        UsageError: this is a rank itself; or the launcher cannot be started.

    Blocking: as long as the run takes, and the pauses.
    """
    if is_rank(os.environ):
        raise UsageError("--supervise starts the launcher itself: run it without one")
    words = [*choose_launcher(num_ranks, launcher), *command]
    num_starts = num_restarts + 1
    say = partial(say_event, log or sys.stderr)
    with listening() as requests:
        for number in range(1, num_starts + 1):
            limit = [] if deadline is None else ["--time-limit", str(max(1, int(deadline - time.monotonic())))]
            say(f"start {number} of {num_starts}: {shlex.join([*words, *limit])}")
            began = time.time()
            start = Start([*words, *limit], has_launcher=len(words) > len(command), log=log)
            code, was_asked = start.wait(requests, grace_s)
            code = judge(code, read_last_statuses(run, began), was_asked)
            ended = f"the run ended with {code} {_reached(run)}"
            if code in (DONE, USAGE, STOPPED) or start.is_asked:
                say(ended)
                return code
            pause_s = pause_before(number + 1, first_pause_s)
            if number == num_starts or (deadline is not None and time.monotonic() + pause_s > deadline):
                break
            say(f"start {number + 1} of {num_starts} in {pause_s:g} s: {ended}")
            if _next(requests, pause_s):
                say(f"stopped on request, in the pause; the run stands {_reached(run)}")
                return STOPPED
    say(f"given up after start {number} of {num_starts}: {ended}")
    return code


def pause_before(number: int, first_pause_s: float = FIRST_PAUSE_S) -> float:
    """Return how many seconds to wait before start `number`, 2 and up: 10, 20, 40, at most 600. Pure."""
    return float(min(LONGEST_PAUSE_S, first_pause_s * 2 ** min(number - 2, 62)))


def command_of_ranks(arguments: list[str]) -> list[str]:
    """Return what each rank is to run, from this program's own command line. Pure, but for the working folder.

    It is the same without `--supervise`, `--launcher` and `--resume`, and with `--resume auto`.

    Raises:
        UsageError: it holds `--overwrite`, which would throw away at each start what the one before reached.
    """
    if "--overwrite" in arguments:
        raise UsageError("--supervise goes on with what is there and --overwrite replaces it: choose one")
    kept: list[str] = []
    rest = iter(arguments[1:])
    for word in rest:
        if word in OPTIONS_OF_SUPERVISOR:
            next(rest, None)
        elif word.partition("=")[0] not in OPTIONS_OF_SUPERVISOR:
            kept.append(word)
    return [str(Path(arguments[0]).absolute()), *kept, "--resume", "auto"]


class Start:
    """One start of the launcher, with all processes that come from it.

    Args:
        words: the launcher and the command.
        has_launcher: whether there is one, or the command itself is what is started.
        log: a file for its output and for messages about it, instead of the terminal.
        environment: what it is started with; this process's own if left out.

    Attributes:
        is_asked: whether it has been asked to stop.

    Raises:
        UsageError: the system cannot start it.
    """

    def __init__(
        self,
        words: list[str],
        has_launcher: bool,
        log: TextIO | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        supervisor = read_process(os.getpid())
        if supervisor is None:
            raise UsageError("--supervise looks for processes in /proc, and finds none: use it on Linux")
        self.is_asked = False
        self._has_launcher = has_launcher
        self._say = partial(say_event, log or sys.stderr)
        self._mark = f"{SUPERVISOR}={supervisor.identity}"
        variables = dict(environment) | {SUPERVISOR: supervisor.identity}
        variables.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
        for name in UNBOUND:  # unless the launcher's own words say otherwise
            variables.setdefault(name, "none")
        if crosses_hosts(words, variables) and SEND_ONLY[0] not in variables:
            variables |= dict([SEND_ONLY])
            self._say(f"hosts without a scheduler, taken for a slow line: {'='.join(SEND_ONLY)}")
        if os.geteuid() == 0:
            variables |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        try:
            self._launcher = subprocess.Popen(
                words,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT if log else None,
                start_new_session=True,
            )
        except OSError as error:
            raise UsageError(
                f"--supervise: cannot start {words[0]} ({error.strerror}); mend --launcher"
            ) from error

    def wait(self, requests: Requests, grace_s: float) -> tuple[int, bool]:
        """Wait for the end, hand requests on, and leave no process behind.

        Returns:
            The exit code, or 128 and the number of the signal that ended it; and whether it stopped because it was
            asked to, and was not made to.

        Blocking: as long as it runs; after a request to stop in a hurry at most `grace_s` and 40 s.
        """
        hurried_at: float | None = None
        make_at = kill_at = float("inf")
        while (code := self._launcher.poll()) is None:
            asked, now = _next(requests, POLL_S), time.monotonic()
            if asked in HURRY and hurried_at is None:
                hurried_at, make_at = now, now + grace_s
                self._ask(asked)
            elif asked in HURRY and hurried_at is not None and now - hurried_at > TWICE_S:
                self._say(f"{asked.name} once more: all is ended now")
                kill_at = now
            elif asked == signal.SIGUSR1 and not self.is_asked:
                self._ask(asked)
            if now >= make_at and kill_at == float("inf"):
                self._say(f"still there {grace_s:g} s after it was asked to stop: SIGTERM")
                kill_at = now + LEFT_S
                self._send(signal.SIGTERM)
            if now >= kill_at:
                end(self._all, grace_s=0.0)
        if wait_for_end(self._all, SETTLE_S):
            self._say("ending what the launcher left behind")
            end(self._all, LEFT_S)
        return code if code >= 0 else 128 - code, self.is_asked and kill_at == float("inf")

    def _ask(self, asked: signal.Signals) -> None:
        self.is_asked = True
        self._say(f"{asked.name}: the ranks are asked to stop")
        self._send(asked, to_ask=True)

    def _send(self, number: signal.Signals, to_ask: bool = False) -> None:
        launcher = read_process(self._launcher.pid)
        if launcher is not None:
            receives = receiver(launcher, self._all())
            send(receives, stop_signal(receives, self._has_launcher, number) if to_ask else number)

    def _all(self) -> list[Process]:
        return descendants(self._launcher.pid, self._mark)


@contextmanager
def listening() -> Iterator[Requests]:
    """Take the signals that ask for a stop into a queue while the body runs."""
    requests: Requests = queue.SimpleQueue()

    def receive(number: int, frame: FrameType | None) -> None:
        requests.put(signal.Signals(number))

    before = {number: signal.getsignal(number) for number in LISTENED}
    listened = [number for number, handler in before.items() if handler != signal.SIG_IGN]
    for number in listened:
        signal.signal(number, receive)
    try:
        yield requests
    finally:
        for number in listened:
            signal.signal(number, before[number])


def say_event(out: TextIO, event: str) -> None:
    """Print one line, with the time of day, in one piece."""
    with suppress(OSError):  # the terminal may be gone
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        out.write(f"{now} cxr-hvd: supervise: {shown(event, 1000)}\n")
        out.flush()


def _next(requests: Requests, limit_s: float) -> signal.Signals | None:
    """Return the next request, or None where none comes within `limit_s` seconds."""
    try:
        return requests.get(timeout=limit_s)
    except queue.Empty:
        return None


def _reached(run: Path) -> str:
    step = newest_step(run)
    return "before its first checkpoint" if step is None else f"after step {step}"
