"""How tests call `cxr-preprocess`, installed or not."""

import sys


def preprocess_command(*arguments: object) -> list[str]:
    """Return the command line for these arguments."""
    return [sys.executable, "-m", "preprocess.cli", *map(str, arguments)]
