"""The command `cxr-hvd`: its verbs, their options, and how errors leave."""

import json
import math
import os
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cxr_hvd import __version__
from cxr_hvd.cli.jobs import jobs_app
from cxr_hvd.cli.joining import check_run, check_start, joined_job, refused_alike, run_own_ranks, starts_ranks
from cxr_hvd.cli.keys import key_app
from cxr_hvd.console import Console, open_console
from cxr_hvd.errors import UsageError, reported, say_exit_codes
from cxr_hvd.files import check_output, keep_private
from cxr_hvd.launch.early import num_ranks_here
from cxr_hvd.terminal import say

if TYPE_CHECKING:
    from cxr_hvd.config.schema import Config

PROGRAM = "cxr-hvd"
STARTED = time.monotonic()  # what a time limit counts from
MAX_SHOWN_FAULTS = 200
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
app.add_typer(jobs_app, name="jobs")
app.add_typer(key_app, name="key")


class ResumeWord(StrEnum):
    """Words for --resume."""

    NEVER = "never"
    LATEST = "latest"
    AUTO = "auto"


class CheckpointWord(StrEnum):
    """Words for --checkpoint."""

    LATEST = "latest"
    BEST = "best"


ConfigPath = Annotated[Path, typer.Argument(help="The YAML config, the same at all sites.", metavar="CONFIG")]
RunPath = Annotated[Path, typer.Argument(help="A run folder, as `train` makes.", metavar="RUN")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Lay a value over the config: section.key=value. May be repeated."),
]
SiteOption = Annotated[str | None, typer.Option("--site", help="One site of the config, alone on one rank.")]
TimeLimit = Annotated[
    str | None,
    typer.Option(
        "--time-limit", help="Stop with a checkpoint before so long is over: 3600, 90m, 12:00:00, 1-00:00:00."
    ),
]
Outside = Annotated[
    list[str] | None,
    typer.Option("--outside", help="NAME=FILE: studies of an institution that took no part. May be repeated."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print for machines.")]


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if show:
        print(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.command(epilog="Example: cxr-hvd train jobs/configs/D.yaml --run runs/D --resume auto")
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
        bool, typer.Option("--profile", help="Record ten steps, and say where the time went.")
    ] = False,
) -> None:
    """Train one model over all sites of a config. On one machine it starts the ranks itself.

    Under horovodrun, mpirun or srun it is one of their ranks; with --site it trains one site alone.

    Stopped on request a checkpoint is written: run again with --resume auto to go on. SIGUSR1 or SIGTERM to any
    rank is such a request.
    """
    from cxr_hvd.launch.launchers import parse_duration

    if stall_limit is not None and not math.isfinite(stall_limit):
        raise UsageError(f"--stall-limit {stall_limit}: expected a number of seconds, such as 600")
    if resume is not ResumeWord.NEVER and overwrite:
        raise UsageError("--resume goes on with a run and --overwrite replaces it: choose one")
    if launcher is not None and supervise is None:
        raise UsageError(
            "--launcher says how --supervise starts ranks: give both, or put the words before cxr-hvd"
        )
    deadline = STARTED + parse_duration(time_limit) if time_limit else None
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


def stage_folder(said: str | None) -> Path | None:
    """Return the folder for staged copies, with this node's variables filled in.

    Raises:
        UsageError: it names a variable that is not set here.
    """
    if said is None:
        return None
    filled = os.path.expandvars(said)
    if "$" in filled:
        raise UsageError(
            f"--stage {said}: names a variable that is not set on this node; set it, or give a folder"
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
    """Start this very command under a launcher, again and again where it fails; return its last exit code."""
    from cxr_hvd.config.file import load_config
    from cxr_hvd.launch.launchers import split_launcher
    from cxr_hvd.launch.supervise import command_of_ranks, supervise

    chosen = load_config(config, settings)
    num_ranks = 1 if site else sum(each.ranks for each in chosen.sites.values())
    command = command_of_ranks(sys.argv)
    words = split_launcher(launcher) if launcher is not None else None
    folder = run or Path("runs") / chosen.experiment
    return supervise(command, folder, num_ranks, num_restarts, words, deadline=deadline)


@app.command(
    epilog=r"Examples: cxr-hvd plan jobs/configs/D.yaml --set 'sharing.private=\[head, stem]' · "
    "cxr-hvd plan jobs/configs/D.yaml --scale 8x4 --link-ms 20 --link-mbit 100"
)
def plan(
    config: ConfigPath,
    settings: Settings = None,
    scale: Annotated[
        str | None,
        typer.Option("--scale", metavar="SITESxRANKS", help="Estimate how long a step takes at this size, too."),
    ] = None,
    link_ms: Annotated[
        float, typer.Option("--link-ms", help="With --scale: delay between sites, one way.")
    ] = 20.0,
    link_mbit: Annotated[float, typer.Option("--link-mbit", help="With --scale: rate of a site's link.")] = 100.0,
    compute_s: Annotated[
        float | None, typer.Option("--compute-s", help="With --scale: seconds of a step without exchange.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show before any launch what will leave a site: block by block, bytes a step and a run, and all else."""
    from cxr_hvd.config.file import load_config
    from cxr_hvd.models.layout import tensor_specs
    from cxr_hvd.study.labels import LABELS
    from cxr_hvd.training.budget import num_steps_before_launch
    from cxr_hvd.training.display import complete_plan, console_for, plan_table, reach_of, traffic_table
    from cxr_hvd.training.sharing import plan_sharing

    chosen = load_config(config, settings or [])
    sharing_plan = plan_sharing(chosen, tensor_specs(chosen.model.name, len(LABELS)))
    num_steps = num_steps_before_launch(chosen)
    reach, rows = reach_of(chosen), list[dict[str, Any]]()
    if scale:
        from cxr_hvd.partial import cost

        layouts = list(dict.fromkeys([*cost.USUAL_LAYOUTS, cost.read_layout(scale)]))
        link = cost.read_link(link_ms, link_mbit)
        seconds = cost.COMPUTE_S if compute_s is None else cost.check_compute_s(compute_s)
        rows = cost.scale_rows(sharing_plan, layouts, link, seconds)
    if as_json:
        print(
            json.dumps(
                complete_plan(sharing_plan, num_steps, reach_of(chosen)) | ({"scale": rows} if scale else {})
            )
        )
        return
    console = console_for(1)
    if scale:
        console.print(cost.scale_table(sharing_plan, layouts, link, seconds))
        return
    console.print(plan_table(sharing_plan, num_steps, reach))
    if reach != "nobody":
        console.print(traffic_table())
    if num_steps is None and reach != "nobody":
        said = "Bytes of a whole run: set training.max_steps, or have the study files here that the config names."
        console.print(said, highlight=False)


@app.command(
    epilog="Example: cxr-hvd evaluate runs/D, or on several machines mpirun -np 2 cxr-hvd evaluate runs/D"
)
def evaluate(
    run: RunPath,
    split: Annotated[str, typer.Option(help="test, validate or train.")] = "test",
    checkpoint: Annotated[
        CheckpointWord, typer.Option("--checkpoint", help="best is by the agreed AUROC on VALIDATE studies.")
    ] = CheckpointWord.LATEST,
    settings: Settings = None,
    site: SiteOption = None,
    across_sites: Annotated[
        bool,
        typer.Option(
            "--across-sites",
            help="Every network on every site's studies, where all can be read; writes RUN/scores.safetensors.",
        ),
    ] = False,
    outside: Outside = None,
    as_json: JsonOption = False,
) -> None:
    """Judge each site's network on its own studies: AUROC and accuracy, label by label."""
    from cxr_hvd.experiment.evaluate import evaluate as evaluate_run
    from cxr_hvd.experiment.results_table import print_results
    from cxr_hvd.study.layout import Split
    from cxr_hvd.training.display import console_for

    if split.upper() not in Split.__members__:
        raise UsageError(f"--split {split}: expected test, validate or train")
    if outside and not across_sites:
        raise UsageError("--outside adds to what is judged by --across-sites: give both")
    if across_sites:
        from cxr_hvd.experiment.scoring import score_across_sites

        with joined_job(PROGRAM, EVALUATION_LIMIT_S) as comm:
            path = score_across_sites(run, comm, settings or [], checkpoint.value, named_files(outside or []))
            if comm.rank == 0:
                say(f"{path}: compare with cxr-hvd report {run}")
        return
    with joined_job(PROGRAM, EVALUATION_LIMIT_S) as comm:
        results = evaluate_run(run, comm, Split[split.upper()], settings or [], site, checkpoint)
        if comm.rank == 0 and as_json:
            print(json.dumps([result.model_dump(mode="json") for result in results]))
        elif comm.rank == 0:
            print_results(results, console_for(comm.num_ranks))


@app.command(
    epilog="Example: cxr-hvd experiment A B C D --seeds 5 --config jobs/configs/real.yaml --out runs/real"
)
def experiment(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME...", help="A, B, C, D, or variants of them; all if left out."),
    ] = None,
    config: Annotated[Path, typer.Option("--config", help="The YAML config that all have in common.")] = Path(
        "jobs/configs/D.yaml"
    ),
    seeds: Annotated[int, typer.Option(help="Runs of each, with seeds from the config's on.", min=1)] = 5,
    variants: Annotated[
        Path | None, typer.Option("--variants", help="YAML: more set-ups, as settings over the config.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The folder of results.")] = Path("runs/experiment"),
    outside: Outside = None,
    settings: Settings = None,
    launcher: Annotated[str | None, typer.Option("--launcher", help="The words before cxr-hvd.")] = None,
    restarts: Annotated[int, typer.Option(help="How often a run that fails is started again.", min=0)] = 1,
    time_limit: TimeLimit = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> None:
    """Train the study's set-ups with several seeds, score each on every site, and compare them.

    A: each site alone. B: all sites' studies merged and divided evenly. C: each site its own, all shared.
    D: as C, with blocks that stay private. All train equally long. Started again, it goes on where it stopped.
    """
    from cxr_hvd.experiment.plan import plan_experiment
    from cxr_hvd.experiment.run import print_plan, run_experiment
    from cxr_hvd.experiment.variants import choose_variants
    from cxr_hvd.launch.launchers import parse_duration, split_launcher
    from cxr_hvd.training.display import console_for

    console = console_for(1)
    words = split_launcher(launcher) if launcher is not None else None
    deadline = STARTED + parse_duration(time_limit) if time_limit else None
    chosen = choose_variants(names or [], variants)
    planned = plan_experiment(config, settings or [], chosen, seeds, out, named_files(outside or []))
    print_plan(planned, console)
    if not dry_run:
        run_experiment(planned, console, words, restarts, deadline)
        console.print(f"compare: cxr-hvd report {out}", highlight=False)


@app.command(epilog="Example: cxr-hvd report runs/real, or cxr-hvd report runs/C runs/D --out runs/report")
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of experiments, or runs scored across sites.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Where report.html goes; the first RUN if left out.")
    ] = None,
    resamples: Annotated[int, typer.Option(help="Of the bootstrap.", min=100)] = 2000,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files there that no report made; an earlier one goes.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare runs: a page of tables and figures with intervals and paired differences; comparison.json beside it.

    Works on what is there: also before an experiment is over.
    """
    from cxr_hvd.experiment.compare import compare
    from cxr_hvd.files import write_text
    from cxr_hvd.report.page import COMPARISON, check_folder, write_report
    from cxr_hvd.report.text_tables import console_table
    from cxr_hvd.training.run_folder import disk_errors

    folder = out or runs[0]
    if not as_json:
        check_folder(folder, overwrite)
    comparison = compare(runs, resamples)
    if as_json:
        print(comparison.as_json())
        return
    page = write_report(comparison, folder)
    with disk_errors(folder):
        write_text(folder / COMPARISON, comparison.as_json() + "\n")
    console = open_console()
    console.print(console_table(comparison))
    console.print(f"{page}", highlight=False)


def named_files(said: list[str]) -> dict[str, Path]:
    """Read NAME=FILE options."""
    for each in said:
        if not all(each.partition("=")):
            raise UsageError(f"--outside {each}: expected NAME=FILE")
    return {name: Path(path) for name, _, path in (each.partition("=") for each in said)}


@app.command("inspect-run", epilog="Example: cxr-hvd inspect-run runs/D --out curves.png")
def inspect_run(
    run: RunPath,
    out: Annotated[Path | None, typer.Option("--out", help="Draw the curves, too: a PNG.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier PNG.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Look at a run that is going on, over or failed: who lives, how far and how fast, where --resume goes on.

    Only reads. RUN may be one site's folder, such as runs/D/mimic.
    """
    from cxr_hvd.monitor.snapshot import load_run
    from cxr_hvd.monitor.table import render, to_json

    view = load_run(run)
    if out:
        check_output(out, overwrite)
        from cxr_hvd.monitor.curves import write_curves  # matplotlib takes a second: only where asked for

        write_curves(view, out)
    if as_json:
        print(json.dumps(to_json(view), allow_nan=False))
    else:
        open_console().print(render(view), highlight=False)


@app.command("show-batch", epilog="Example: cxr-hvd show-batch jobs/configs/D.yaml --site mimic --out batch.png")
def show_batch(
    config: ConfigPath,
    site: Annotated[str, typer.Option("--site", help="Whose studies.")],
    out: Annotated[Path, typer.Option("--out", help="The PNG to write.")] = Path("batch.png"),
    step: Annotated[int, typer.Option("--step", help="Which step's batch, from 0.", min=0)] = 0,
    settings: Settings = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier PNG.")] = False,
) -> None:
    """Draw what the network sees: a batch of a site's studies, augmented, one row a study, with its labels."""
    from cxr_hvd.config.file import load_config
    from cxr_hvd.data import batch_sheet

    batch_sheet.show_batch(load_config(config, settings or []), site, out, step, overwrite)
    say(f"{out}: step {step} of {site}")


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
    from cxr_hvd.ledger import summary as account
    from cxr_hvd.ledger.audit import audit
    from cxr_hvd.ledger.reader import load_folders

    judged = audit(load_folders(run))
    accounts = account.accounts_of(judged)
    if as_json:
        print(json.dumps(account.to_json(judged, accounts)))
    else:
        console = open_console()
        for each in accounts:
            console.print(account.render(each), highlight=False)
        for fault in judged.faults[:MAX_SHOWN_FAULTS]:
            console.print(f"FAULT {fault}", style="red", highlight=False, soft_wrap=True)
        if len(judged.faults) > MAX_SHOWN_FAULTS:
            console.print(
                f"and {len(judged.faults) - MAX_SHOWN_FAULTS:,} more faults: --json names all", style="red"
            )
        if not judged.faults:
            console.print("All holds: chains, plan, amounts.", style="green")
    if judged.faults:
        raise typer.Exit(1)


for each in (app, ledger_app, jobs_app):
    say_exit_codes(each.registered_commands)


def main() -> None:
    """Run the command; end with its exit code and, on an error, one line."""
    keep_private()
    with reported(PROGRAM):
        app(prog_name=PROGRAM)
