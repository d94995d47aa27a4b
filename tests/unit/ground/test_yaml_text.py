"""YAML that anybody may have written: names stay text, a number means one thing, nothing costs too much."""

import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_hvd.config.file import load_config
from cxr_hvd.errors import ConfigError
from cxr_hvd.experiment.variants import configure, read_variants
from cxr_hvd.training.run_folder import RunFolder
from cxr_hvd.yaml_text import dump_yaml, load_yaml, parse_yaml
from lab.launch import PROJECT
from preprocess.sources.columns import load_columns

D = PROJECT / "jobs" / "configs" / "D.yaml"
LIMIT_S = 10  # of the processor; the dearest takes 1 s

NAMES = [
    "no",
    "on",
    "yes",
    "y",
    "N",
    "off",
    "true",
    "False",
    "null",
    "010",
    "08",
    "1_000",
    "0x1F",
    "1e3",
    "2020-01-01",
    "1",
]
TRAPS = st.sampled_from(
    [*NAMES, "", "~", "1:30", "0o17", "0b1", ".inf", ".nan", "-.5", "+3", "<<", "=", "é", "\U0001f600", "a\nb"]
)
TEXT = st.one_of(TRAPS, st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12))
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(10**38), 10**38), st.floats(allow_nan=False), TEXT)
PIECES = st.one_of(
    st.text(max_size=6), st.sampled_from([*"&*!|>%@?:-[]{},#'\"\n ", "&a ", "*a", "\\U", "0", "1_"])
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(TREES)
def test_what_is_written_reads_back_as_it_was(tree: Any) -> None:
    assert repr(parse_yaml(dump_yaml(tree), "it")) == repr(tree)  # repr: 1 is not 1.0, nor true


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.text(max_size=6), st.sampled_from([*"&*!|>%@?:-[]{},#'\"\n ", "&a ", "*a", "\\U", "0", "1_"])
        ),
        max_size=20,
    )
)
def test_any_text_is_read_or_one_line(pieces: list[str]) -> None:
    for is_text in (False, True):
        try:
            parse_yaml("".join(pieces), "it", is_text)
        except ConfigError as error:
            assert str(error).startswith("it: ") and "\n" not in str(error)


def config_of(site: str) -> str:
    return f"experiment: D\nsites:\n  {site}: {{ranks: 1, data: a.h5}}\n"


@pytest.mark.parametrize("name", NAMES)
def test_a_sites_name_is_the_text_that_is_written(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(config_of(name))
    for config in (
        load_config(tmp_path / "config.yaml"),
        load_config(D, [f"sites={{{name}: {{data: a.h5}}}}"]),
    ):
        assert list(config.sites) == [name]
    folder = RunFolder(tmp_path, name)
    folder.path.mkdir()
    folder.write_record("config.yaml", config.model_dump(mode="json"))
    assert folder.config() == config


def test_a_variants_name_and_values_are_the_text_that_is_written(tmp_path: Path) -> None:
    (tmp_path / "variants.yaml").write_text("no: {experiment: D, sharing.private: [no, \U0001f600]}\n")
    variants = read_variants(tmp_path / "variants.yaml")
    assert list(variants) == ["no"]
    assert configure(D, [], variants["no"]).sharing.private == ["no", "\U0001f600"]


@pytest.mark.parametrize(("first", "second"), [("1", "'1'"), ("no", "'no'"), ("a", "a"), ("true", '"true"')])
def test_two_keys_that_are_one_are_refused(first: str, second: str) -> None:
    with pytest.raises(ConfigError, match=r"line 2: key '.*' is given twice"):
        parse_yaml(f"{first}: 1\n{second}: 2\n", "it")


@pytest.mark.parametrize(
    "odd", ["010", "08", "-010", "0x1F", "0o17", "0b11", "1_000", "1_000.5", "1:30", "1:30:00.5", "00.5"]
)
def test_a_number_in_an_odd_form_is_refused(odd: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(config_of("a") + f"training: {{epochs: {odd}}}\n")
    for load in (
        lambda: load_config(D, [f"training.epochs={odd}"]),
        lambda: load_config(tmp_path / "config.yaml"),
    ):
        with pytest.raises(ConfigError, match=re.escape(f"{odd} is a number in an odd form; write it as 10")):
            load()
    assert parse_yaml(f"'{odd}'", "it") == odd and parse_yaml(odd, "it", is_text=True) == odd


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10", 10),
        ("-3", -3),
        ("3e-4", 3e-4),
        ("1.0e-3", 1e-3),
        (".5", 0.5),
        ("no", "no"),
        ("On", "On"),
        ("true", True),
        ("2024-02-30", "2024-02-30"),
        ("", None),
        ("~", None),
        ("null", None),
        ("[1, a]", [1, "a"]),
    ],
)
def test_values_are_those_of_yaml_1_2(text: str, value: object) -> None:
    assert repr(parse_yaml(text, "it")) == repr(value)


def _bomb(levels: int) -> str:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(rows)


HOSTILE = {
    "alias bomb": _bomb(9),
    "alias within itself": "a: &a [*a]",
    "alias within itself as a mapping": "&a {b: *a}",
    "5,000 digits": "seed: " + "1" * 5000,
    "5,000 digits after the point": "seed: 0." + "1" * 5000,
    "many brackets": "[" * 20_000,
    "many dashes": "- " * 100_000,
    "many braces": "{a: " * 100_000,
    "many values": "[" + "a," * 25_000 + "]",
    "many keys": "\n".join(f"k{n}:" for n in range(15_000)),
    "a long word": "a" * 900_000,
    "a tag": "!!python/object/apply:os.getcwd []",
    "a set": "!!set {a}",
    "bytes": "a: !!binary aGk=",
    "half a pair": 'a: "\\ud800"',
    "beyond Unicode": 'a: "\\U00110000"',
    "NUL": 'a: "\\0"',
    "a list as a key": "? [a]\n: b",
    "two documents": "a: 1\n---\nb: 2",
    "control characters": "a: \x1b[2J",
    "no end": "a: [",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_costs_too_much_or_means_nothing_is_one_line_everywhere(what: str, tmp_path: Path) -> None:
    path = tmp_path / "it.yaml"
    path.write_text(HOSTILE[what])
    readers = {
        "config": lambda: load_config(path),
        "--set": lambda: load_config(D, [f"labels={HOSTILE[what]}"]),
        "variants": lambda: read_variants(path),
        "columns": lambda: load_columns(path),
    }
    for name, read in readers.items():
        if what.startswith("many") and name != "config":
            continue  # each takes a second
        began = time.process_time()
        with pytest.raises(ConfigError) as caught:
            read()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500, name
        assert time.process_time() - began < LIMIT_S, name


@pytest.mark.parametrize("what", ["fifo", "device", "folder", "missing", "large", "not UTF-8"])
def test_a_file_that_is_none_to_read_is_one_line(what: str, tmp_path: Path) -> None:
    path = tmp_path / "it.yaml"
    if what == "fifo":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "folder":
        path.mkdir()
    elif what == "large":
        path.write_bytes(b"#" * 1_000_001)
    elif what == "not UTF-8":
        path.write_bytes(b"a: \xff")
    for read in (load_yaml, load_config, read_variants, load_columns):
        with pytest.raises(ConfigError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_aliases_are_followed_within_the_bounds() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: *a", "it") == {"a": {"x": 1}, "b": {"x": 1}}
