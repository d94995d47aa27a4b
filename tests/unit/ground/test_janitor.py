"""Whatever tests start ends with them, also where the test run is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lab.launch import PROJECT, has_ended

# A test run that started a process in a session of its own, as a launcher starts ranks, and made a file.
RUN = """
import signal, subprocess, sys, time
from pathlib import Path
from lab import janitor
signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell that starts it in the background has it ignored
janitor.run_at_end("rm", "-f", sys.argv[1])
janitor.run_at_end("sh", "-c", "test -e $0 && touch $0.was_there", sys.argv[1])
Path(sys.argv[1]).touch()
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
print(child.pid, flush=True)
if sys.argv[2] == "end":
    janitor.finish()
time.sleep(600 if sys.argv[2] == "wait" else 0)
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, None])
def test_nothing_is_left_of_a_run_however_it_ends(ending: signal.Signals | None, tmp_path: Path) -> None:
    file = tmp_path / "made"
    command = [sys.executable, "-c", RUN, str(file), "wait" if ending else "end"]
    with subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as run:
        assert run.stdout is not None
        pid = run.stdout.readline().strip()
        assert Path("/proc", pid).exists() or ending is None
        if ending:
            os.kill(run.pid, ending)
    assert has_ended(pid)
    for _ in range(100):
        if not file.exists():
            break
        signal.sigtimedwait([], 0.05)
    assert not file.exists()
    assert file.with_suffix(".was_there").exists()  # the last command handed over is the first to run
