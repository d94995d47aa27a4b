"""Run `cxr-preprocess` as `python -m preprocess.cli`."""

from preprocess.cli.app import main

main()
