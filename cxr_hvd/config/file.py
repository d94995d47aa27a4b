"""From a YAML file and `--set` settings to a config, or to one line that says what is wrong.

That line holds the dotted path, what was expected, what was found, and the nearest name that exists.
"""

import json
import os
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from cxr_hvd.config.schema import Config
from cxr_hvd.config.sections import Section, Site
from cxr_hvd.errors import ConfigError
from cxr_hvd.yaml_text import MAX_DEPTH, load_yaml, parse_yaml, shortened

AnySection = TypeVar("AnySection", bound=Section)


def load_config(path: str | os.PathLike[str], settings: Sequence[str] = ()) -> Config:
    """Read a YAML file and lay `section.key=value` settings over it.

    Raises:
        ConfigError: the file is missing, is not YAML, or something in it or in the settings is not valid.
    """
    tree = read_tree(Path(path))
    for setting in settings:
        _lay_over(tree, setting)
    return parse_config(tree, str(path))


def read_tree(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        ConfigError: it is missing, is not YAML, or holds something else.
    """
    tree = load_yaml(path)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping such as 'experiment: D', found {type(tree).__name__}")
    return tree


def parse_config(tree: dict[str, Any], where: str) -> Config:
    """Check a tree of plain values; `where` names its origin in errors."""
    return parse_section(Config, tree, where)


def parse_section(kind: type[AnySection], tree: dict[str, Any], where: str) -> AnySection:
    """Check a tree of plain values for one section, or for the whole; `where` names its origin in errors."""
    try:
        return kind.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain(error.errors())}") from error


def _lay_over(tree: dict[str, Any], setting: str) -> None:
    dotted, equals, text = setting.partition("=")
    names, where = [name.strip() for name in dotted.split(".")], f"--set {shortened(setting)}"
    if not equals or not all(names) or len(names) > MAX_DEPTH:
        raise ConfigError(f"{where}: expected section.key=value")
    *sections, key = names
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{where}: '{section}' is a value, not a section")
    tree[key] = parse_yaml(text, where)


def _explain(errors: list[ErrorDetails]) -> str:
    """Say the first error in one line, and how many more there are."""
    error = min(errors, key=lambda problem: problem["type"] != "extra_forbidden")
    parts = [part for part in map(str, error["loc"]) if re.fullmatch(r"[\w-]+", part) and part != "str"]
    if error["type"] == "extra_forbidden":  # its last part is a key that a user wrote, whatever is in it
        unknown = str(error["loc"][-1])
        parts = [*(parts[:-1] if parts and parts[-1] == unknown else parts), unknown]
    dotted = ".".join(parts) or "config"
    if error["type"] == "extra_forbidden":
        valid = _names_beside(parts)
        close = get_close_matches(parts[-1], valid, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'?" if close else f"valid: {', '.join(valid)}"
        line = f"unknown key '{dotted}'; {hint}"
    elif error["type"] == "missing":
        line = f"'{dotted}' is missing"
    elif error["type"] == "value_error":
        line = f"{dotted}: {error['ctx']['error']}"
    else:
        value = json.dumps(error["input"])
        message = error["msg"].replace("Input should be ", "expected ", 1)
        line = f"{dotted}: {message}, found {value if len(value) < 80 else value[:77] + '...'}"
    return line + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else "")


def _names_beside(parts: list[str]) -> list[str]:
    """Return the valid names at the place of an unknown key."""
    model: Any = Config
    for part in parts[:-1]:
        field = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, Section) else None
        # A mapping such as `sites` holds sections under names that the user chose.
        model = field.annotation if field else next((m for m in get_args(model) if m is Site), Site)
    is_section = isinstance(model, type) and issubclass(model, Section)
    return list(model.model_fields) if is_section else []
