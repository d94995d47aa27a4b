"""Commands that judge networks: `evaluate` a run, run a whole `experiment`, and `report` what came out."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cxr_hvd.cli.options import (
    PROGRAM,
    JsonOption,
    Outside,
    RunPaths,
    Settings,
    SiteOption,
    TimeLimit,
    read_deadline,
    read_named_files,
)
from cxr_hvd.errors import UsageError
from cxr_hvd.terminal import say

if TYPE_CHECKING:
    from cxr_hvd.comm.communicator import Communicator
    from cxr_hvd.study.layout import Split

EVALUATE_EXAMPLE = (
    "Example: cxr-hvd evaluate runs/D, or with all sites "
    "mpirun -np 2 cxr-hvd evaluate runs/C runs/D --across-sites"
)
EXPERIMENT_EXAMPLE = (
    "Example: cxr-hvd experiment A B C D --seeds 5 --config jobs/configs/real.yaml --out runs/real"
)
REPORT_EXAMPLE = "Example: cxr-hvd report runs/real, or cxr-hvd report runs/C runs/D --out runs/report"
EVALUATION_LIMIT_S = 86_400.0  # ranks meet only at the end, and sites differ in size


class CheckpointWord(StrEnum):
    """Words for --checkpoint."""

    LATEST = "latest"
    BEST = "best"


def evaluate(
    runs: RunPaths,
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
            help="All runs on the TEST studies of all sites, which send sums over their patients and no score; "
            "writes RUN/SITE/across.json at each.",
        ),
    ] = False,
    pooled: Annotated[
        bool,
        typer.Option(
            "--pooled",
            help="Every network on every site's studies, where all can be read; writes RUN/scores.safetensors.",
        ),
    ] = False,
    outside: Outside = None,
    as_json: JsonOption = False,
) -> None:
    """Judge each site's network on its own studies: AUROC and accuracy, label by label."""
    from cxr_hvd.comm.start import joined_job
    from cxr_hvd.study.layout import Split

    if split.upper() not in Split.__members__:
        raise UsageError(f"--split {split}: expected test, validate or train")
    if outside and not pooled:
        raise UsageError("--outside adds to what is judged by --pooled: give both")
    if across_sites and (pooled or site or split != "test"):
        raise UsageError(
            "--across-sites judges the TEST studies of all sites, each at home: leave out --pooled, --site and "
            "--split"
        )
    if len(runs) > 1 and not across_sites:
        raise UsageError(f"expected one RUN, found {len(runs)}; --across-sites judges several together")
    with joined_job(PROGRAM, EVALUATION_LIMIT_S) as comm:
        if across_sites:
            _evaluate_across_sites(runs, comm, settings or [], checkpoint, as_json)
        elif pooled:
            from cxr_hvd.experiment.scoring import score_pooled

            path = score_pooled(runs[0], comm, settings or [], checkpoint.value, read_named_files(outside))
            if comm.rank == 0:
                say(f"{path}: compare with cxr-hvd report {runs[0]}")
        else:
            _evaluate_at_home(runs[0], comm, Split[split.upper()], settings or [], site, checkpoint, as_json)


def _evaluate_at_home(
    run: Path,
    comm: "Communicator",
    split: "Split",
    settings: list[str],
    site: str | None,
    checkpoint: CheckpointWord,
    as_json: bool,
) -> None:
    from cxr_hvd.experiment.evaluate import evaluate as evaluate_run
    from cxr_hvd.experiment.results_table import print_results
    from cxr_hvd.launch.job_console import console_for

    results = evaluate_run(run, comm, split, settings, site, checkpoint)
    if comm.rank == 0 and as_json:
        print(json.dumps([result.model_dump(mode="json") for result in results]))
    elif comm.rank == 0:
        print_results(results, console_for(comm.num_ranks))


def _evaluate_across_sites(
    runs: list[Path], comm: "Communicator", settings: list[str], checkpoint: CheckpointWord, as_json: bool
) -> None:
    from cxr_hvd.experiment.across.evaluate import evaluate_across_sites

    across = evaluate_across_sites(runs, comm, settings, checkpoint.value)
    if comm.rank == 0 and as_json:
        print(across.model_dump_json())
    elif comm.rank == 0:
        num_patients = sum(site.num_patients for site in across.sites)
        say(
            f"{len(across.networks)} networks judged on {num_patients} patients of {len(across.sites)} sites; at "
            f"each site across.json in its folder of each run: cxr-hvd report {' '.join(map(str, runs))}"
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
        Path | None, typer.Option("--variants", help="YAML: more set-ups, as changes of the config.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The folder of results.")] = Path("runs/experiment"),
    outside: Outside = None,
    settings: Settings = None,
    launcher: Annotated[str | None, typer.Option("--launcher", help="The words before cxr-hvd.")] = None,
    restarts: Annotated[int, typer.Option(help="How often a run that fails is started again.", min=0)] = 1,
    time_limit: TimeLimit = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")] = False,
) -> None:
    """Train the study's set-ups with several seeds, score each on every site, and compare them.

    A: each site alone. B: all sites' studies merged and divided evenly. C: each site its own, all shared.
    D: as C, with blocks that stay private. All train equally long. Started again, it goes on where it stopped.
    """
    from cxr_hvd.experiment.plan import plan_experiment
    from cxr_hvd.experiment.run import print_plan, run_experiment
    from cxr_hvd.experiment.variants import choose_variants
    from cxr_hvd.launch.job_console import console_for
    from cxr_hvd.launch.launchers import split_launcher

    console = console_for(1)
    words = split_launcher(launcher) if launcher is not None else None
    deadline = read_deadline(time_limit)
    chosen = choose_variants(names or [], variants)
    planned = plan_experiment(config, settings or [], chosen, seeds, out, read_named_files(outside))
    print_plan(planned, console)
    if not dry_run:
        run_experiment(planned, console, words, restarts, deadline)
        console.print(f"compare: cxr-hvd report {out}", highlight=False)


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of experiments, or runs that were scored.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Where report.html goes; the first RUN if left out.")
    ] = None,
    resamples: Annotated[int, typer.Option(help="How many resamples the bootstrap draws.", min=100)] = 2000,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace other files there, too; an earlier report always goes."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare runs: a page of tables and figures with intervals and paired differences; comparison.json beside it.

    Works on what is there: also before an experiment is over. Of runs that were judged across sites it shows
    tables of what the sites sent.
    """
    from cxr_hvd.experiment.across.compare import find_across
    from cxr_hvd.experiment.compare import compare
    from cxr_hvd.experiment.scored_runs import find_folders
    from cxr_hvd.files import write_text
    from cxr_hvd.launch.job_console import console_for
    from cxr_hvd.report.page import COMPARISON, check_folder, write_report
    from cxr_hvd.report.text_tables import console_table
    from cxr_hvd.training.run_folder import disk_errors

    folder = out or runs[0]
    if not as_json:
        check_folder(folder, overwrite)
    across = find_across(runs) if not any(map(find_folders, runs)) else None
    if across is not None:
        _report_across(across, folder, as_json)
        return
    comparison = compare(runs, resamples)
    if as_json:
        print(comparison.as_json())
        return
    page = write_report(comparison, folder)
    with disk_errors(folder):
        write_text(folder / COMPARISON, comparison.as_json() + "\n")
    console = console_for(1)
    console.print(console_table(comparison))
    console.print(f"{page}", highlight=False)


def _report_across(path: Path, folder: Path, as_json: bool) -> None:
    """Show what results across sites say, where no run has scores."""
    from cxr_hvd.experiment.across.compare import compare_across
    from cxr_hvd.launch.job_console import console_for
    from cxr_hvd.report.across.page import across_console_tables, write_across_page

    comparison = compare_across(path)
    if as_json:
        print(comparison.model_dump_json())
        return
    page, console = write_across_page(comparison, folder), console_for(1)
    for table in across_console_tables(comparison):
        console.print(table)
    console.print(f"{page}", highlight=False)
