"""`cxr-preprocess`: the command line. A verb parses, calls one function, and prints."""

from preprocess.cli.app import app, main
from preprocess.cli.conversions import PROGRAM

__all__ = ["PROGRAM", "app", "main"]
