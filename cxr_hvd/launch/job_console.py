"""The console of a parallel job: its launcher's terminal, which the rank that leads writes to."""

import os
from contextlib import suppress
from pathlib import Path

from cxr_hvd.console import WIDTH, Console, open_console
from cxr_hvd.launch.launchers import is_launcher, is_rank
from cxr_hvd.launch.processes import PROC, ancestors

TERMINALS = ("/dev/pts/", "/dev/tty")


def console_for(num_ranks: int) -> Console:
    """Return the console of a job: colours and bars on a terminal, plain lines elsewhere.

    Under a launcher the rank writes to the launcher's terminal itself: launchers part and mark lines, which no bar
    survives.
    """
    if num_ranks > 1:
        if terminal := terminal_of_launcher():
            with suppress(OSError):
                file = os.fdopen(os.open(terminal, os.O_WRONLY | os.O_NOCTTY), "w", encoding="utf-8")
                width = os.get_terminal_size(file.fileno()).columns or WIDTH
                return Console(file=file, force_terminal=True, width=width)
        return Console(force_terminal=False, no_color=True, width=WIDTH)
    return open_console()


def terminal_of_launcher() -> Path | None:
    """Return the terminal that this rank's launcher writes to; None where it is none, or on another machine.

    A rank's own standard output tells nothing: Open MPI gives rank 0 a terminal of its own, and horovodrun a pipe.
    """
    launcher = next((process for process in ancestors() if is_launcher(process)), None)
    if launcher is None or not is_rank(os.environ):
        return None
    try:
        target = (PROC / str(launcher.pid) / "fd" / "1").readlink()
    except OSError:
        return None
    return target if str(target).startswith(TERMINALS) else None
