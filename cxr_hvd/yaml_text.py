"""YAML that anybody may have written: read within bounds, and written so that it reads back as it was.

What is read is YAML 1.2's core. Keys are always text, and so are `no`, `on` and dates. A number has one form:
`010`, `0x1F`, `1_000` and `1:30`, which YAML 1.1 reads as 8, 31, 1000 and 90, are refused. So are tags. Aliases
are followed within the same bounds. A file is read by a bounded amount, and only where it is a regular file: a
FIFO would be waited for, and a device never ends.
"""

import re
from pathlib import Path
from typing import Any, NoReturn

import yaml

from cxr_hvd.errors import ConfigError
from cxr_hvd.files import read_plain

MAX_BYTES = 1_000_000
MAX_NODES = 20_000
MAX_DEPTH = 20
MAX_TEXT = 4096
MAX_DIGITS = 40
MAX_SHOWN = 60

_WORDS: dict[str, bool | float | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    **{sign + word: float(f"{sign}inf") for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")},
}
_WHOLE = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_ODD = re.compile(
    r"[-+]?(?:0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+|[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?"
    r"|(?=[0-9._]*[0-9])\.?[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?)"
)


def load_yaml(path: Path, is_text: bool = False) -> Any:
    """Read a YAML file as `parse_yaml` does.

    Raises:
        ConfigError: it is no regular file, cannot be read, is larger than 1 MB or not in UTF-8, or its content is
            refused.
    """
    try:
        content = read_plain(path, MAX_BYTES, follows_links=True)
        return parse_yaml(content.decode("utf-8-sig"), str(path), is_text)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected text in UTF-8, found other bytes at {error.start}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot read it ({getattr(error, 'strerror', None) or error})") from error


def parse_yaml(text: str, where: str, is_text: bool = False) -> Any:
    """Return what a YAML text says, as plain values: dict, list, str, int, float, bool and None.

    Args:
        text: one document; None stands for an empty one.
        where: names its origin in errors.
        is_text: whether all values are text, as keys always are: `0`, `No` and `null` stay what is written.

    Raises:
        ConfigError: it is not YAML, is nested more than 20 deep, holds more than 20,000 values with aliases
            followed, a key twice, a tag, a text of more than 4,096 characters or a number in an odd form.
    """
    try:
        node = _Composer(text).get_single_node()
        return None if node is None else _Reader(is_text).value_of(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = "" if isinstance(error, _RefusedError) else "not valid YAML: "
        line = f"line {mark.line + 1}: " if mark and "\n" in text else ""
        raise ConfigError(f"{where}: {line}{what}{error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        raise ConfigError(f"{where}: not valid YAML: a control character at {error.position}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # "\UFFFFFFFF" is a ValueError of PyYAML's
        raise ConfigError(f"{where}: not valid YAML: {shortened(str(error))}") from error


def dump_yaml(tree: object) -> str:
    """Write plain values so that `parse_yaml` reads the same: text that would be taken for a number is quoted."""
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False)
    return text


def shortened(text: str) -> str:
    """Cut what a user wrote to a length that an error line can hold."""
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


class _RefusedError(yaml.MarkedYAMLError):
    """The text is YAML, and says what is not read."""


class _Composer(yaml.BaseLoader):
    """PyYAML as far as its graph of nodes, which stops where a bound is passed."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._num_nodes = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES or self._depth >= MAX_DEPTH:
            _refuse_size(event.start_mark)
        if getattr(event, "tag", None):
            _refuse(f"found a tag ({shortened(event.tag)}); leave it out", event.start_mark)
        self._depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _Reader:
    """Turns nodes into values, and counts those that aliases repeat."""

    def __init__(self, is_text: bool) -> None:
        self._is_text = is_text
        self._num_values = 0

    def value_of(self, node: yaml.Node, depth: int = 0) -> Any:
        self._num_values += 1
        if self._num_values > MAX_NODES or depth >= MAX_DEPTH:  # an alias within itself has no end
            _refuse_size(node.start_mark)
        if isinstance(node, yaml.SequenceNode):
            return [self.value_of(child, depth + 1) for child in node.value]
        if isinstance(node, yaml.MappingNode):
            return self._mapping_of(node, depth)
        assert isinstance(node, yaml.ScalarNode)  # there is no other kind
        return self._scalar_of(node)

    def _mapping_of(self, node: yaml.MappingNode, depth: int) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                _refuse("expected a name, found a key that is a list or a mapping", key.start_mark)
            name = _text_of(key)
            if name in mapping:
                _refuse(f"key '{shortened(name)}' is given twice", key.start_mark)
            mapping[name] = self.value_of(value, depth + 1)
        return mapping

    def _scalar_of(self, node: yaml.ScalarNode) -> Any:
        text = _text_of(node)
        if self._is_text or node.style is not None:  # quoted, or a block of text
            return text
        if text in _WORDS:
            return _WORDS[text]
        is_float = _FLOAT.fullmatch(text)
        if not is_float and not _ODD.fullmatch(text):
            return text
        if not is_float or len(text) > MAX_DIGITS:
            what = "a number in an odd form" if not is_float else f"a number of more than {MAX_DIGITS} digits"
            _refuse(
                f"{shortened(text)} is {what}; write it as 10, 0.5 or 3e-4, or text in quotes", node.start_mark
            )
        return int(text) if _WHOLE.fullmatch(text) else float(text)


def _text_of(node: yaml.ScalarNode) -> str:
    text: str = node.value
    if len(text) > MAX_TEXT:
        _refuse(f"expected text of at most {MAX_TEXT} characters, found {len(text)}", node.start_mark)
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        _refuse("found a character that is no text", node.start_mark)
    return text


def _refuse(problem: str, mark: yaml.Mark) -> NoReturn:
    raise _RefusedError(problem=problem, problem_mark=mark)


def _refuse_size(mark: yaml.Mark) -> NoReturn:
    _refuse(f"expected at most {MAX_NODES} values, nested at most {MAX_DEPTH} deep, found more", mark)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which quotes what `parse_yaml` would not read as text, and writes no alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    is_plain = text not in _WORDS and not _FLOAT.fullmatch(text) and not _ODD.fullmatch(text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_plain else "'")


_Dumper.add_representer(str, _represent_text)
