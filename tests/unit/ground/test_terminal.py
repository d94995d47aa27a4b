"""What others wrote is shown as it stands: it steers no terminal, is no markup, and takes no second line."""

import ast
import io
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from cxr_hvd.console import Console
from cxr_hvd.errors import ContractError, reported
from cxr_hvd.ledger.reader import Fault
from cxr_hvd.terminal import cleaned, shown
from lab.launch import PROJECT
from preprocess.inspect.summary import FileSummary, LabelTally, SplitCounts
from preprocess.inspect.tables import print_summary

HOSTILE = "north\x1b[2J\x1b[1;1H[bold red]All holds\r\n\x9b31m\u202egreen\u2028:skull:"


def is_harmless(text: str, kept: str = "") -> bool:
    categories = {unicodedata.category(each) for each in text if each not in kept}
    return not categories & {"Cc", "Cf", "Cs", "Zl", "Zp"}


@given(st.text(), st.integers(1, 300))
def test_what_is_shown_is_one_short_harmless_line(text: str, max_length: int) -> None:
    assert is_harmless(shown(text, max_length))
    assert len(shown(text, max_length)) <= max_length
    assert len(cleaned(text)) == len(text)
    assert is_harmless(cleaned(text))


@given(st.text(alphabet=st.characters(categories=["L", "N", "P", "S", "Zs"])))
def test_words_are_shown_as_they_stand(text: str) -> None:
    assert cleaned(text) == text


def print_on(console: Console, text: str) -> str:
    table = Table(title=text, caption=text)
    table.add_column(text)
    table.add_row(text)
    table.add_row(Text(text))
    console.print(table)
    console.print(text, Text(text))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@given(st.text())
def test_a_console_hands_no_control_character_on(text: str) -> None:
    assert is_harmless(print_on(Console(file=io.StringIO(), width=80), text), kept="\n")


def test_a_console_takes_no_markup_from_others_and_still_has_styles() -> None:
    said = print_on(Console(file=io.StringIO(), width=200), HOSTILE)
    assert said.count("[bold red]All holds") == 7
    assert said.count(":skull:") == 7
    styled = Console(file=io.StringIO(), force_terminal=True, color_system="standard")
    styled.print(Text("ok", "green"))
    assert "\x1b[32mok" in styled.file.getvalue()  # type: ignore[attr-defined]


def test_an_error_and_a_fault_are_one_harmless_line_each() -> None:
    assert is_harmless(str(ContractError(f"the sites differ on {HOSTILE}")))
    assert is_harmless(str(Fault(HOSTILE, 3, HOSTILE)))


def test_a_study_file_s_words_are_shown_as_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    words = dict.fromkeys(
        ("file", "site", "source", "pixels", "source_sha256", "created", "tool", "digest"), HOSTILE
    )
    numbers = {"studies": 2, "images": 2, "image_size": 8, "bytes": 9, "seed": 0, "one_shade": 0}
    summary = FileSummary(
        **words,
        **numbers,  # type: ignore[arg-type]
        splits={"train": SplitCounts(2, 2, 2)},
        images_per_study={"1": 2},
        views={"PA": 2},
        labels={HOSTILE: LabelTally(1, 1, 0, 0, 0.5)},
        sexes={"train": {HOSTILE: 2}},
        ages={"train": {HOSTILE: 2}},
        flow=None,
    )
    print_summary(summary)
    said = capsys.readouterr().out
    assert is_harmless(said, kept="\n")
    assert "[bold red]" in said


def test_nobody_prints_tables_past_the_clean_console() -> None:
    for path in [*(PROJECT / "cxr_hvd").rglob("*.py"), *(PROJECT / "preprocess").rglob("*.py")]:
        if path.name == "console.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in ("rich.console", "rich", "rich.markup"):
                names = {each.name for each in node.names}
                assert not names & {"Console", "print", "escape", "get_console"}, f"{path}: {names}"


# ---- an output that takes nothing, or not every letter

TABLE = """
import sys
from cxr_hvd.console import open_console
from cxr_hvd.errors import reported
from rich.table import Table

with reported("cxr-hvd"):
    table = Table("site", title="läuft · … — ✓")
    table.add_row("münchen")
    for _ in range(200):
        open_console().print(table)
    {end}
"""


def run_table(stdout: int, end: str = "", **environment: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, "-c", TABLE.format(end=end).encode("ascii", "backslashreplace").decode()],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(PROJECT), **environment},
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("end", ["", "sys.exit(0)"])
def test_a_full_output_is_one_line_and_not_a_success(end: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = run_table(full.fileno(), end)
    assert done.returncode == 1
    assert done.stderr == (b"cxr-hvd: error: standard output: cannot read or write it (No space left on device)\n")


def test_a_reader_that_has_seen_enough_is_told_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run_table(writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_an_ascii_terminal_shows_what_it_can() -> None:
    done = run_table(subprocess.PIPE, PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", LC_ALL="C")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"m?nchen" in done.stdout


def test_an_error_of_a_disk_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[int] = []
    monkeypatch.setattr("cxr_hvd.errors.leave", left.append)
    with reported("cxr-hvd"):
        Path("/nowhere/at/all").read_bytes()
    assert left == [1]
    assert capsys.readouterr().err == (
        "cxr-hvd: error: /nowhere/at/all: cannot read or write it (No such file or directory)\n"
    )
