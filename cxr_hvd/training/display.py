"""What a person sees while training runs: the plan, a bar or plain lines, the end. The leader shows it."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Literal

from rich.console import Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from cxr_hvd.comm.sites import Topology
from cxr_hvd.config.schema import Config
from cxr_hvd.console import WIDTH, Console, open_console
from cxr_hvd.launch.orphan import terminal_of_launcher
from cxr_hvd.ledger.allowed import TRAFFIC
from cxr_hvd.partial.plan import Scope, SharingPlan
from cxr_hvd.partial.record import plan_record
from cxr_hvd.training.engine import StepReport
from cxr_hvd.training.log import loss_of_site
from cxr_hvd.training.records import Budget, Verdict

LINE_EVERY_S = 5.0
MEMORY = 0.9


def console_for(num_ranks: int) -> Console:
    """Return the console of a job: colours and bars on a terminal, plain lines elsewhere.

    Under a launcher the rank writes to the launcher's terminal itself: launchers part and mark lines, which no bar
    survives.
    """
    if num_ranks > 1:
        if terminal := terminal_of_launcher():
            with suppress(OSError):
                file = os.fdopen(os.open(terminal, os.O_WRONLY | os.O_NOCTTY), "w", encoding="utf-8")
                width = os.get_terminal_size(file.fileno()).columns or WIDTH
                return Console(file=file, force_terminal=True, width=width)
        return Console(force_terminal=False, no_color=True, width=WIDTH)
    return open_console()


Reach = Literal["nobody", "site", "all"]
"""To whom what a rank shares goes: to nobody where it is alone, to its own site's ranks, or to all sites."""


def reach_of(config: Config) -> Reach:
    """Return to whom the ranks of a config hand anything."""
    if sum(site.ranks for site in config.sites.values()) == 1:
        return "nobody"
    return "all" if len(config.sites) > 1 else "site"


def plan_table(plan: SharingPlan, num_steps: int | None = None, reach: Reach = "all") -> Group:
    """Build the table of what leaves a rank: block, tensors, parameters, bytes a step, shared or private.

    Args:
        num_steps: steps of the run, for its total; None where they are not known.
        reach: to whom it goes.
    """
    rows = plan.summary()
    pace = "every step" if plan.every == 1 else f"every {plan.every} steps"
    megabytes = plan.bytes_per_exchange() / 1e6
    title = f"Sharing plan: each rank hands over {megabytes:,.1f} MB of {plan.exchange} {pace}"
    if num_steps is not None:
        run_bytes = plan.bytes_per_exchange() * plan.num_exchanges(num_steps)
        title += f", {run_bytes / 1e9:,.2f} GB in a run of {num_steps:,} steps"
    if reach == "site":
        title += "; to ranks of its own site, the only one: nothing leaves it"
    if reach == "nobody":
        title = "Sharing plan: one rank alone; nothing travels, whatever is shared or private below"
    table = Table()
    for heading in ("block", "scope"):
        table.add_column(heading)
    for heading in ("tensors", "parameters", "bytes a step"):
        table.add_column(heading, justify="right")
    for row in rows:
        style = "green" if row.scope is Scope.PRIVATE else ""
        table.add_row(
            row.block,
            str(row.scope),
            f"{row.num_tensors}",
            f"{row.num_parameters:,}",
            "0" if reach == "nobody" else f"{row.bytes_per_step:,.0f}",
            style=style,
        )
    return Group(Text(title), table)


def traffic_table() -> Table:
    """Build the table of all else that may leave a rank."""
    table = Table(title="What else may leave a rank, all of it", title_justify="left")
    for heading in ("name", "what", "when"):
        table.add_column(heading)
    table.add_column("bytes at most", justify="right")
    for name, traffic in TRAFFIC.items():
        if traffic.max_bytes is not None:
            where = "; stays at its site" if traffic.is_site_only else ""
            table.add_row(name, traffic.what + where, traffic.when, f"{traffic.max_bytes:,}")
    return table


def complete_plan(plan: SharingPlan, num_steps: int | None, reach: Reach = "all") -> dict[str, Any]:
    """Return the plan, its bytes and all other traffic as plain values, for `cxr-hvd plan --json`.

    `reach` says to whom anything goes; of a rank alone all bytes are 0.
    """
    exchanges = None if num_steps is None else plan.num_exchanges(num_steps)
    is_alone = reach == "nobody"
    num_bytes = 0 if is_alone else plan.bytes_per_exchange()
    other = {name: asdict(traffic) for name, traffic in TRAFFIC.items() if traffic.max_bytes is not None}
    return {
        **plan_record(plan).model_dump(),
        "reach": reach,
        "blocks": [asdict(row) | ({"bytes_per_step": 0.0} if is_alone else {}) for row in plan.summary()],
        "bytes_per_exchange": num_bytes,
        "bytes_per_step": num_bytes / plan.every,
        "num_steps": num_steps,
        "bytes_per_run": None if exchanges is None else num_bytes * exchanges,
        "other": {} if is_alone else other,
    }


def print_agreed(console: Console, config: Config, plan: SharingPlan, budget: Budget, has_key: bool) -> None:
    """Say what will leave each site, how much of each site's data an epoch covers, and whom the ranks trust."""
    reach = reach_of(config)
    console.print(plan_table(plan, budget.num_steps, reach))
    covered = ", ".join(
        f"{name} {passes:.2f} passes over {studies} studies"
        for name, passes, studies in zip(
            config.sites, budget.passes_per_epoch, budget.studies_per_site, strict=True
        )
    )
    console.print(f"an epoch: {budget.steps_per_epoch} steps: {covered}", highlight=False, soft_wrap=True)
    if config.validation.every_epochs and not any(budget.validation_studies_per_site):
        console.print(
            "no site has VALIDATE studies: nothing is validated, no checkpoint is the best", highlight=False
        )
    if reach == "nobody":
        console.print("one rank alone: nothing leaves it, and it trusts nobody", highlight=False)
        return
    trust = "all ranks hold the same key" if has_key else "no --key: whoever the launcher started is trusted"
    console.print(f"{trust}; what travels is not encrypted (docs/privacy.md)", highlight=False, soft_wrap=True)


def twins_warning(names: Sequence[str]) -> str:
    """Return what to say where study files of several sites hold the same images."""
    keys = " and ".join(f"sites.{name}.data" for name in names)
    return (
        f"warning: {' and '.join(names)} have the same images: one institution counts as {len(names)}; "
        f"check {keys} (cxr-preprocess compare FILE FILE lists what is alike)"
    )


class TrainingDisplay:
    """A progress bar on a terminal, a line every few seconds elsewhere, and nothing on ranks that do not lead."""

    def __init__(
        self, console: Console, topology: Topology, first_step: int, num_steps: int, studies_per_step: int
    ) -> None:
        self._console = console
        self._topology = topology
        self._num_steps = num_steps
        self._studies_per_step = studies_per_step
        self._losses: list[float] = []
        self._num_skipped = 0
        self._last_line = self._started = time.perf_counter()
        self._first_step = first_step
        self._spent = [0.0, 0.0, 0.0]
        self._progress: Progress | None = None
        if topology.is_leader and console.is_terminal:
            self._progress = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[said]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._progress.add_task("training", total=num_steps, completed=first_step, said="")
            self._progress.start()

    def show(self, report: StepReport) -> None:
        """Take note of a step, and show it where it is time to."""
        self._num_skipped += report.is_skipped
        if not report.is_skipped:
            self._losses = smoothed(self._losses, report.loss_of_rank)
        for index, seconds in enumerate((report.data_s, report.compute_s, report.averaging_s)):
            self._spent[index] += seconds
        if not self._topology.is_leader:
            return
        now = time.perf_counter()
        if self._progress:
            self._progress.update(self._task, completed=report.step + 1, said=self._said(now, report.step))
        elif now - self._last_line >= LINE_EVERY_S or report.step in (self._first_step, self._num_steps - 1):
            self._last_line = now
            left_s = (
                (now - self._started) / (report.step + 1 - self._first_step) * (self._num_steps - report.step - 1)
            )
            step = f"step {report.step + 1}/{self._num_steps}"
            line = f"{step}  {self._said(now, report.step)}  {left_s:.0f} s left"
            self._console.print(line, highlight=False, soft_wrap=True)

    def verdict(self, verdict: Verdict) -> None:
        """Show a validation."""
        if not self._topology.is_leader:
            return
        if verdict.agreed_auroc is None:
            said = "AUROC undefined at every site: no VALIDATE studies, or none with both classes"
        else:
            of_sites = ", ".join(
                f"{site} undefined" if auroc is None else f"{site} {auroc:.3f}"
                for site, auroc in verdict.auroc_of_site.items()
            )
            best = ", the best so far" if verdict.is_best else ""
            said = f"mean AUROC {verdict.agreed_auroc:.3f} ({of_sites}){best}"
        self._console.print(
            f"validation after step {verdict.step}: {said}, {verdict.seconds:.1f} s",
            highlight=False,
            soft_wrap=True,
        )

    def close(self) -> None:
        if self._progress:
            self._progress.stop()

    def _said(self, now: float, step: int) -> str:
        per_s = (step + 1 - self._first_step) * self._studies_per_step / (now - self._started)
        losses = "  ".join(
            f"{name} {loss:.3f}"
            for name, loss in (loss_of_site(self._topology, self._losses).items() if self._losses else ())
        )
        skipped = f"  {self._num_skipped} skipped" if self._num_skipped else ""
        data, compute, averaging = (100 * spent / sum(self._spent) for spent in self._spent)
        return (
            f"loss {losses}  {per_s:.1f} studies/s  "
            f"data {data:.0f}% compute {compute:.0f}% averaging {averaging:.0f}%{skipped}"
        )


def smoothed(before: Sequence[float], now: Sequence[float]) -> list[float]:
    """Return a running mean of the losses: single batches jump too much to be read."""
    if not before:
        return list(now)
    return [MEMORY * old + (1 - MEMORY) * new for old, new in zip(before, now, strict=True)]
