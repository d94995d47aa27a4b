"""A run's folder, read as it stands: while the run writes it, after its end or its failure, and as a stranger.

Owns what is looked for where. Only reads; what vanishes, is damaged or may not be read is said and passed over.
Leaves to others: the files one by one (`run_files`), what they say together (`run_view`).
"""

import os
import pwd
import re
import stat
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from cxr_hvd.errors import CheckpointError
from cxr_hvd.ledger.reader import Fault
from cxr_hvd.monitor.files import (
    Environment,
    F,
    Metrics,
    RunConfig,
    Status,
    Validation,
    count_in,
    read_form,
    read_lines,
)
from cxr_hvd.monitor.results_file import ResultsSummary
from cxr_hvd.monitor.view import (
    Checkpoints,
    RankView,
    RunView,
    SiteView,
    judge_rank,
    rows_of,
    without_undone,
)

MAX_SITES = 64
MAX_RANKS = 1024
MAX_ENTRIES = 20_000
METRICS_BYTES = 12 << 20  # of all sites together; read in a third of a second
VALIDATION_BYTES = 1 << 20

SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
STATUS_NAME = re.compile(r"status-([0-9]{1,4})\.json")
WHOLE_NAME = re.compile(r"step-([0-9]{1,15})")
UNFINISHED_NAME = re.compile(r"\.step-([0-9]{1,15})\.part")
RECORDS = {"config.yaml", "environment.json", "metrics.jsonl", "checkpoints"}
PARTS_OF_CHECKPOINT = {"state.json", "shared.safetensors", "private.safetensors"}
SKIPPED = b'"is_skipped": true'


def load_run(run: Path, now: float | None = None) -> RunView:
    """Read a run folder, or one site's folder in it.

    Args:
        now: the moment to judge by, in Unix seconds; this one if left out.

    Raises:
        CheckpointError: there is no run, or none of its sites may be read.
    """
    now = time.time() if now is None else now
    path = run.absolute()
    try:
        is_site = "config.yaml" in _names_in(path)
        folder, only = (path.parent, path.name) if is_site else (path, None)
        found = find_sites(folder) if only is None else {only: None}
    except OSError as error:
        raise CheckpointError(f"{run}: cannot read it ({error.strerror}); expected a run folder") from error
    found = dict(islice(found.items(), MAX_SITES))
    readable = [name for name, problem in found.items() if problem is None]
    if not readable:
        closed = [f"{name} {problem}" for name, problem in found.items()]
        why = f"none of its sites may be read: {'; '.join(closed[:3])}" if closed else "no run here"
        raise CheckpointError(f"{run}: {why}; expected one folder for each site, as `cxr-hvd train` makes")
    config, faults = _first_of_sites(folder, readable, "config.yaml", RunConfig)
    environment, more = _first_of_sites(folder, readable, "environment.json", Environment)
    planned = {name: site.ranks for name, site in config.sites.items()} if config else {}
    names = list(planned)[:MAX_SITES] if only is None else [only]
    names += [name for name in found if name not in planned and (name in readable or not planned)]
    losses = list(planned)[:MAX_SITES]
    sites = tuple(
        load_site(folder / name, planned.get(name, 0), losses, METRICS_BYTES // len(readable), now)
        if name in readable
        else SiteView(name, found.get(name) or "is not here; it may be on a machine of its own")
        for name in dict.fromkeys(names)
    )
    told = [rank.num_steps for site in sites for rank in site.ranks if rank.num_steps is not None]
    return RunView(
        run=run,
        time=now,
        experiment=config.experiment if config else None,
        num_steps=environment.budget.num_steps if environment else max(told, default=None),
        steps_per_epoch=environment.budget.steps_per_epoch if environment else None,
        sites=sites,
        faults=(*faults, *more),
    )


def find_sites(folder: Path) -> dict[str, str | None]:
    """Return the names of all folders that are a site's, or may be, each with why it cannot be read, or None."""
    found: dict[str, str | None] = {}
    for name in sorted(filter(SITE_NAME.fullmatch, _names_in(folder))):
        try:
            inside = _names_in(folder / name)
        except PermissionError:
            found[name] = f"may not be read by you ({_owner_of(folder / name)})"
        except OSError:
            continue  # a file, or gone
        else:
            if RECORDS & inside or any(map(STATUS_NAME.fullmatch, inside)):
                found[name] = None
    return found


def load_site(folder: Path, num_ranks: int, sites: Sequence[str], max_bytes: int, now: float) -> SiteView:
    """Read one site's folder.

    Args:
        num_ranks: how many its config says it has; 0 where no config tells.
        sites: whose losses to take from its metrics; those that its last line names where there are none.
        max_bytes: how much of its metrics to read.
        now: Unix seconds.
    """
    try:
        inside = _names_in(folder)
    except OSError as error:
        return SiteView(folder.name, f"cannot be read any more ({error.strerror})")
    ranks, faults = _load_ranks(folder, inside, num_ranks, now)
    metrics = read_lines(folder / "metrics.jsonl", Metrics, max_bytes)
    validations = read_lines(folder / "validation.jsonl", Validation, VALIDATION_BYTES)
    results = read_form(folder / "results.json", ResultsSummary)
    checkpoints = load_checkpoints(folder / "checkpoints")
    found = (metrics.fault, validations.fault, results, checkpoints)
    if not sites and metrics.rows:
        sites = list(metrics.rows[-1].loss_of_site)[:MAX_SITES]
    return SiteView(
        name=folder.name,
        ranks=tuple(ranks),
        rows=rows_of(metrics.rows, sites),
        num_skipped=count_in(folder / "metrics.jsonl", SKIPPED)
        if metrics.is_sampled
        else sum(row.is_skipped for row in metrics.rows),
        is_sampled=metrics.is_sampled,
        validations=tuple(without_undone(validations.rows)),
        checkpoints=checkpoints if isinstance(checkpoints, Checkpoints) else None,
        results=results if isinstance(results, ResultsSummary) else None,
        faults=(*faults, *(each for each in found if isinstance(each, Fault))),
    )


def _load_ranks(folder: Path, inside: set[str], num_ranks: int, now: float) -> tuple[list[RankView], list[Fault]]:
    numbers = {int(match[1]) for match in map(STATUS_NAME.fullmatch, inside) if match}
    numbers |= set(range(min(num_ranks, MAX_RANKS)))
    ranks, faults = [], []
    for number in sorted(numbers)[:MAX_RANKS]:
        status = read_form(folder / f"status-{number}.json", Status)
        if isinstance(status, Fault):
            faults.append(status)
            status = None
        ranks.append(judge_rank(number, status, now))
    return ranks, faults


def load_checkpoints(folder: Path) -> Checkpoints | Fault:
    """Look which checkpoints there are; none of them is opened."""
    # Links first: a checkpoint is whole before a link names it.
    latest, best = _step_named_by(folder / "latest"), _step_named_by(folder / "best")
    try:
        names = _names_in(folder)
    except FileNotFoundError:
        return Checkpoints()
    except OSError as error:
        return Fault(f"{folder.parent.name}/{folder.name}", None, f"cannot be read ({error.strerror})")
    whole = [int(match[1]) for match in map(WHOLE_NAME.fullmatch, names) if match and _is_whole(folder / match[0])]
    unfinished = [int(match[1]) for match in map(UNFINISHED_NAME.fullmatch, names) if match]
    return Checkpoints(
        whole=tuple(sorted(whole)),
        unfinished=tuple(sorted(unfinished)),
        latest=latest if latest in whole else None,
        best=best if best in whole else None,
    )


def _is_whole(checkpoint: Path) -> bool:
    try:
        return _names_in(checkpoint) >= PARTS_OF_CHECKPOINT
    except OSError:
        return False


def _step_named_by(link: Path) -> int | None:
    try:
        match = WHOLE_NAME.fullmatch(link.readlink().name)
    except OSError:
        return None
    return int(match[1]) if match else None


def _first_of_sites(folder: Path, sites: Sequence[str], name: str, form: type[F]) -> tuple[F | None, list[Fault]]:
    """Read what all sites have alike from the first site where it can be read."""
    faults = []
    for site in sites:
        found = read_form(folder / site / name, form)
        if isinstance(found, Fault):
            faults.append(found)
        elif found is not None:
            return found, faults
    return None, faults


def _names_in(folder: Path) -> set[str]:
    with os.scandir(folder) as entries:
        return {entry.name for entry in islice(entries, MAX_ENTRIES)}


def _owner_of(folder: Path) -> str:
    try:
        found = folder.stat()
        mode = f"mode {stat.S_IMODE(found.st_mode):04o}"
        return f"{mode} of user {pwd.getpwuid(found.st_uid).pw_name}"
    except OSError:
        return "its owner is not known"
    except KeyError:
        return f"{mode} of user {found.st_uid}"
