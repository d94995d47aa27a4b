"""The command `cxr-hvd train`: as one rank of a job, or as the process that starts the ranks."""

import math
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cxr_hvd.cli.joining import check_run, check_start, refused_alike, run_own_ranks, starts_ranks
from cxr_hvd.cli.options import PROGRAM, ConfigPath, Settings, SiteOption, TimeLimit, read_deadline
from cxr_hvd.environment import num_ranks_here
from cxr_hvd.errors import UsageError

if TYPE_CHECKING:
    from cxr_hvd.config.schema import Config

EXAMPLE = "Example: cxr-hvd train jobs/configs/D.yaml --run runs/D --resume auto"


class ResumeWord(StrEnum):
    """Words for --resume."""

    NEVER = "never"
    LATEST = "latest"
    AUTO = "auto"


def train(
    config: ConfigPath,
    run: Annotated[Path | None, typer.Option(help="Run folder; runs/EXPERIMENT if left out.")] = None,
    settings: Settings = None,
    site: SiteOption = None,
    resume: Annotated[
        ResumeWord,
        typer.Option(
            "--resume",
            help="auto: go on from the newest checkpoint that all ranks hold, or start where there is none; "
            "latest: there must be one.",
        ),
    ] = ResumeWord.NEVER,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run.")] = False,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key", help="A secret file of `cxr-hvd key new`; all ranks must prove that they hold it, too."
        ),
    ] = None,
    time_limit: TimeLimit = None,
    stall_limit: Annotated[
        float | None,
        typer.Option("--stall-limit", help="Seconds that a rank may hang before the run is ended.", min=1),
    ] = None,
    supervise: Annotated[
        int | None,
        typer.Option(
            "--supervise", help="Start the ranks itself, and start a failed run again, up to N times.", min=0
        ),
    ] = None,
    launcher: Annotated[
        str | None, typer.Option("--launcher", help="With --supervise: the words before cxr-hvd.")
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(
            "--stage",
            help="Copy each rank's study file to this folder of its node first, checked; may name $VARIABLES.",
        ),
    ] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Two batches of every phase, on random images; leaves nothing behind.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Record ten steps, and show where the time went.")
    ] = False,
) -> None:
    """Train one model over all sites of a config. On one machine it starts the ranks itself.

    Under horovodrun, mpirun or srun it is one of their ranks; with --site it trains one site alone.

    Stopped on request a checkpoint is written: run again with --resume auto to go on. SIGUSR1 or SIGTERM to any
    rank is such a request.
    """
    if stall_limit is not None and not math.isfinite(stall_limit):
        raise UsageError(f"--stall-limit {stall_limit}: expected a number of seconds, such as 600")
    if resume is not ResumeWord.NEVER and overwrite:
        raise UsageError("--resume goes on with a run and --overwrite replaces it: choose one")
    if launcher is not None and supervise is None:
        raise UsageError(
            "--launcher says how --supervise starts ranks: give both, or put the words before cxr-hvd"
        )
    deadline = read_deadline(time_limit)
    if supervise is not None:
        raise typer.Exit(supervised(config, run, settings or [], site, supervise, launcher, deadline))

    chosen, num_ranks = None, num_ranks_here(os.environ)
    if num_ranks is not None:  # all ranks read the same files: each knows the others' verdict
        with refused_alike(PROGRAM):
            chosen = choose_config(config, settings or [], site)
            is_launcher = starts_ranks(chosen)
            if not is_launcher:
                check_start(chosen, num_ranks)
            folder = run or Path("runs") / chosen.experiment
            if not smoke:
                check_run(chosen, folder, resume.value, overwrite)
        if is_launcher:
            raise typer.Exit(run_own_ranks(chosen, folder))

    from cxr_hvd.comm.communicator import together
    from cxr_hvd.comm.start import joined_job
    from cxr_hvd.secret import load_key
    from cxr_hvd.training import train as training

    with joined_job(PROGRAM, stall_limit, profile) as comm:
        with together(comm, "reading its config and key"):
            chosen = chosen or choose_config(config, settings or [], site)
            secret = load_key(key) if key else None
        job = training.LaunchOptions(resume.value, overwrite, secret, deadline, profile, stage_folder(stage))
        folder = run or Path("runs") / chosen.experiment
        if smoke:
            from cxr_hvd.experiment.smoke import smoke as try_out

            try_out(chosen, folder, comm, job)
        else:
            training.train(chosen, folder, comm, job)


def choose_config(path: Path, settings: list[str], site: str | None) -> "Config":
    """Read a config with its settings, for all sites or one alone."""
    from cxr_hvd.config.file import load_config

    chosen = load_config(path, settings)
    return chosen.alone(site) if site else chosen


def stage_folder(option: str | None) -> Path | None:
    """Return the folder for staged copies, with this node's variables filled in.

    Raises:
        UsageError: it names a variable that is not set here.
    """
    if option is None:
        return None
    filled = os.path.expandvars(option)
    if "$" in filled:
        raise UsageError(
            f"--stage {option}: names a variable that is not set on this node; set it, or give a folder"
        )
    return Path(filled)


def supervised(
    config: Path,
    run: Path | None,
    settings: list[str],
    site: str | None,
    num_restarts: int,
    launcher: str | None,
    deadline: float | None,
) -> int:
    """Start this command under a launcher, and again where it fails; return its last exit code."""
    from cxr_hvd.config.file import load_config
    from cxr_hvd.launch.launchers import split_launcher
    from cxr_hvd.launch.supervise import command_of_ranks, supervise

    chosen = load_config(config, settings)
    num_ranks = 1 if site else sum(section.ranks for section in chosen.sites.values())
    command = command_of_ranks(sys.argv)
    words = split_launcher(launcher) if launcher is not None else None
    folder = run or Path("runs") / chosen.experiment
    return supervise(command, folder, num_ranks, num_restarts, words, deadline=deadline)
