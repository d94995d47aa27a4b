"""Commands that look: at a run (`inspect-run`), at a batch (`show-batch`), at this machine (`doctor`)."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cxr_hvd.cli.options import ConfigPath, JsonOption, Overwrite, RunPath, Settings
from cxr_hvd.console import Console, open_console
from cxr_hvd.errors import UsageError
from cxr_hvd.files import check_output
from cxr_hvd.terminal import say

INSPECT_RUN_EXAMPLE = "Example: cxr-hvd inspect-run runs/D --out curves.png"
SHOW_BATCH_EXAMPLE = "Example: cxr-hvd show-batch jobs/configs/D.yaml --site mimic --out batch.png"
DOCTOR_EXAMPLE = "Examples: cxr-hvd doctor · cxr-hvd doctor --peer hospital-b --interface wg0"
DENSENET121_BYTES = 28_400_000


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


def doctor(
    peer: Annotated[
        str | None,
        typer.Option(
            "--peer",
            metavar="HOST",
            help="Measure the line to this host instead; ssh must reach it without a question.",
        ),
    ] = None,
    peer_python: Annotated[
        str | None, typer.Option("--peer-python", help="With --peer: Python there, if its path is another.")
    ] = None,
    interface: Annotated[
        str | None, typer.Option("--interface", help="With --peer: the line's network interface, such as wg0.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="With --peer: what will travel; DenseNet121, all of it, if left out."),
    ] = None,
    compute_s: Annotated[
        float | None, typer.Option("--compute-s", help="With --peer: seconds of a step without any exchange.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check that this machine can train: packages, MPI, GPU, disk, and a real sum over two ranks.

    With --peer HOST it checks the line to another host, and says which settings fit it. It starts this program
    there by ssh, tries ports both ways, measures delay and rate with at most 17 MB of random bytes each way, and
    starts a rank at each end.
    """
    from cxr_hvd.doctor import examine, has_failed, render, to_dicts

    if peer is None and (peer_python, interface, config, compute_s) != (None,) * 4:
        raise UsageError(
            "--peer-python, --interface, --config and --compute-s belong to --peer HOST: name the host"
        )
    if peer is None:
        findings = examine()
        values: Any = to_dicts(findings)
    else:
        from cxr_hvd.doctor.line.peer import examine_peer, read_peer
        from cxr_hvd.partial.cost import COMPUTE_S, check_compute_s

        host = read_peer(peer, peer_python, interface)
        seconds = check_compute_s(compute_s) if compute_s is not None else COMPUTE_S
        report = examine_peer(host, bytes_of_exchange(config), seconds)
        findings = report.findings
        values = {"findings": to_dicts(findings), **report.to_dict()}
    if as_json:
        print(json.dumps(values))
    else:
        Console().print(render(findings))
    if has_failed(findings):
        raise typer.Exit(1)


def bytes_of_exchange(path: Path | None) -> int:
    """Return what a rank hands over in one exchange of a config in float32; of all of DenseNet121 without one."""
    if path is None:
        return DENSENET121_BYTES
    from cxr_hvd.config.file import load_config
    from cxr_hvd.models.layout import tensor_specs
    from cxr_hvd.study.labels import LABELS
    from cxr_hvd.training.sharing import plan_sharing

    chosen = load_config(path, ["sharing.wire=float32"])
    return plan_sharing(chosen, tensor_specs(chosen.model, len(LABELS))).bytes_per_exchange()
