"""The command line `cxr-preprocess`."""

from preprocess.cli.conversions import PROGRAM
from preprocess.cli.verbs import app, main

__all__ = ["PROGRAM", "app", "main"]
