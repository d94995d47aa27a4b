"""The command `cxr-hvd ledger verify`: check what left each site."""

import json

import typer

from cxr_hvd.cli.options import JsonOption, RunPath
from cxr_hvd.console import open_console

MAX_SHOWN_FAULTS = 200

ledger_app = typer.Typer(help="What a site handed to others, and whether it was as planned.", no_args_is_help=True)


@ledger_app.command("verify", epilog="Example: cxr-hvd ledger verify runs/D, or one site's folder, runs/D/north")
def verify(run: RunPath, as_json: JsonOption = False) -> None:
    """Check what left each site against its sharing plan, and sum it up. Exit code 1 where it does not match."""
    from cxr_hvd.ledger import summary
    from cxr_hvd.ledger.audit import audit
    from cxr_hvd.ledger.reader import load_folders

    judged = audit(load_folders(run))
    accounts = summary.accounts_of(judged)
    if as_json:
        print(json.dumps(summary.to_json(judged, accounts)))
    else:
        console = open_console()
        for account in accounts:
            console.print(summary.render(account), highlight=False)
        for fault in judged.faults[:MAX_SHOWN_FAULTS]:
            console.print(f"FAULT {fault}", style="red", highlight=False, soft_wrap=True)
        if len(judged.faults) > MAX_SHOWN_FAULTS:
            num_more = len(judged.faults) - MAX_SHOWN_FAULTS
            console.print(f"and {num_more:,} more faults: --json names all", style="red")
        if not judged.faults:
            console.print("All holds: chains, plan, amounts.", style="green")
    if judged.faults:
        raise typer.Exit(1)
