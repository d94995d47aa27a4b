"""Text for a terminal, whoever wrote it: no character that a terminal would obey, and no second line.

A folder's name, a label, another rank's config or a damaged record may hold anything. `cleaned` and `shown` make
it fit to be printed, and nothing else does: `errors` cleans every message by them, `console` every table. Marks of
direction count as control characters: they make a line read as what it is not.
"""

import unicodedata

MAX_SHOWN = 200
UNREADABLE = "\N{REPLACEMENT CHARACTER}"
OBEYED = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of control and format characters, halves of characters, and ends of lines."""


def cleaned(text: str, kept: str = "") -> str:
    """Return a text in which control characters are blanks or replacement characters, of the same length.

    Args:
        kept: control characters that stay.
    """
    if text.isprintable():
        return text
    return "".join(character if character in kept else _harmless(character) for character in text)


def shown(text: object, max_length: int = MAX_SHOWN) -> str:
    """Return a text of others as one line without control characters, no longer than `max_length`."""
    line = " ".join(cleaned(str(text)).split())
    return line if len(line) <= max_length else line[: max_length - 1].rstrip() + "…"


def say(text: str) -> None:
    """Print one clean line on standard output."""
    print(cleaned(text), flush=True)


def _harmless(character: str) -> str:
    if unicodedata.category(character) not in OBEYED:
        return character
    return " " if character.isspace() else UNREADABLE
