"""Submit a batch script to the scheduler that it is written for."""

import shutil
import subprocess
from pathlib import Path

from cxr_hvd.errors import CxrHvdError, UsageError
from cxr_hvd.launch.launchers import path_word

# Prefix of the directives: the command that submits the script.
SCHEDULERS = {"#SBATCH": ["sbatch"], "#PBS": ["qsub"], "#BSUB": ["bsub"], "#flux:": ["flux", "batch"]}
NO_SCHEDULER = ["bash"]
FROM_INPUT = ("bsub",)
LIMIT_S = 60.0


def command_for(script: str) -> list[str]:
    """Return the command that submits a script, by its directives; `bash` where it has none. Pure."""
    for line in script.splitlines():
        for mark, words in SCHEDULERS.items():
            if line.startswith(mark):
                return words
    return NO_SCHEDULER


def submit(path: Path) -> int:
    """Submit a script to the local scheduler, or run it where it has no directives; return the exit code.

    Raises:
        UsageError: there is no such script, or its scheduler is not here.
        CxrHvdError: the scheduler does not answer.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path}: expected a batch script ({error.__class__.__name__}); make one: cxr-hvd jobs render --out"
        ) from error
    words = command_for(text)
    if not shutil.which(words[0]):
        raise UsageError(
            f"{path} is for {words[0]}, which is not on PATH: log in where jobs are submitted, or render it for "
            "another machine"
        )
    by_input = words[0] in FROM_INPUT
    limit_s = None if words == NO_SCHEDULER else LIMIT_S
    try:
        done = subprocess.run(
            words if by_input else [*words, path_word(path)],
            input=text if by_input else None,
            text=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CxrHvdError(
            f"{words[0]} gave no answer within {LIMIT_S:.0f} s: look whether {path} is queued"
        ) from error
    return done.returncode
