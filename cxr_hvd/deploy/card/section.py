"""The parts that a model card is put together from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CardTable:
    """A table of words: a title, headings, and rows of as many cells."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """A section of a card: paragraphs, then a list, then tables."""

    title: str
    paragraphs: tuple[str, ...] = ()
    bullets: tuple[str, ...] = ()
    tables: tuple[CardTable, ...] = ()
