"""Read a patient's sex and age from cells of a table, as published tables and DICOM write them."""

import re

from cxr_hvd.study.layout import MAX_AGE, UNKNOWN_AGE, Sex

SEXES = {
    "": Sex.UNKNOWN,
    "unknown": Sex.UNKNOWN,
    "f": Sex.FEMALE,
    "female": Sex.FEMALE,
    "m": Sex.MALE,
    "male": Sex.MALE,
    "o": Sex.OTHER,
    "other": Sex.OTHER,
}
"""By the cell in small letters."""

OLDEST = 120
"""Years; a table that says more is mistaken (NIH has 414), and the age is unknown."""

# A number of years, or DICOM's age string: 034Y, 018M, 006W, 021D.
_AGE = re.compile(r"(\d{1,4})(?:\.\d+)?\s*([YyMmWwDd]?)")
_PER_YEAR = {"y": 1.0, "m": 12.0, "w": 365.25 / 7, "d": 365.25}


def parse_sex(cell: str) -> Sex | None:
    """Return the sex that a cell names; None where it is none of `SEXES`."""
    return SEXES.get(cell.lower())


def parse_age(cell: str) -> int | None:
    """Return the age in whole years that a cell names, `MAX_AGE` where it is more.

    Returns:
        `UNKNOWN_AGE` for a blank cell or an age above `OLDEST`; None where the cell is no age.
    """
    if not cell:
        return UNKNOWN_AGE
    match = _AGE.fullmatch(cell)
    if match is None:
        return None
    years = int(int(match[1]) / _PER_YEAR[match[2].lower() or "y"])
    return UNKNOWN_AGE if years > OLDEST else min(years, MAX_AGE)
