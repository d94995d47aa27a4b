"""The command `cxr-hvd export`: one folder in which a trained network stands alone."""

from pathlib import Path
from typing import Annotated

import typer

from cxr_hvd.cli.options import CheckpointOption, WhichCheckpoint
from cxr_hvd.terminal import say

EXAMPLE = "Example: cxr-hvd export runs/D --site chexpert --with-private --to exported/chexpert"


def export(
    run: Annotated[
        Path, typer.Argument(help="A run's folder, a site's in it, or a network file.", metavar="RUN|NETWORK")
    ],
    to: Annotated[Path, typer.Option("--to", help="The folder to make.", metavar="FOLDER")],
    site: Annotated[
        str | None,
        typer.Option("--site", help="Whose network, where private blocks make them differ; averaged or ensemble."),
    ] = None,
    checkpoint: CheckpointOption = WhichCheckpoint.AUTO,
    with_private: Annotated[
        bool, typer.Option("--with-private", help="Private blocks, too: only if their site agrees.")
    ] = False,
    weights_only: Annotated[
        bool, typer.Option("--weights-only", help="No programs: weights, metadata and card alone.")
    ] = False,
    check: Annotated[
        Path | None,
        typer.Option("--check", help="A study file to check the programs on; else the run's own, or synthetic."),
    ] = None,
    license_name: Annotated[
        str | None, typer.Option("--license", help="An identifier as the Hugging Face Hub has them: cc-by-4.0.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
) -> None:
    """Export a trained network: weights, torch.export and ONNX programs, a MONAI bundle and a model card.

    Each program is run by its own runtime beside PyTorch first. Private blocks are left out unless asked for;
    without them no program can run, and weights, metadata and card are all that is written.
    """
    from cxr_hvd.deploy.card.run_facts import read_run_facts
    from cxr_hvd.deploy.export.export import export_network
    from cxr_hvd.deploy.export.options import ExportOptions, check_folder, read_licence
    from cxr_hvd.deploy.network import load_model

    check_folder(to, overwrite)
    options = ExportOptions(with_private, not weights_only, read_licence(license_name), check)
    network = load_model(run, site, checkpoint.value)
    say(str(network))
    exported = export_network(network, read_run_facts(run, network.record), to, options, overwrite)
    for program in exported.checks:
        say(
            f"{program.file}: {program.runtime} {program.version} on {program.num_studies} {program.studies}: "
            f"largest difference of a probability {program.largest_difference:.1e}"
        )
    if exported.left_out:
        say(
            f"left out: the private blocks {', '.join(exported.left_out)}, without which no program can run; "
            "start from it with cxr-hvd onboard, or add --with-private if their site agrees"
        )
    say(f"exported: {exported.folder}")
    if options.licence is None:
        say("no licence: the sites have to choose one before they hand it on (--license)")
