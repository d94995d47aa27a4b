"""The command `cxr-hvd`: its commands in the order of its help, and how it ends.

Torch takes seconds to import. Each command imports what it needs when it runs, so that `--help` comes at once.
"""

from typing import Annotated

import typer

from cxr_hvd import __version__
from cxr_hvd.cli import deploy, evaluate, explain, export, ledger, monitor, onboard, plan, train
from cxr_hvd.cli.jobs import jobs_app
from cxr_hvd.cli.keys import key_app
from cxr_hvd.cli.options import PROGRAM
from cxr_hvd.errors import reported, say_exit_codes
from cxr_hvd.files import keep_private

app = typer.Typer(
    help="Train one chest X-ray model at several institutions without moving an image.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if show:
        print(f"{PROGRAM} {__version__}")
        raise typer.Exit


app.command(epilog=train.EXAMPLE)(train.train)
app.command(epilog=plan.EXAMPLE)(plan.plan)
app.command(epilog=evaluate.EVALUATE_EXAMPLE)(evaluate.evaluate)
app.command(epilog=deploy.PREDICT_EXAMPLE)(deploy.predict)
app.command(epilog=explain.EXAMPLE)(explain.explain)
app.command(epilog=export.EXAMPLE)(export.export)
app.command(epilog=onboard.ONBOARD_EXAMPLE)(onboard.onboard)
app.command(epilog=evaluate.EXPERIMENT_EXAMPLE)(evaluate.experiment)
app.command(epilog=evaluate.REPORT_EXAMPLE)(evaluate.report)
app.command("inspect-run", epilog=monitor.INSPECT_RUN_EXAMPLE)(monitor.inspect_run)
app.command("show-batch", epilog=monitor.SHOW_BATCH_EXAMPLE)(monitor.show_batch)
app.command(epilog=monitor.DOCTOR_EXAMPLE)(monitor.doctor)
app.add_typer(ledger.ledger_app, name="ledger")
app.add_typer(jobs_app, name="jobs")
app.add_typer(key_app, name="key")

for group in (app, ledger.ledger_app, jobs_app):
    say_exit_codes(group.registered_commands)


def main() -> None:
    """Run the command; end with its exit code and, on an error, one line."""
    keep_private()
    with reported(PROGRAM):
        app(prog_name=PROGRAM)
