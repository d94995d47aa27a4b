"""Commands that look: at a run (`inspect-run`), at a batch (`show-batch`), at this machine (`doctor`)."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cxr_hvd.cli.options import ConfigPath, JsonOption, Overwrite, RunPath, Settings
from cxr_hvd.console import Console, open_console
from cxr_hvd.files import check_output
from cxr_hvd.terminal import say

INSPECT_RUN_EXAMPLE = "Example: cxr-hvd inspect-run runs/D --out curves.png"
SHOW_BATCH_EXAMPLE = "Example: cxr-hvd show-batch jobs/configs/D.yaml --site mimic --out batch.png"
DOCTOR_EXAMPLE = "Example: cxr-hvd doctor"


def inspect_run(
    run: RunPath,
    out: Annotated[Path | None, typer.Option("--out", help="Draw the curves, too: a PNG.")] = None,
    overwrite: Overwrite = False,
    as_json: JsonOption = False,
) -> None:
    """Show a run that goes on, is over or failed: which ranks live, how far it is, where --resume goes on.

    It only reads. RUN may be one site's folder, such as runs/D/mimic.
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


def show_batch(
    config: ConfigPath,
    site: Annotated[str, typer.Option("--site", help="Whose studies.")],
    out: Annotated[Path, typer.Option("--out", help="The PNG to write.")] = Path("batch.png"),
    step: Annotated[int, typer.Option("--step", help="Which step's batch, from 0.", min=0)] = 0,
    settings: Settings = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw what the network sees: a batch of a site's studies, augmented, one row a study, with its labels."""
    from cxr_hvd.config.file import load_config
    from cxr_hvd.data import batch_sheet

    batch_sheet.show_batch(load_config(config, settings or []), site, out, step, overwrite)
    say(f"{out}: step {step} of {site}")


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
