"""The command `explain`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cxr_hvd.cli.options import StudyPaths, TableOption, stopped_on_request
from cxr_hvd.terminal import say

EXAMPLE = "Example: cxr-hvd explain runs/D mimic.h5 --site mimic --label Pneumonia --studies 2 --out maps"


class WhichMethod(StrEnum):
    """Words for --method."""

    BOTH = "both"
    GRAD_CAM = "grad-cam"
    OCCLUSION = "occlusion"


def explain(
    network_path: Annotated[
        Path, typer.Argument(help="A run's folder, a site's in it, or a network file.", metavar="RUN|NETWORK")
    ],
    paths: StudyPaths,
    out: Annotated[Path, typer.Option("--out", help="The folder of the page and its pictures.")],
    site: Annotated[
        str | None,
        typer.Option("--site", help="Whose network, where private blocks make them differ; or averaged."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", help="Which label; may be repeated. Else the three most probable of each study."),
    ] = None,
    study: Annotated[
        list[str] | None, typer.Option("--study", help="Which study, as predict names it; may be repeated.")
    ] = None,
    studies: Annotated[
        int, typer.Option("--studies", help="Without --study: the first so many of TEST.", min=1)
    ] = 4,
    method: Annotated[WhichMethod, typer.Option("--method", help="Which maps.")] = WhichMethod.BOTH,
    table: TableOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier explanation.")] = False,
) -> None:
    """Show where a trained network looks: Grad-CAM and occlusion maps of studies, as one page of pictures.

    Each map is compared with that of a network with fresh weights: maps that are alike say nothing of what was
    learnt. The page shows images of patients.
    """
    from cxr_hvd.deploy.explain.choice import choose_studies
    from cxr_hvd.deploy.explain.explain import METHODS, check_question, explain_studies
    from cxr_hvd.deploy.explain.page import PAGE, WORDS, check_folder, write_explanation
    from cxr_hvd.deploy.network import load_model
    from cxr_hvd.deploy.predict import opened_studies
    from cxr_hvd.errors import DataError
    from cxr_hvd.launch.job_console import console_for

    methods = [one for one in METHODS if method in (WhichMethod.BOTH, one)]
    labels = label or ()
    check_folder(out, overwrite)
    network = load_model(network_path, site)
    check_question(network, labels, methods)
    with stopped_on_request(), opened_studies(network, paths, table, folder=out.absolute().parent) as opened:
        chosen = choose_studies(opened, study or (), studies)
        if not chosen:
            raise DataError("PATHS: expected a study with an image that can be used, found none")
        with console_for(1).status(f"maps of {len(chosen)} studies"):
            explanation = write_explanation(out, network, explain_studies(network, chosen, labels, methods))
    say(f"{network}; {out / PAGE}")
    for name, value in explanation.mean_correlation.items():
        shown = "none, since all maps are flat" if value is None else f"{value:.2f}"
        say(f"{WORDS[name]}: rank correlation with maps of a network with fresh weights {shown}")
