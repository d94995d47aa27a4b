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

jobs_app = typer.Typer(help="Write batch scripts for a scheduler, and submit them.", no_args_is_help=True)


class Recipe(StrEnum):
    """The kinds of batch scripts."""

    TRAIN = "train"
    EXPERIMENT = "experiment"
    PREPROCESS = "preprocess"


@jobs_app.command(
    epilog="Examples: cxr-hvd jobs render --machine slurm --set account=abc --out train.sh · cxr-hvd jobs "
    "render experiment --machine pbs --set walltime=24:00:00 · cxr-hvd jobs render --set binding=hosts "
    r"--set 'hosts=chexpert=node\[1-2] mimic=node\[3-4]'"
)
def render(
    recipe: Annotated[Recipe, typer.Argument(help="Kind of script.")] = Recipe.TRAIN,
    machine: Annotated[str, typer.Option("--machine", help="A machine of `jobs machines`.")] = "slurm",
    config: Annotated[
        Path, typer.Option("--config", help="Config with the sites and ranks; for train and experiment.")
    ] = Path("jobs/configs/D.yaml"),
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="nodes=4, account=abc, ... May be repeated; see `jobs settings`."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="File to write; printed if left out.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Write a batch script for a recipe, a machine and the ranks of a config."""
    from cxr_hvd.batch.machines import choose_machine
    from cxr_hvd.batch.options import read_job_options
    from cxr_hvd.batch.scripts import render as render_script
    from cxr_hvd.config.file import load_config

    row = choose_machine(machine)
    # A site preprocesses alone, without a config.
    sites = load_config(config, []).sites if recipe != Recipe.PREPROCESS else {}
    ranks_per_site = {name: site.ranks for name, site in sites.items()}
    job = read_job_options(recipe.value, row, assignments or [], ranks_per_site)
    path = str(out) if out else f"jobs/{machine}/{recipe.value}.sh"
    command = shlex.join(["cxr-hvd", *sys.argv[1:]])
    script = render_script(recipe.value, row, job, ranks_per_site, config, command, path)
    if out is None:
        print(script, end="")
        return
    check_output(out, overwrite)
    write_text(out, script, mode=0o700)
    say(f"{out}: {row.tried}")


@jobs_app.command(epilog="Example: cxr-hvd jobs submit train.sh")
def submit(script: Annotated[Path, typer.Argument(metavar="SCRIPT", help="Made by `jobs render`.")]) -> None:
    """Submit a script with sbatch, qsub, bsub or flux; without a scheduler, run it."""
    from cxr_hvd.batch.submit import submit as submit_script

    raise typer.Exit(submit_script(script))


@jobs_app.command(epilog="Example: cxr-hvd jobs machines")
def machines() -> None:
    """List the machines, and where their scripts were tried."""
    from cxr_hvd.batch.machines import load_machines

    table = Table("machine", "scheduler", "starts ranks by", "tried")
    for row in load_machines().values():
        table.add_row(row.name, row.scheduler, ", ".join(row.launchers), row.tried)
    Console().print(table)


@jobs_app.command("settings", epilog="Example: cxr-hvd jobs settings")
def list_settings() -> None:
    """List the options of --set, with their defaults."""
    from dataclasses import fields

    from cxr_hvd.batch.options import JobOptions

    table = Table("option", "default", "meaning")
    for option in fields(JobOptions):
        table.add_row(option.name, str(option.default), option.metadata["meaning"])
    Console().print(table)
