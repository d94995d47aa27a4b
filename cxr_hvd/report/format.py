"""The cells of a report's tables: how a number, its interval and its seeds are written, and what is undefined.

Text of others goes through `shown` first, which leaves one line without control characters; it is escaped where it
is laid out. Pure.
"""

from collections.abc import Callable
from dataclasses import dataclass

from cxr_hvd.experiment.comparison import Estimate, PairedEstimate, SeedMean
from cxr_hvd.stats.intervals import MIN_SEEDS
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
class ReportTable:
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


def as_signed(value: float) -> str:
    """Write a coefficient: 0.94, −0.31."""
    return f"{value:.2f}".replace("-", "−")


def as_p(value: float) -> str:
    """Write a p-value: p = 0.83, p = 0.034, p < 0.001 or p > 0.99."""
    if value < 0.001:
        return "p < 0.001"
    if value > 0.99:
        return "p > 0.99"
    return f"p = {value:.2f}" if value >= 0.1 else f"p = {value:.3f}"


def as_bytes(value: float | None) -> str:
    """Write a number of bytes in the unit that suits it: 27.8 MB."""
    if value is None:
        return NOT_KNOWN
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {unit}" if abs(value) < 100 * factor else f"{value / factor:,.0f} {unit}"
    return f"{value:,.0f} B" if value else "0"


def as_count(value: float | None) -> str:
    """Write a number of things: 1,382."""
    return NOT_KNOWN if value is None else f"{value:,.0f}"


def as_named(number: int, noun: str) -> str:
    """Write a number of things with their noun: 1 site, 2 sites."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def word(text: object) -> Cell:
    """Return a word or a name."""
    return Cell(shown(text))


def number(value: float | None, write: Callable[[float], str], missing: str = UNDEFINED) -> Cell:
    """Return a number that has neither interval nor seeds."""
    return Cell("", missing) if value is None else Cell(write(value))


def estimate(mean: SeedMean | None, write: Callable[[float], str], note: str | None = None) -> Cell:
    """Return a number with its interval, where it has one, and its seeds.

    Args:
        mean: None where it was not measured.
        note: why it is undefined, where it says nothing itself.
    """
    if mean is None:
        return Cell("", NOT_MEASURED)
    if mean.value is None:
        return Cell("", shown(mean.note or note or UNDEFINED))
    why = shown(mean.note) if mean.note else ""
    seeds = "\u00a0· ".join(UNDEFINED if value is None else write(value) for value in mean.by_seed)
    seeds = seeds if len(mean.by_seed) > 1 else ""
    if not isinstance(mean, Estimate):
        return Cell(write(mean.value), why, seeds)
    if mean.low is None or mean.high is None:
        return Cell(write(mean.value), f"{NO_INTERVAL}: {why}" if why else NO_INTERVAL, seeds)
    return Cell(f"{write(mean.value)} [{write(mean.low)}, {write(mean.high)}]", why, seeds)


def p_value(difference: PairedEstimate) -> Cell:
    """Return the p-value of a difference, or why there is none: earlier files have some of two seeds."""
    if difference.value is not None and not has_p(difference):
        return Cell("", f"fewer than {MIN_SEEDS} seeds")
    return number(difference.p_value, as_p, shown(difference.note or UNDEFINED))


def has_p(difference: PairedEstimate) -> bool:
    """Return whether there are enough seeds for a p-value."""
    return len(difference.by_seed) >= MIN_SEEDS


def _signed(value: float, num_digits: int) -> str:
    text = f"{value:+.{num_digits}f}".replace("-", "−")
    return text if any(digit in text for digit in "123456789") else text[1:]
