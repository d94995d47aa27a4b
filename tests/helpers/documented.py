"""The commands that README and docs show: found in their blocks of code, one a line as a user would type it."""

import re
from dataclasses import dataclass
from pathlib import Path

from lab.launch import PROJECT

PROGRAMS = (
    "cxr-hvd",
    "cxr-preprocess",
    "make",
    "mpirun",
    "horovodrun",
    "python",
    "tools/install.sh",
    "tools/gpu.sh",
    "tools/gpu_bundle.sh",
    "docker",
    "apptainer",
)
MORE_PROGRAMS = ("srun", "sbatch", "git", "env", "wg", "wg-quick", "apt-get", "umask", "ssh", "tcpdump")
BLOCK = re.compile(r"^```[a-z]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"\s#\s.*$")


@dataclass(frozen=True)
class Command:
    """A command, without its comment and with single blanks, and the file that shows it."""

    text: str
    file: str


def documents() -> list[Path]:
    """Return README and the pages of docs, without the decision records."""
    return [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]


def documented_commands() -> list[Command]:
    """Return all commands, in the order in which a reader comes upon them; each once."""
    found: dict[str, Command] = {}
    for path in documents():
        for block in BLOCK.findall(path.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                text = " ".join(COMMENT.sub("", line).removeprefix("$ ").split())
                if text.split(" ", 1)[0] in (*PROGRAMS, *MORE_PROGRAMS):
                    found.setdefault(text, Command(text, path.name))
    return list(found.values())
