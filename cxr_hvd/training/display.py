"""Show training to a person: the plan, a progress bar or plain lines, validations. The leader shows it."""

import time
from collections.abc import Sequence

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cxr_hvd.comm.sites import Topology
from cxr_hvd.config.schema import Config
from cxr_hvd.console import Console
from cxr_hvd.partial.plan import SharingPlan
from cxr_hvd.partial.plan_table import plan_table, reach_of
from cxr_hvd.training.log import loss_of_site
from cxr_hvd.training.records import Budget, Verdict
from cxr_hvd.training.step_report import StepReport

LINE_EVERY_S = 5.0
MEMORY = 0.9


def print_agreed(console: Console, config: Config, plan: SharingPlan, budget: Budget, has_key: bool) -> None:
    """Say what will leave each site, how much of each site's data an epoch covers, and whom the ranks trust."""
    reach = reach_of([site.ranks for site in config.sites.values()])
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
        self._times_s = [0.0, 0.0, 0.0]
        self._progress: Progress | None = None
        if topology.is_leader and console.is_terminal:
            self._progress = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._progress.add_task("training", total=num_steps, completed=first_step, text="")
            self._progress.start()

    def show(self, report: StepReport) -> None:
        """Take note of a step, and show it where it is time to."""
        self._num_skipped += report.is_skipped
        if not report.is_skipped:
            self._losses = smoothed(self._losses, report.loss_of_rank)
        for index, seconds in enumerate((report.data_s, report.compute_s, report.averaging_s)):
            self._times_s[index] += seconds
        if not self._topology.is_leader:
            return
        now = time.perf_counter()
        if self._progress:
            self._progress.update(
                self._task, completed=report.step + 1, text=self._progress_line(now, report.step)
            )
        elif now - self._last_line >= LINE_EVERY_S or report.step in (self._first_step, self._num_steps - 1):
            self._last_line = now
            left_s = (
                (now - self._started) / (report.step + 1 - self._first_step) * (self._num_steps - report.step - 1)
            )
            step = f"step {report.step + 1}/{self._num_steps}"
            line = f"{step}  {self._progress_line(now, report.step)}  {left_s:.0f} s left"
            self._console.print(line, highlight=False, soft_wrap=True)

    def verdict(self, verdict: Verdict) -> None:
        """Show a validation."""
        if not self._topology.is_leader:
            return
        if verdict.agreed_auroc is None:
            line = "AUROC undefined at every site: no VALIDATE studies, or none with both classes"
        else:
            of_sites = ", ".join(
                f"{site} undefined" if auroc is None else f"{site} {auroc:.3f}"
                for site, auroc in verdict.auroc_of_site.items()
            )
            best = ", the best so far" if verdict.is_best else ""
            line = f"mean AUROC {verdict.agreed_auroc:.3f} ({of_sites}){best}"
        self._console.print(
            f"validation after step {verdict.step}: {line}, {verdict.seconds:.1f} s",
            highlight=False,
            soft_wrap=True,
        )

    def close(self) -> None:
        if self._progress:
            self._progress.stop()

    def _progress_line(self, now: float, step: int) -> str:
        per_s = (step + 1 - self._first_step) * self._studies_per_step / (now - self._started)
        losses = "  ".join(
            f"{name} {loss:.3f}"
            for name, loss in (loss_of_site(self._topology, self._losses).items() if self._losses else ())
        )
        skipped = f"  {self._num_skipped} skipped" if self._num_skipped else ""
        data, compute, averaging = (100 * seconds / sum(self._times_s) for seconds in self._times_s)
        return (
            f"loss {losses}  {per_s:.1f} studies/s  "
            f"data {data:.0f}% compute {compute:.0f}% averaging {averaging:.0f}%{skipped}"
        )


def smoothed(before: Sequence[float], now: Sequence[float]) -> list[float]:
    """Return a running mean of the losses: single batches jump too much to be read."""
    if not before:
        return list(now)
    return [MEMORY * old + (1 - MEMORY) * new for old, new in zip(before, now, strict=True)]
