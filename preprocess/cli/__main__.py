"""Run `cxr-preprocess` as `python -m preprocess.cli`."""

from preprocess.cli.verbs import main

main()
