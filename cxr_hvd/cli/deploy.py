"""Commands that use a trained network: `predict`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cxr_hvd.cli.options import RunPath
from cxr_hvd.terminal import say

PREDICT_EXAMPLE = "Example: cxr-hvd predict runs/D mimic.h5 --site chexpert --out answers.csv"


class WhichCheckpoint(StrEnum):
    """Words for --checkpoint."""

    AUTO = "auto"
    BEST = "best"
    LATEST = "latest"


class WhichSplit(StrEnum):
    """Words for --split."""

    ALL = "all"
    TRAIN = "train"
    VALIDATE = "validate"
    TEST = "test"


def predict(
    run: RunPath,
    files: Annotated[list[Path], typer.Argument(help="Study files, as cxr-preprocess makes.", metavar="FILES...")],
    out: Annotated[Path, typer.Option("--out", help="Where answers go: a .csv or a .jsonl file.")],
    site: Annotated[
        str | None, typer.Option("--site", help="Whose network, where private blocks make them differ.")
    ] = None,
    checkpoint: Annotated[
        WhichCheckpoint,
        typer.Option("--checkpoint", help="auto: the best by validation, or the latest without any."),
    ] = WhichCheckpoint.AUTO,
    split: Annotated[WhichSplit, typer.Option("--split", help="Which studies of the files.")] = WhichSplit.ALL,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier file of answers.")] = False,
) -> None:
    """Ask a trained network about the studies of files: a row for each study and label, in a table.

    Probability, threshold and decision; nothing for a label that no study taught the network. What it says is
    research, not a diagnosis.
    """
    from contextlib import ExitStack
    from itertools import chain

    from cxr_hvd.deploy.network import load_model
    from cxr_hvd.deploy.predict import check_ending, check_pixels, predict_file, write_answers
    from cxr_hvd.files import check_output
    from cxr_hvd.study.layout import Split
    from cxr_hvd.study.study_file import StudyFile

    check_ending(out)
    check_output(out, overwrite)
    splits = list(Split) if split is WhichSplit.ALL else [Split[split.value.upper()]]
    network = load_model(run, site, checkpoint.value)
    with ExitStack() as opened:
        studies = [opened.enter_context(StudyFile(path)) for path in files]
        for file in studies:
            check_pixels(network, file)
        answers = chain.from_iterable(predict_file(network, file, splits) for file in studies)
        num_studies = write_answers(out, answers)
    say(f"{network}; {num_studies} studies, {out}")
    left_out = [label for label in network.label_names if not network.is_trained(label)]
    if left_out:
        say(f"no answer for {', '.join(left_out)}: no study that trained this network says anything of it")
