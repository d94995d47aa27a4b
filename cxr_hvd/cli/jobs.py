"""The verbs `cxr-hvd jobs ...`: batch scripts."""

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cxr_hvd.console import Console
from cxr_hvd.files import check_output, write_text
from cxr_hvd.terminal import say

jobs_app = typer.Typer(
    help="Batch scripts for this machine's scheduler: write one, hand it in.", no_args_is_help=True
)


class Recipe(StrEnum):
    """What a script does."""

    TRAIN = "train"
    EXPERIMENT = "experiment"
    PREPROCESS = "preprocess"


@jobs_app.command(
    epilog="Examples: cxr-hvd jobs render --machine slurm --set account=abc --out train.sh · cxr-hvd jobs "
    "render experiment --machine pbs --set walltime=24:00:00 · cxr-hvd jobs render --set binding=hosts "
    r"--set 'hosts=chexpert=node\[1-2] mimic=node\[3-4]'"
)
def render(
    recipe: Annotated[Recipe, typer.Argument(help="What the script does.")] = Recipe.TRAIN,
    machine: Annotated[str, typer.Option("--machine", help="A row of the table: see jobs machines.")] = "slurm",
    config: Annotated[
        Path, typer.Option("--config", help="Whose sites and ranks the job is for; train and experiment.")
    ] = Path("jobs/configs/D.yaml"),
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="nodes=4, account=abc, ... May be repeated; see jobs settings."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The script; printed if left out.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier script.")] = False,
) -> None:
    """Fill in a batch script: what is done, on which machine, with which ranks at which site."""
    from cxr_hvd.batch.machines import choose_machine
    from cxr_hvd.batch.options import read_settings
    from cxr_hvd.batch.scripts import render as render_script
    from cxr_hvd.config.file import load_config

    chosen = choose_machine(machine)
    # An institution preprocesses by itself: no config says what takes part.
    sites = load_config(config, []).sites if recipe != Recipe.PREPROCESS else {}
    ranks_per_site = {name: site.ranks for name, site in sites.items()}
    read = read_settings(recipe.value, chosen, settings or [], ranks_per_site)
    path = str(out) if out else f"jobs/{machine}/{recipe.value}.sh"
    command = shlex.join(["cxr-hvd", *sys.argv[1:]])
    script = render_script(recipe.value, chosen, read, ranks_per_site, config, command, path)
    if out is None:
        print(script, end="")
        return
    check_output(out, overwrite)
    write_text(out, script, mode=0o700)
    say(f"{out}: {chosen.tried}")


@jobs_app.command(epilog="Example: cxr-hvd jobs submit train.sh")
def submit(script: Annotated[Path, typer.Argument(metavar="SCRIPT", help="As `jobs render` makes.")]) -> None:
    """Hand a script to the scheduler that it is for: sbatch, qsub, bsub or flux; run it where it is for none."""
    from cxr_hvd.batch.submit import submit as hand_in

    raise typer.Exit(hand_in(script))


@jobs_app.command(epilog="Example: cxr-hvd jobs machines")
def machines() -> None:
    """List the machines, and where their scripts were tried."""
    from cxr_hvd.batch.machines import load_machines

    table = Table("machine", "scheduler", "starts ranks by", "tried")
    for each in load_machines().values():
        table.add_row(each.name, each.scheduler, ", ".join(each.launchers), each.tried)
    Console().print(table)


@jobs_app.command("settings", epilog="Example: cxr-hvd jobs settings")
def list_settings() -> None:
    """List what --set may say, with the defaults."""
    from dataclasses import fields

    from cxr_hvd.batch.options import Settings

    table = Table("setting", "default", "what it is")
    for each in fields(Settings):
        table.add_row(each.name, str(each.default), each.metadata["meaning"])
    Console().print(table)
