"""The cells of a report's tables: how a number, its interval and its seeds are written, and what is undefined.

Text of others goes through `shown` first, which leaves one line without control characters; it is escaped where it
is laid out. Pure.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from cxr_hvd.terminal import shown as shown

UNDEFINED = "undefined"
NOT_KNOWN = "not known"
NOT_MEASURED = "not measured"
NO_INTERVAL = "no interval"


@dataclass(frozen=True)
class Cell:
    """What stands in one place of a table.

    Attributes:
        text: the number or the word; empty where it is undefined.
        note: why something is undefined; empty where nothing is.
        seeds: the same number seed by seed, for who wants to see the spread.
    """

    text: str
    note: str = ""
    seeds: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under headings.

    Attributes:
        title: what it shows, in a few words.
        columns: headings.
        rows: as many cells each.
        num_texts: so many columns from the left are words; the others are numbers.
        is_grouped: the first column is the same for neighbouring rows, which belong together.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    num_texts: int = 1
    is_grouped: bool = False


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value of a comparison is defined."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def as_score(value: float) -> str:
    """Write a number between 0 and 1: 0.812."""
    return f"{value:.3f}"


def as_percent(value: float) -> str:
    """Write a share: 81.2%."""
    return f"{100 * value:.1f}%"


def as_difference(value: float) -> str:
    """Write a difference of scores with its sign: +0.012, −0.003."""
    return _signed(value, 3)


def as_points(value: float) -> str:
    """Write a difference of shares in percentage points: +1.2."""
    return _signed(100 * value, 1)


def as_p(value: object) -> str:
    """Write a p-value: 0.034, or < 0.001."""
    if not is_number(value):
        return UNDEFINED
    return f"{value:.3f}" if value >= 0.0005 else "< 0.001"


def as_bytes(value: object) -> str:
    """Write a number of bytes in the unit that suits it: 27.8 MB."""
    if not is_number(value):
        return NOT_KNOWN
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {unit}" if abs(value) < 100 * factor else f"{value / factor:,.0f} {unit}"
    return f"{value:,.0f} B" if value else "0"


def as_count(value: object) -> str:
    """Write a number of things: 1,382."""
    return f"{value:,.0f}" if is_number(value) else NOT_KNOWN


def estimate(found: Mapping[str, Any], write: Callable[[float], str]) -> Cell:
    """Return a number with its interval, where it has one, and its seeds."""
    note = shown(found["note"]) if found["note"] else ""
    value, low, high = found["value"], found.get("low"), found.get("high")
    if not is_number(value):
        return Cell("", note or UNDEFINED)
    seeds = "\u00a0· ".join(write(one) if is_number(one) else UNDEFINED for one in found["by_seed"])
    if "low" not in found:
        return Cell(write(value), note, seeds)
    if not (is_number(low) and is_number(high)):
        return Cell(write(value), f"{NO_INTERVAL}: {note}" if note else NO_INTERVAL, seeds)
    return Cell(f"{write(value)} [{write(low)}, {write(high)}]", note, seeds)


def _signed(value: float, num_digits: int) -> str:
    said = f"{value:+.{num_digits}f}".replace("-", "−")
    return said if any(digit in said for digit in "123456789") else said[1:]


def p_of(found: Mapping[str, Any]) -> Cell:
    """Return the p-value of a difference, or why there is none."""
    note = shown(found["note"]) if found["note"] else UNDEFINED
    return Cell(as_p(found["p_value"])) if is_number(found["p_value"]) else Cell("", note)


def plain(value: object, write: Callable[[float], str]) -> Cell:
    """Return a number that has neither interval nor seeds."""
    return Cell(write(value)) if is_number(value) else Cell("", UNDEFINED)
