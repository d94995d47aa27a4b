"""List the images that cannot be used beside the output, and fail where they are too many.

A row of `NAME.quarantine.csv` is the table and row that name the image, and the reason. It holds no identifier.
"""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cxr_hvd.errors import DataError, UsageError
from cxr_hvd.files import replaced_file
from cxr_hvd.study.flow import MAX_REASONS, OTHER_REASONS

COLUMNS = ("where", "reason")

BadImage = tuple[str, str]


def quarantine_path(out: Path) -> Path:
    """Return where the list of an output's bad images lies."""
    return out.with_name(f"{out.name}.quarantine.csv")


def write_quarantine(out: Path, bad: Sequence[BadImage]) -> None:
    """Write the list beside the output; where nothing is bad, an earlier list goes."""
    path = quarantine_path(out)
    if not bad:
        path.unlink(missing_ok=True)
        return
    with replaced_file(path) as beside, beside.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        rows.writerows(bad)


def count_reasons(bad: Sequence[BadImage]) -> dict[str, int]:
    """Return how many images were bad for each reason, without its numbers; the most frequent first."""
    kinds = Counter(_kind(reason) for _, reason in bad)
    ordered = sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0]))
    counts, others = dict(ordered[: MAX_REASONS - 1]), ordered[MAX_REASONS - 1 :]
    return {**counts, OTHER_REASONS: sum(num for _, num in others)} if others else counts


def _kind(reason: str) -> str:
    """Return what a reason says was found instead of an image, each number as N."""
    finding = reason.partition(", found ")[2].partition(";")[0] or reason
    return re.sub(r"\d+(\.\d+)?", "N", finding)[:200]


def check_bad(out: Path, bad: Sequence[BadImage], num_images: int, max_bad: float) -> None:
    """Raise `DataError` where more than the share `max_bad` of all images was bad."""
    if len(bad) > max_bad * num_images:
        where, reason = bad[0]
        raise DataError(
            f"expected at most {max_bad:.3g} of {num_images:,} images to be bad, found {len(bad):,}, the first: "
            f"{where}: {reason}; all are in {quarantine_path(out)}: repair them and run again, or set --max-bad"
        )


def parse_share(text: str, option: str = "--max-bad") -> float:
    """Return the share that `1%` or `0.01` says, of 0 to 1, as given with an option of the command line.

    Raises:
        UsageError: it says something else.
    """
    number, percent, rest = text.strip().partition("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = -1.0
    if rest or not 0 <= share <= 1:
        raise UsageError(f"{option}: expected a share such as 1% or 0.01, found '{text[:20]}'")
    return share
