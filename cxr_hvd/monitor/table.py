"""A run as a person reads it in a terminal, and as plain values for a program.

Owns the layout and the wording of what `view` says. Words out of files are shown as they stand, never as markup.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cxr_hvd.monitor.advice import advice_on, say_numbers, say_time
from cxr_hvd.monitor.view import RankView, RunView, SiteView, State, pace_of
from cxr_hvd.training.records import Verdict

SHOWN_VALIDATIONS = 5
SHOWN_CHECKPOINTS = 4
BAR_WIDTH = 30
WORTH_SAYING_S = 5.0

STYLES: dict[State, str] = {"ended": "green", "failed": "bold red", "silent": "bold red", "unknown": "dim"}
WORDS: dict[State, str] = {"working": "going on", "unknown": "not known"}


def render(view: RunView) -> RenderableType:
    """Lay a run out: how far it is, each site, validations, checkpoints, and what is wrong."""
    parts: list[RenderableType] = [Group(_heading(view), *_progress(view)), _sites_table(view)]
    if any(site.validations for site in view.read_sites):
        parts.append(_validations_table(view))
    parts.append(Group(_checkpoints_table(view), _resume_line(view), *_results(view)))
    parts += [Text(line, style="bold red") for line in advice_on(view)]
    if notes := notes_on(view):
        parts.append(Group(*(Text(line, style="yellow") for line in notes)))
    spaced = [line for part in parts for line in (part, Text())]
    return Group(*spaced[:-1])


def notes_on(view: RunView) -> list[str]:
    """Say what could not be read, and what was read in part."""
    return [str(fault) for fault in (*view.faults, *(fault for site in view.sites for fault in site.faults))]


def _heading(view: RunView) -> Text:
    num_unread = len(view.sites) - len(view.read_sites)
    num_ranks = sum(len(site.ranks) for site in view.sites)
    counts = f"{_counted(len(view.sites), 'site')}, "
    counts += f"{num_unread} not read" if num_unread else _counted(num_ranks, "rank")
    experiment = f"Experiment {view.experiment}" if view.experiment else "Experiment not known"
    state = (WORDS.get(view.state, view.state), STYLES.get(view.state, "bold"))
    return Text.assemble((experiment, "bold"), f" · {view.run} · {counts} · ", state)


def _progress(view: RunView) -> list[RenderableType]:
    done = view.num_done
    if not done or not view.num_steps:
        return [Text(f"{done:,} steps done, of how many is not known" if done else "No step is done yet.")]
    share = min(1.0, done / view.num_steps)
    left = "" if view.left_s is None else f", about {say_time(view.left_s)} left"
    bar = Table.grid(padding=(0, 2, 0, 0))
    bar.add_row(
        ProgressBar(total=1.0, completed=share, width=BAR_WIDTH),
        Text(f"step {done:,} of {view.num_steps:,}, {share:.1%}{left}"),
    )
    facts = [f"epoch {done / view.steps_per_epoch:.2f}"] if view.steps_per_epoch else []
    if view.furthest and view.furthest.rows:
        pace = pace_of(view.furthest.rows)
        facts += [f"learning rate {_number(pace.learning_rate, '.2e')}", f"{pace.step_s:.3g} s a step"]
        facts += [f"{_number(pace.studies_per_s, '.1f')} studies/s"]
    return [bar, Text(" · ".join(facts))]


def _sites_table(view: RunView) -> Table:
    table = _table("", left=("site", "ranks", "state"), right=("step", "loss", _TIMES, "skipped"))
    furthest = view.furthest
    losses = pace_of(furthest.rows).loss_of_site if furthest and furthest.rows else {}
    for site in view.sites:
        if site.problem is not None:
            loss = _number(losses.get(site.name), ".3f", "")
            table.add_row(Text(site.name), "", Text(site.problem, style="yellow"), "", loss, "", "")
            continue
        first, *others = _alike(site.ranks) or [[RankView(0)]]
        table.add_row(Text(site.name), *_ranks_and_state(first), *_numbers_of(site))
        for ranks in others:
            table.add_row("", *_ranks_and_state(ranks))
    return table


_TIMES = "data/compute/\naveraging, %"


def _alike(ranks: Sequence[RankView]) -> list[list[RankView]]:
    """Put ranks together that are in the same state and do the same."""
    groups: dict[tuple[State, str], list[RankView]] = {}
    for rank in ranks:
        groups.setdefault((rank.state, rank.doing), []).append(rank)
    return list(groups.values())


def _ranks_and_state(ranks: Sequence[RankView]) -> tuple[str, Text]:
    state, doing = ranks[0].state, ranks[0].doing
    for_s = min((rank.for_s for rank in ranks if rank.for_s is not None), default=0.0)
    words = doing
    if state == "working" and for_s >= WORTH_SAYING_S:
        words = f"{doing}, {say_time(for_s)}"
    elif state == "failed":
        words = f"failed {say_time(for_s)} ago"
    elif state == "silent":
        words = f"silent for {say_time(for_s)}"
    return say_numbers(rank.rank_in_site for rank in ranks), Text(words, style=STYLES.get(state, ""))


def _numbers_of(site: SiteView) -> list[str]:
    step = _number(site.num_done, ",d", "")
    if site.rows is None:
        return [step, "", "", ""]
    pace = pace_of(site.rows)
    times = "/".join(f"{100 * share:.0f}" for share in (pace.data, pace.compute, pace.averaging))
    return [step, _number(pace.loss_of_site.get(site.name), ".3f"), times, f"{site.num_skipped:,}"]


def _validations_table(view: RunView) -> Table:
    sites = [site.name for site in view.read_sites if site.validations]
    by_step: dict[int, dict[str, Verdict]] = {}
    for site in view.read_sites:
        for row in site.validations:
            by_step.setdefault(row.step, {})[site.name] = row
    best = view.best_step
    table = _table("Validation, macro AUROC", right=("after step", *sites, "agreed", "seconds", ""))
    shown = sorted(by_step)[-SHOWN_VALIDATIONS:]
    for step in shown if best is None or best in shown else [best, *shown]:
        rows = by_step[step]
        agreed = next((row.agreed_auroc for row in rows.values() if row.agreed_auroc is not None), None)
        table.add_row(
            f"{step:,}",
            *(_number(rows[name].macro_auroc, ".3f") if name in rows else "" for name in sites),
            _number(agreed, ".3f"),
            f"{max(row.seconds for row in rows.values()):.1f}",
            "best" if step == best else "",
            style="bold green" if step == best else "",
        )
    return table


def _checkpoints_table(view: RunView) -> Table:
    table = _table("Checkpoints, by steps done", left=("site",), right=("whole", "latest", "best", "unfinished"))
    for site in view.read_sites:
        held = site.checkpoints
        if held is None:
            table.add_row(Text(site.name), "cannot be read", style="yellow")
            continue
        table.add_row(
            Text(site.name),
            _listed(held.whole) or "none yet",
            _number(held.latest, ",d", ""),
            _number(held.best, ",d", ""),
            _listed(held.unfinished),
        )
    return table


def _listed(steps: Sequence[int]) -> str:
    shown = "  ".join(f"{step:,}" for step in steps[-SHOWN_CHECKPOINTS:])
    return f"…  {shown}" if len(steps) > SHOWN_CHECKPOINTS else shown


def _resume_line(view: RunView) -> Text:
    newest = view.newest_common_step
    unread = " and ".join(site.name for site in view.sites if site.checkpoints is None)
    if newest is None:
        return Text("No step is held whole by all sites: --resume auto has nothing yet to go on from.")
    if unread:
        return Text(
            f"Step {newest:,} is the newest that all sites hold whole that were read; --resume auto goes on from "
            f"there if {unread} can, too."
        )
    is_over = view.state == "ended" and newest == view.num_steps
    goes_on = "it is the last" if is_over else "--resume auto goes on from there"
    return Text(f"Step {newest:,} is the newest that all sites hold whole; {goes_on}.")


def _results(view: RunView) -> list[Text]:
    return [
        Text(
            f"{site.name}, evaluated at step {site.results.step:,}, {site.results.split}: "
            f"macro AUROC {_number(site.results.macro_auroc, '.3f')}, "
            f"accuracy {_number(site.results.mean_accuracy, '.1%')}"
        )
        for site in view.read_sites
        if site.results
    ]


def _table(title: str, left: Sequence[str] = (), right: Sequence[str] = ()) -> Table:
    table = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=None,
        padding=(0, 2, 0, 0),
    )
    for heading in left:
        table.add_column(Text(heading), vertical="top")
    for heading in right:
        table.add_column(Text(heading), justify="right")
    return table


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _number(value: float | None, style: str, none: str = "undefined") -> str:
    return none if value is None else format(value, style)


def to_json(view: RunView) -> dict[str, Any]:
    """Return what `render` shows as plain values: seconds, shares from 0 to 1, None where nothing is known."""
    return {
        "run": str(view.run),
        "time": view.time,
        "experiment": view.experiment,
        "state": view.state,
        "step": view.num_done,
        "num_steps": view.num_steps,
        "steps_per_epoch": view.steps_per_epoch,
        "left_s": view.left_s,
        "best_step": view.best_step,
        "newest_common_step": view.newest_common_step,
        "sites": [_site_to_json(site) for site in view.sites],
        "advice": advice_on(view),
        "notes": notes_on(view),
    }


def _site_to_json(site: SiteView) -> dict[str, Any]:
    held = site.checkpoints
    return {
        "site": site.name,
        "problem": site.problem,
        "ranks": [asdict(rank) for rank in site.ranks],
        "step": site.num_done,
        "pace": asdict(pace_of(site.rows)) if site.rows else None,
        "num_skipped": site.num_skipped,
        "validations": [row.model_dump() for row in site.validations],
        "checkpoints": held and asdict(held) | {"whole": list(held.whole), "unfinished": list(held.unfinished)},
        "results": site.results.model_dump() if site.results else None,
    }
