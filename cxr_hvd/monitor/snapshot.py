"""Read a run's folder as it stands: while the run writes it, after its end, or after its failure.

Owns which files are read. A file that is damaged or cannot be read becomes a note; the last line of a log may be
half written. Leaves to `view` what the records say together.
"""

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from cxr_hvd.config.sections import SiteName
from cxr_hvd.errors import CheckpointError, ConfigError
from cxr_hvd.files import open_plain, read_plain
from cxr_hvd.launch.rank_status import RankStatus, status_path
from cxr_hvd.ledger.reader import Fault
from cxr_hvd.monitor.results_file import ResultsSummary
from cxr_hvd.monitor.view import CheckpointsHeld, RankView, RunView, SiteView, judge_rank, rows_of, without_undone
from cxr_hvd.record import R, Record, Text, first_problem
from cxr_hvd.training.records import RunEnvironment, StepRow, Verdict
from cxr_hvd.yaml_text import parse_yaml

MAX_RECORD_BYTES = 1 << 16
MAX_LOG_BYTES = 1 << 26  # some 200,000 steps

SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
STATUS_NAME = re.compile(r"status-([0-9]{1,4})\.json")
WHOLE_NAME = re.compile(r"step-([0-9]{1,15})")
UNFINISHED_NAME = re.compile(r"\.step-([0-9]{1,15})\.part")
RECORDS = {"config.yaml", "environment.json", "metrics.jsonl", "checkpoints"}
PARTS_OF_CHECKPOINT = {"state.json", "shared.safetensors", "private.safetensors"}


class SiteOfConfig(Record):
    """What `config.yaml` says of a site."""

    ranks: Annotated[int, Field(ge=1, le=1 << 16)]


class RunConfig(Record):
    """What `config.yaml` says of the run as a whole."""

    experiment: Text
    sites: dict[SiteName, SiteOfConfig]


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
        folder = path.parent if is_site else path
        problems = {path.name: None} if is_site else find_sites(path)
    except OSError as error:
        raise CheckpointError(f"{run}: cannot read it ({error.strerror}); expected a run folder") from error
    readable = [name for name, problem in problems.items() if problem is None]
    if not readable:
        closed = "; ".join(f"{name} {problem}" for name, problem in problems.items())
        why = f"none of its sites may be read: {closed}" if closed else "no run here"
        raise CheckpointError(f"{run}: {why}; expected one folder for each site, as `cxr-hvd train` makes")
    config, faults = _first_of_sites(folder, readable, "config.yaml", RunConfig)
    environment, more_faults = _first_of_sites(folder, readable, "environment.json", RunEnvironment)
    num_ranks = {name: site.ranks for name, site in config.sites.items()} if config else {}
    names = readable if is_site else list(dict.fromkeys([*num_ranks, *(problems if not num_ranks else readable)]))
    sites = tuple(
        load_site(folder / name, num_ranks.get(name, 0), list(num_ranks), now)
        if name in readable
        else SiteView(name, problems.get(name) or "is not here; it may be on a machine of its own")
        for name in names
    )
    lengths = [rank.num_steps for site in sites for rank in site.ranks if rank.num_steps is not None]
    return RunView(
        run=run,
        time=now,
        experiment=config.experiment if config else None,
        num_steps=environment.budget.num_steps if environment else max(lengths, default=None),
        steps_per_epoch=environment.budget.steps_per_epoch if environment else None,
        sites=sites,
        faults=(*faults, *more_faults),
    )


def find_sites(folder: Path) -> dict[str, str | None]:
    """Return the names of all folders that are a site's, each with why it cannot be read, or None."""
    problems: dict[str, str | None] = {}
    for name in sorted(filter(SITE_NAME.fullmatch, _names_in(folder))):
        try:
            names = _names_in(folder / name)
        except PermissionError:
            problems[name] = "may not be read by you"
        except OSError:
            continue  # a file, or gone
        else:
            if RECORDS & names or any(map(STATUS_NAME.fullmatch, names)):
                problems[name] = None
    return problems


def load_site(folder: Path, num_ranks: int, sites: Sequence[str], now: float) -> SiteView:
    """Read one site's folder.

    Args:
        num_ranks: how many its config says it has; 0 where no config can be read.
        sites: whose losses to take from its metrics; those that its last row names where there are none.
        now: Unix seconds.
    """
    try:
        names = _names_in(folder)
    except OSError as error:
        return SiteView(folder.name, f"cannot be read any more ({error.strerror})")
    faults: list[Fault] = []
    numbers = {int(match[1]) for match in map(STATUS_NAME.fullmatch, names) if match} | set(range(num_ranks))
    ranks = []
    for number in sorted(numbers):
        status = read_file(status_path(folder, number), RankStatus, faults)
        ranks.append(judge_rank(number, status, now) if status else RankView(number))
    metrics = read_rows(folder / "metrics.jsonl", StepRow, faults)
    validations = read_rows(folder / "validation.jsonl", Verdict, faults)
    return SiteView(
        name=folder.name,
        ranks=tuple(ranks),
        rows=rows_of(metrics, sites or list(metrics[-1].loss_of_site if metrics else ())),
        num_skipped=sum(row.is_skipped for row in metrics),
        validations=tuple(without_undone(validations)),
        results=read_file(folder / "results.json", ResultsSummary, faults),
        checkpoints=load_checkpoints(folder / "checkpoints", faults),
        faults=tuple(faults),
    )


def load_checkpoints(folder: Path, faults: list[Fault]) -> CheckpointsHeld | None:
    """Look which checkpoints there are; none of them is opened. A fault is added to `faults`."""
    # Links first: a checkpoint is whole before a link names it.
    latest, best = _step_named_by(folder / "latest"), _step_named_by(folder / "best")
    try:
        names = _names_in(folder)
    except FileNotFoundError:
        return CheckpointsHeld()
    except OSError as error:
        faults.append(Fault(_short(folder), None, f"cannot be read ({error.strerror})"))
        return None
    matches = [match for match in map(WHOLE_NAME.fullmatch, names) if match]
    whole = [int(match[1]) for match in matches if _is_whole(folder / match[0])]
    unfinished = [int(match[1]) for match in map(UNFINISHED_NAME.fullmatch, names) if match]
    return CheckpointsHeld(
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


def read_file(path: Path, form: type[R], faults: list[Fault]) -> R | None:
    """Read a JSON or YAML file of one record; None where there is none, or where it adds a fault to `faults`."""
    name = _short(path)
    try:
        content = read_plain(path, MAX_RECORD_BYTES)
        if path.suffix == ".yaml":
            return form.model_validate(parse_yaml(content.decode(), name))
        return form.model_validate_json(content)
    except FileNotFoundError:
        return None
    except OSError as error:
        faults.append(Fault(name, None, f"cannot be read ({error.strerror})"))
    except ValidationError as error:
        faults.append(Fault(name, None, first_problem(error)))
    except (ConfigError, UnicodeDecodeError):
        faults.append(Fault(name, None, "is not YAML of plain values"))
    return None


def read_rows(path: Path, form: type[R], faults: list[Fault]) -> list[R]:
    """Read a log of one record a line, which may be growing: half a last line is left for next time.

    Of a longer log than `MAX_LOG_BYTES` the end is read. Damaged lines are left out, and add a fault to `faults`.
    """
    name = _short(path)
    try:
        with open_plain(path) as file:
            start = max(0, os.fstat(file.fileno()).st_size - MAX_LOG_BYTES)
            file.seek(start)
            lines = file.read(MAX_LOG_BYTES).split(b"\n")[1 if start else 0 : -1]
    except FileNotFoundError:
        return []
    except OSError as error:
        faults.append(Fault(name, None, f"cannot be read ({error.strerror})"))
        return []
    rows: list[R] = []
    damaged: list[Fault] = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(form.model_validate_json(line))
        except ValidationError as error:
            damaged.append(Fault(name, None if start else number, f"left out: {first_problem(error)}"))
    if start:
        faults.append(Fault(name, None, "is long: what is shown and counted is its end"))
    faults += damaged[:1]
    if len(damaged) > 1:
        faults.append(Fault(name, None, f"{len(damaged) - 1:,} more lines left out"))
    return rows


def _first_of_sites(folder: Path, sites: Sequence[str], name: str, form: type[R]) -> tuple[R | None, list[Fault]]:
    """Read a record that all sites have alike from the first site where it can be read."""
    faults: list[Fault] = []
    for site in sites:
        record = read_file(folder / site / name, form, faults)
        if record is not None:
            return record, faults
    return None, faults


def _names_in(folder: Path) -> set[str]:
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries}


def _short(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"
