"""`cxr-hvd train` without a launcher: it starts the ranks of its config on this machine, and shows one bar."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

from lab.launch import BIN, PROJECT, environment, need_horovod
from lab.study_files import write_study_file

need_horovod()

LIMIT_S = 120.0


def test_it_starts_its_ranks_shows_one_bar_and_stops_on_request(tmp_path: Path) -> None:
    sites = {name: write_study_file(tmp_path / f"{name}.h5", 8, site=name) for name in ("north", "south")}
    config = tmp_path / "D.yaml"
    config.write_text(
        f"experiment: D\nsites: {{north: {{data: {sites['north']}}}, south: {{data: {sites['south']}}}}}\n"
        "model: {image_size: 32}\ntraining: {batch_size: 2, epochs: 5000, precision: fp32}\n"
    )
    terminal, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    command = [str(BIN / "cxr-hvd"), "train", str(config), "--run", str(tmp_path / "run")]
    variables = environment(TERM="xterm")
    del variables["COLUMNS"]
    with subprocess.Popen(
        command,
        env=variables,
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=inside,
        stderr=inside,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # ignored where tests run in the background
    ) as process:
        os.close(inside)
        shown = _read(terminal, process, until=r" [0-9]+/10000")
        process.send_signal(signal.SIGINT)
        shown += _read(terminal, process)
    os.close(terminal)
    assert process.returncode == 75, shown
    assert re.search("training .*━.* [0-9]+/10000.*studies/s", shown), shown  # the bar, whole: no launcher's marks
    assert "2 ranks on this machine: mpirun -np 2 " in shown or "horovodrun --gloo -np 2 " in shown
    assert "a checkpoint is written" in shown and "abort" not in shown and "<std" not in shown
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["north", "south"]
    again = subprocess.run(command, env=environment(), cwd=PROJECT, capture_output=True, text=True, check=False)
    assert again.returncode == 1 and "north holds a run already" in again.stderr  # told before a rank is started


def _read(terminal: int, process: "subprocess.Popen[bytes]", until: str | None = None) -> str:
    """Return what a terminal shows up to a pattern, or to the end of the process; end that at a limit."""
    os.set_blocking(terminal, False)
    shown, deadline = "", time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        is_over = process.poll() is not None
        try:
            shown += os.read(terminal, 1 << 16).decode(errors="replace")
        except (BlockingIOError, OSError):
            if is_over:
                return shown
            time.sleep(0.05)
        if until and re.search(until, shown):
            return shown
    process.terminate()
    raise AssertionError(f"no end after {LIMIT_S} s: {shown[-3000:]}")
