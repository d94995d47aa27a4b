"""The console that every command prints its tables with: it shows text as it stands.

Rich would take `[red]` in a label's name for markup, and hand escape sequences through to the terminal. Styles
come from `rich.text.Text` and `style=` alone.
"""

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from cxr_hvd.terminal import cleaned

WIDTH = 100


class Console(rich.console.Console):
    """A console without markup, emoji codes and control characters, on which a plain string is one line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, **settings)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(cleaned(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(cleaned(segment.text, kept="\n"), segment.style)


def open_console() -> Console:
    """Return the console of standard output: as wide as the terminal, 100 columns elsewhere."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)
