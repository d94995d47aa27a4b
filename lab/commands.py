"""Run commands of the system: for their output, or in the background while something else runs."""

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

UP_WITHIN_S = 10.0


def output_of(command: list[str], text: str | None = None) -> str:
    """Return the output of a command that reads the text, if any; raise RuntimeError if it fails."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def running(command: list[str]) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command during the body, then end it; add its output to an error of the body."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            yield process
        except RuntimeError as error:
            output.seek(0)
            raise RuntimeError(f"{error}: {output.read().decode(errors='replace').strip()[-300:]}") from error
        finally:
            process.kill()
            process.wait()


def wait_until(is_up: Callable[[], object], what: str, process: "subprocess.Popen[bytes] | None" = None) -> None:
    """Wait until something is up, as long as the process that should bring it up runs.

    Raises:
        RuntimeError: it is not up within `UP_WITHIN_S`, or the process has ended.
    """
    deadline = time.monotonic() + UP_WITHIN_S
    while time.monotonic() < deadline and (process is None or process.poll() is None):
        with contextlib.suppress(OSError):
            if is_up():
                return
        time.sleep(0.02)
    raise RuntimeError(f"{what} did not start")
