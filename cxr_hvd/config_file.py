"""From a YAML file and `--set` settings to a config, or to one line that says what is wrong.

That line holds the dotted path, what was expected, what was found, and the nearest name that exists.
"""

import json
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from cxr_hvd.config import Config, Section, Site
from cxr_hvd.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also reads 3e-4 as a number and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def load_config(path: Path, settings: Sequence[str] = ()) -> Config:
    """Read a YAML file and lay `section.key=value` settings over it.

    Raises:
        ConfigError: the file is missing, is not YAML, or something in it or in the settings is not valid.
    """
    tree = read_tree(path)
    for setting in settings:
        _lay_over(tree, setting)
    return parse_config(tree, str(path))


def read_tree(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        ConfigError: it is missing, is not YAML, or holds something else.
    """
    try:
        tree = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        raise ConfigError(f"{path}: cannot read it ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping such as 'experiment: D', found {type(tree).__name__}")
    return tree


def parse_config(tree: dict[str, Any], where: str) -> Config:
    """Check a tree of plain values; `where` names its origin in errors."""
    try:
        text = json.dumps(tree)
    except TypeError as error:
        raise ConfigError(f"{where}: expected plain values, found a date or a binary one ({error})") from error
    try:
        return Config.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain(error.errors())}") from error


def _lay_over(tree: dict[str, Any], setting: str) -> None:
    dotted, equals, text = setting.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"--set {setting}: expected section.key=value")
    try:
        value = _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {setting}: the value is not valid YAML") from error
    *sections, key = dotted.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {setting}: '{section}' is a value, not a section")
    tree[key] = value


def _explain(errors: list[ErrorDetails]) -> str:
    """Say the first error in one line, and how many more there are."""
    error = min(errors, key=lambda each: each["type"] != "extra_forbidden")
    parts = [part for part in map(str, error["loc"]) if re.fullmatch(r"[\w-]+", part) and part != "str"]
    dotted = ".".join(parts) or "config"
    if error["type"] == "extra_forbidden":
        valid = _names_beside(parts)
        close = get_close_matches(parts[-1], valid, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'?" if close else f"valid: {', '.join(valid)}"
        said = f"unknown key '{dotted}'; {hint}"
    elif error["type"] == "missing":
        said = f"'{dotted}' is missing"
    elif error["type"] == "value_error":
        said = f"{dotted}: {error['ctx']['error']}"
    else:
        found = json.dumps(error["input"])
        message = error["msg"].replace("Input should be ", "expected ", 1)
        said = f"{dotted}: {message}, found {found if len(found) < 80 else found[:77] + '...'}"
    return said + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else "")


def _names_beside(parts: list[str]) -> list[str]:
    """Return the valid names at the place of an unknown key."""
    model: Any = Config
    for part in parts[:-1]:
        field = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, Section) else None
        # A mapping such as `sites` holds sections under names that the user chose.
        model = field.annotation if field else next((m for m in get_args(model) if m is Site), Site)
    is_section = isinstance(model, type) and issubclass(model, Section)
    return list(model.model_fields) if is_section else []
