"""Fill the templates of what is handed on with a network: scripts, texts and pages."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cxr_hvd.terminal import shown

TEMPLATES = Path(__file__).with_name("templates")


def render(name: str, **values: object) -> str:
    """Render a template that is no HTML."""
    return _environment(escapes=False).get_template(f"{name}.jinja").render(**values)


def render_page(name: str, style: Path, **values: object) -> str:
    """Render a page with a style sheet in it; all values are escaped.

    Args:
        style: the style sheet.
    """
    sheet = Markup(style.read_text(encoding="utf-8"))
    return _environment(escapes=True).get_template(f"{name}.jinja").render(style=sheet, **values)


def _environment(escapes: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=escapes,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not escapes,
    )
    environment.filters["shown"] = shown
    return environment
