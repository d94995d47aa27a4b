"""The command `cxr-hvd onboard`: a hospital that took no part trains private blocks of its own."""

from pathlib import Path
from typing import Annotated

import typer

from cxr_hvd.cli.options import JsonOption, Settings, TimeLimit, read_deadline
from cxr_hvd.cli.train import ResumeWord

ONBOARD_EXAMPLE = "Example: cxr-hvd onboard runs/D --data third.h5 --run runs/third --steps 200"


def onboard(
    network: Annotated[
        Path,
        typer.Argument(
            help="The others' run, one site's folder in it, a network file, or an export.", metavar="NETWORK"
        ),
    ],
    data: Annotated[Path, typer.Option("--data", help="The new hospital's study file.")],
    run: Annotated[Path, typer.Option("--run", help="Run folder.")] = Path("runs/onboarding"),
    site: Annotated[
        str | None, typer.Option("--site", help="The new hospital's name; its study file's if left out.")
    ] = None,
    private: Annotated[
        list[str] | None,
        typer.Option(
            "--private",
            help="Train these, too: a preset (head, norms, ends) or a block. May be repeated.",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of both trainings.", min=1)] = None,
    epochs: Annotated[int | None, typer.Option(help="Or passes over its training studies.", min=1)] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Studies of a step; the others' if left out.", min=1)
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The others' if left out.")] = None,
    settings: Settings = None,
    resume: Annotated[
        ResumeWord, typer.Option("--resume", help="auto: go on where it stopped, or start where there is nothing.")
    ] = ResumeWord.NEVER,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier onboarding.")] = False,
    time_limit: TimeLimit = None,
    as_json: JsonOption = False,
) -> None:
    """Let a hospital that took no part train private blocks of its own; shared blocks stay as they are.

    Nothing is sent. On its own TEST studies it compares the others' networks as they are, their ensemble, their
    mean, the onboarded network, and one that was trained from nothing with the same budget.
    """
    import os
    import sys
    from contextlib import nullcontext, redirect_stdout

    from cxr_hvd.deploy.onboarding.config import Budget
    from cxr_hvd.deploy.onboarding.onboard import OnboardingOptions
    from cxr_hvd.deploy.onboarding.onboard import onboard as onboard_site
    from cxr_hvd.deploy.onboarding.table import print_onboarding
    from cxr_hvd.environment import is_parallel
    from cxr_hvd.errors import UsageError
    from cxr_hvd.launch.job_console import console_for
    from cxr_hvd.training.train import LaunchOptions

    if is_parallel(os.environ):
        raise UsageError("onboard: expected one process, found ranks of a launcher: a hospital onboards alone")
    if resume is not ResumeWord.NEVER and overwrite:
        raise UsageError("--resume goes on with a run and --overwrite replaces it: choose one")
    launch = LaunchOptions(resume.value, overwrite, deadline=read_deadline(time_limit))
    options = OnboardingOptions(
        run, site, private or (), Budget(steps, epochs, batch_size, learning_rate), settings or (), launch
    )
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        record = onboard_site(network, data, options)
    if as_json:
        print(record.model_dump_json())
    else:
        print_onboarding(record, console_for(1))
