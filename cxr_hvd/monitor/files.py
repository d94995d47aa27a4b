"""The files of a run as a stranger finds them: half-written, replaced while read, damaged, or not his to read.

Owns their form and how they are read: by bounded amounts, never waiting, nothing converted and nothing believed.
`training` writes them. Leaves to `run_view` what they say together.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Generic, TypeVar

from pydantic import AfterValidator, Field, ValidationError

from cxr_hvd.config.sections import SiteName
from cxr_hvd.errors import ConfigError
from cxr_hvd.files import open_plain, read_plain
from cxr_hvd.ledger.form import MAX_SAID, Form, first_of
from cxr_hvd.ledger.reader import Fault
from cxr_hvd.terminal import shown
from cxr_hvd.yaml_text import parse_yaml

MAX_RECORD_BYTES = 1 << 15
MAX_LINE_BYTES = 1 << 14
MAX_DAMAGED = 1000
PIECE_BYTES = 1 << 12
TAIL_BYTES = 1 << 17
COUNTED_AT_A_TIME_BYTES = 1 << 20
MAX_COUNTED_BYTES = 1 << 30


Step = Annotated[int, Field(ge=0, le=1 << 53)]
Rank = Annotated[int, Field(ge=0, le=1 << 20)]
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
UnixTime = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Words = Annotated[str, AfterValidator(lambda text: shown(text, MAX_SAID))]


class SiteOfConfig(Form):
    ranks: Annotated[int, Field(ge=1, le=1 << 20)]


class RunConfig(Form):
    """What `config.yaml` says of the run as a whole."""

    experiment: Words
    sites: dict[SiteName, SiteOfConfig]


class Steps(Form):
    num_steps: Step
    steps_per_epoch: Step


class Environment(Form):
    """What `environment.json` says of the run's length."""

    budget: Steps


class Metrics(Form):
    """One line of `metrics.jsonl`: a step. A loss that was not finite may be null."""

    step: Step
    loss_of_site: dict[SiteName, float | None]
    learning_rate: float
    is_skipped: bool
    data_s: Seconds
    compute_s: Seconds
    averaging_s: Seconds
    studies_per_s: Finite


class Validation(Form):
    """One line of `validation.jsonl`. `step` counts steps done; what is undefined is null."""

    step: Step
    macro_auroc: Share | None
    agreed_auroc: Share | None
    mean_accuracy: Share | None
    is_best: bool
    seconds: Seconds


class Status(Form):
    """`status-RANK.json`: what a rank does since when, and when it last said so."""

    rank: Rank
    step: Step | None
    num_steps: Step | None
    doing: Words
    since: UnixTime
    time: UnixTime


F = TypeVar("F", bound=Form)


@dataclass(frozen=True)
class Lines(Generic[F]):
    """The whole lines of a growing file.

    Attributes:
        rows: those that have their form, in order. Where the file is long, a few from every part of it.
        is_sampled: whether the file is longer than what was read of it.
        fault: the first line that has not its form, and how many there are.
    """

    rows: list[F]
    is_sampled: bool = False
    fault: Fault | None = None


def read_form(path: Path, form: type[F]) -> F | Fault | None:
    """Read a small JSON or YAML file, by the ending of its name; None where there is none (any more)."""
    name = f"{path.parent.name}/{path.name}"
    try:
        content = read_plain(path, MAX_RECORD_BYTES)
        if path.suffix == ".yaml":
            return form.model_validate(parse_yaml(content.decode(), name))
        return form.model_validate_json(content)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Fault(name, None, f"cannot be read ({error.strerror})")
    except ValidationError as error:
        return Fault(name, None, first_of(error))
    except (ConfigError, ValueError, RecursionError):
        return Fault(name, None, "is not YAML of plain values")


def read_lines(path: Path, form: type[F], max_bytes: int) -> Lines[F]:
    """Read a file of one JSON object a line, which may be growing: half a last line is left for next time.

    Args:
        max_bytes: how much to read. Of a longer file, pieces from all over, its beginning and its end. What stands
            after a thousand damaged lines is not looked at.
    """
    name = f"{path.parent.name}/{path.name}"
    rows: list[F] = []
    damaged: list[tuple[int, int, str]] = []
    try:
        with open_plain(path) as file:
            size = os.fstat(file.fileno()).st_size
            pieces = _pieces(file, size, max_bytes)
            numbered = enumerate((place for piece in pieces for place in _lines_in(*piece)), start=1)
            for number, (start, line) in numbered:
                try:
                    if len(line) > MAX_LINE_BYTES:
                        raise ValueError(f"expected at most {MAX_LINE_BYTES:,} bytes, found {len(line):,}")
                    rows.append(form.model_validate_json(line))
                except ValueError as error:
                    why = first_of(error) if isinstance(error, ValidationError) else str(error)
                    damaged.append((number, start, why))
                    if len(damaged) == MAX_DAMAGED:
                        break
    except FileNotFoundError:
        return Lines([])
    except OSError as error:
        return Lines(rows, fault=Fault(name, None, f"cannot be read ({error.strerror})"))
    return Lines(rows, size > max_bytes, _fault_of(name, damaged, size > max_bytes))


def _fault_of(name: str, damaged: list[tuple[int, int, str]], is_sampled: bool) -> Fault | None:
    """Say where the first damaged line is: by its number, or by its place in a file of which parts were read."""
    if not damaged:
        return None
    number, start, why = damaged[0]
    more = f", as {len(damaged) - 1:,} more" if len(damaged) > 1 else ""
    more += " and what comes after them" if len(damaged) == MAX_DAMAGED else ""
    said = f"left out{more}: {why}"
    return Fault(name, None, f"the line at byte {start:,} is {said}") if is_sampled else Fault(name, number, said)


def _pieces(file: BinaryIO, size: int, max_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Give pieces of a file that begin and end with a line, each with its place, in order."""
    places = [(0, size)]
    if size > max_bytes:
        tail_bytes = min(TAIL_BYTES, max_bytes // 2)
        num_pieces = max(1, (max_bytes - tail_bytes) // PIECE_BYTES)
        apart = (size - tail_bytes) // num_pieces
        places = [(number * apart, PIECE_BYTES) for number in range(num_pieces)]
        places.append((size - tail_bytes, tail_bytes))
    for start, length in places:  # what is appended meanwhile is not looked at
        file.seek(start)
        content = file.read(length)
        begin = content.find(b"\n") + 1 if start else 0
        end = content.rfind(b"\n") + 1
        if begin < end:
            yield start + begin, content[begin:end]


def _lines_in(start: int, piece: bytes) -> Iterator[tuple[int, bytes]]:
    for line in piece[:-1].split(b"\n"):
        yield start, line
        start += len(line) + 1


def count_in(path: Path, wanted: bytes) -> int | None:
    """Count how often bytes occur in a file of up to a gigabyte; None where it is longer or cannot be read."""
    count, before = 0, b""
    try:
        with open_plain(path) as file:
            if os.fstat(file.fileno()).st_size > MAX_COUNTED_BYTES:
                return None
            for _ in range(MAX_COUNTED_BYTES // COUNTED_AT_A_TIME_BYTES):
                content = file.read(COUNTED_AT_A_TIME_BYTES)
                if not content:
                    break
                count += (before + content).count(wanted)
                before = content[-len(wanted) + 1 :]
    except OSError:
        return None
    return count
