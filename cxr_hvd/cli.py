"""The command `cxr-hvd`: its verbs, their options, and how errors leave."""

import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cxr_hvd import __version__
from cxr_hvd.errors import CxrHvdError, UsageError, leave, print_error, reported

if TYPE_CHECKING:
    from cxr_hvd.collective.comm import Communicator

PROGRAM = "cxr-hvd"
EVALUATION_LIMIT_S = 86_400.0  # ranks meet only at the end, and sites differ in size

# Torch takes seconds to import: each verb imports what it needs, so that --help comes at once.

app = typer.Typer(
    help="Train one chest X-ray model at several institutions without moving an image.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

ledger_app = typer.Typer(help="What a site handed to others, and whether it was as planned.", no_args_is_help=True)
app.add_typer(ledger_app, name="ledger")

ConfigPath = Annotated[Path, typer.Argument(help="The YAML config, the same at all sites.", metavar="CONFIG")]
RunPath = Annotated[Path, typer.Argument(help="A run folder, as `train` makes.", metavar="RUN")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Lay a value over the config: section.key=value. May be repeated."),
]
SiteOption = Annotated[str | None, typer.Option("--site", help="One site of the config, alone on one rank.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print for machines.")]


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if show:
        print(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.command(epilog="Example: horovodrun -np 2 cxr-hvd train jobs/configs/D.yaml --run runs/D")
def train(
    config: ConfigPath,
    run: Annotated[Path | None, typer.Option(help="Run folder; runs/EXPERIMENT if left out.")] = None,
    settings: Settings = None,
    site: SiteOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the latest checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run.")] = False,
    key: Annotated[
        Path | None, typer.Option("--key", help="A secret file; all ranks must prove that they hold it, too.")
    ] = None,
) -> None:
    """Train one model over all sites of a config. Started by horovodrun, mpirun or srun, or alone for one site."""
    from cxr_hvd.collective.comm import together
    from cxr_hvd.collective.key import load_key
    from cxr_hvd.config import load_config
    from cxr_hvd.training import train as training

    if resume and overwrite:
        raise UsageError("--resume goes on with a run and --overwrite replaces it: choose one")
    with joined_job() as comm:
        with together(comm, "reading its config and key"):
            chosen = load_config(config, settings or [])
            chosen = chosen.alone(site) if site else chosen
            secret = load_key(key) if key else None
        training.train(chosen, run or Path("runs") / chosen.experiment, comm, resume, overwrite, secret)


@app.command(epilog=r"Example: cxr-hvd plan jobs/configs/D.yaml --set 'sharing.private=\[head, stem]'")
def plan(config: ConfigPath, settings: Settings = None, as_json: JsonOption = False) -> None:
    """Show before any launch what will leave a site: block by block, bytes a step and a run, and all else."""
    from cxr_hvd.config import load_config
    from cxr_hvd.study.labels import LABELS
    from cxr_hvd.training.agreement import plan_of
    from cxr_hvd.training.budget import num_steps_before_launch
    from cxr_hvd.training.display import complete_plan, console_for, plan_table, traffic_table
    from cxr_hvd.training.model import build_model

    chosen = load_config(config, settings or [])
    sharing_plan = plan_of(chosen, build_model(chosen.model.name, len(LABELS), chosen.seed))
    num_steps = num_steps_before_launch(chosen)
    if as_json:
        print(json.dumps(complete_plan(sharing_plan, num_steps)))
        return
    console = console_for(1)
    console.print(plan_table(sharing_plan, num_steps))
    console.print(traffic_table())
    if num_steps is None:
        said = "Bytes of a whole run: set training.max_steps, or have the study files here that the config names."
        console.print(said, highlight=False)


@app.command(epilog="Example: horovodrun -np 2 cxr-hvd evaluate runs/D")
def evaluate(
    run: RunPath,
    split: Annotated[str, typer.Option(help="test, validate or train.")] = "test",
    settings: Settings = None,
    site: SiteOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge each site's network on its own studies: AUROC and accuracy, label by label."""
    from cxr_hvd.evaluation import evaluate as evaluation
    from cxr_hvd.study.study_file import Split
    from cxr_hvd.training.display import console_for

    if split.upper() not in Split.__members__:
        raise UsageError(f"--split {split}: expected test, validate or train")
    with joined_job(EVALUATION_LIMIT_S) as comm:
        results = evaluation.evaluate(run, comm, Split[split.upper()], settings or [], site)
        if comm.rank == 0 and as_json:
            print(json.dumps(results))
        elif comm.rank == 0:
            evaluation.print_results(results, console_for(comm.num_ranks))


@app.command(epilog="Example: cxr-hvd doctor")
def doctor(as_json: JsonOption = False) -> None:
    """Check that this machine can train: packages, MPI, GPU, disk, and a real sum over two ranks."""
    from cxr_hvd.doctor import examine, has_failed, render, to_dicts

    findings = examine()
    if as_json:
        print(json.dumps(to_dicts(findings)))
    else:
        Console().print(render(findings))
    if has_failed(findings):
        raise typer.Exit(1)


@ledger_app.command("verify", epilog="Example: cxr-hvd ledger verify runs/D, or one site's folder, runs/D/north")
def verify_ledger(run: RunPath, as_json: JsonOption = False) -> None:
    """Hold what left each site against its sharing plan; sum it up. Exit code 1 where anything does not hold."""
    from cxr_hvd.collective import account
    from cxr_hvd.collective.audit import audit
    from cxr_hvd.collective.records import load_folders

    judged = audit(load_folders(run))
    accounts = account.accounts_of(judged)
    if as_json:
        print(json.dumps(account.to_json(judged, accounts)))
    else:
        console = Console() if Console().is_terminal else Console(width=100)
        for each in accounts:
            console.print(account.render(each), highlight=False)
        for fault in judged.faults:
            console.print(f"FAULT {fault}", style="red", highlight=False, soft_wrap=True, markup=False)
        if not judged.faults:
            console.print("All holds: chains, plan, amounts.", style="green")
    if judged.faults:
        raise typer.Exit(1)


@contextmanager
def joined_job(stall_limit_s: float | None = None) -> Iterator["Communicator"]:
    """Join the job that a launcher started, and leave it in order or, on an error, at once and for good.

    Collective: every rank. An error that all ranks know of is printed by all before the first one leaves, since
    a launcher ends the others as soon as one is gone.
    """
    import torch

    from cxr_hvd.collective.comm import STALL_LIMIT_S, start_comm

    comm = start_comm(stall_limit_s or STALL_LIMIT_S)
    try:
        yield comm
        comm.close()
    except CxrHvdError as error:
        print_error(PROGRAM, error)
        if error.is_agreed:
            comm.begin_gather(torch.zeros(1), "leaving")()
        leave(error.exit_code)
    except OSError as error:
        print_error(
            PROGRAM, CxrHvdError(f"{error.filename or 'a file'}: {error.strerror}; mend it, then use --resume")
        )
        leave(1)
    except Exception:
        traceback.print_exc()
        leave(1)


def main() -> None:
    """Run the command; end with its exit code and, on an error, one line."""
    with reported(PROGRAM):
        app(prog_name=PROGRAM)
