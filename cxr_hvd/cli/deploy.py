"""Commands that use a trained network: `predict`."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cxr_hvd.cli.options import (
    CheckpointOption,
    RunPath,
    StudyPaths,
    TableOption,
    WhichCheckpoint,
    stopped_on_request,
)
from cxr_hvd.terminal import say

PREDICT_EXAMPLE = """\
Examples: cxr-hvd predict runs/D mimic.h5 --site chexpert --out answers.csv

cxr-hvd predict runs/D scans/ film.png --site ensemble --out answers.csv"""


class WhichSplit(StrEnum):
    """Words for --split."""

    ALL = "all"
    TRAIN = "train"
    VALIDATE = "validate"
    TEST = "test"


def predict(
    run: RunPath,
    paths: StudyPaths,
    out: Annotated[Path, typer.Option("--out", help="Where answers go: a .csv or a .jsonl file.")],
    site: Annotated[
        str | None, typer.Option("--site", help="Whose network, where they differ: a site, ensemble or averaged.")
    ] = None,
    checkpoint: CheckpointOption = WhichCheckpoint.AUTO,
    split: Annotated[
        WhichSplit, typer.Option("--split", help="Which studies of study files; images are all answered.")
    ] = WhichSplit.ALL,
    table: TableOption = None,
    pixels: Annotated[
        str | None,
        typer.Option("--pixels", help="Make images by another pixel pipeline than the network's; answers say so."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier file of answers.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Ask a trained network about studies: a row for each study and label, in a table.

    Probability, threshold and decision; nothing for a label that no study taught the network. The answers are
    research, and no diagnosis.
    """
    from cxr_hvd.console import Console
    from cxr_hvd.deploy.answers import check_ending, write_answers
    from cxr_hvd.deploy.combine import AVERAGED
    from cxr_hvd.deploy.images import write_set_aside
    from cxr_hvd.deploy.network import load_model
    from cxr_hvd.deploy.predict import answers_of, opened_studies
    from cxr_hvd.deploy.progress import AnswerProgress
    from cxr_hvd.files import check_output
    from cxr_hvd.study.layout import Split

    check_ending(out)
    check_output(out, overwrite)
    quarantine = out.with_name(f"{out.name}.quarantine.csv")
    check_output(quarantine, overwrite)
    splits = list(Split) if split is WhichSplit.ALL else [Split[split.value.upper()]]
    network = load_model(run, site, checkpoint.value)
    with (
        stopped_on_request(),
        AnswerProgress(Console(stderr=True)) as progress,
        opened_studies(network, paths, table, pixels, out.absolute().parent, progress) as studies,
    ):
        num_answers = write_answers(out, answers_of(network, studies, splits, progress))
        set_aside = studies.images.set_aside if studies.images else ()
        num_without = studies.images.num_without if studies.images else 0
        write_set_aside(quarantine, set_aside)
    num_studies = num_answers // len(network.label_names)
    left_out = [label for label in network.label_names if not network.is_trained(label)]
    if as_json:
        summary = {
            "network": network.site,
            "step": network.step,
            "out": str(out),
            "studies": num_studies,
            "studies_without_images": num_without,
            "images_set_aside": len(set_aside),
            "quarantine": str(quarantine) if set_aside else None,
            "labels_never_trained": left_out,
        }
        print(json.dumps(summary, indent=2))
        return
    say(f"{network}; {num_studies:,} studies, {out}")
    if set_aside:
        say(
            f"set aside: {len(set_aside):,} images that cannot be used, and so {num_without:,} studies without an "
            f"answer: {quarantine}"
        )
    if left_out:
        why = "no study that trained this network says anything of it"
        if network.site == AVERAGED:
            why = "not every site's studies say something of it"
        say(f"no answer for {', '.join(left_out)}: {why}")
