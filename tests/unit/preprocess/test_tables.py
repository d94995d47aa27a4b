"""How tables and lists are read: regular files of bounded size, and what is wrong with one is said in one line."""

import gzip
import os
import re
import resource
import threading
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from cxr_hvd.errors import CxrHvdError, DataError
from cxr_hvd.study.layout import Split
from preprocess.drawn import repeat_drawn
from preprocess.identifiers import keep_id, load_key
from preprocess.records import SourceOptions, StudyListing
from preprocess.sources import SOURCES, manifest, text
from preprocess.sources.tables import read_rows
from tests.helpers.synthetic import NAME, write_chexpert, write_dicom, write_jpeg, write_mimic_cxr

YAML = """patient: p
study: p
images: {file: "{f}"}
labels: {columns: {Edema: e}}
"""
TABLE = "p,f,e\n0,a.png,1\n"


def _read(folder: Path, content: str | bytes, yaml: str = YAML, name: str = "t.csv") -> StudyListing:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "c.yaml").write_text(yaml)
    return manifest.read_studies(folder / name, SourceOptions(columns=folder / "c.yaml"))


def _zip(path: Path) -> bytes:
    with zipfile.ZipFile(path / "z", "w") as file:
        file.writestr("xl/workbook.xml", "<x/>")
    return (path / "z").read_bytes()


SAYS: dict[str, tuple[str | Callable[[Path], bytes] | bytes, str]] = {
    "latin-1": (TABLE.encode() + "1,ä.png,0\n".encode("latin-1"), r"t\.csv: expected text in UTF-8.* CSV UTF-8"),
    "utf-16": (TABLE.encode("utf-16"), r"t\.csv: .*found text in UTF-16; save it as CSV UTF-8"),
    "utf-16 without a mark": (TABLE.encode("utf-16-le"), r"t\.csv: .*found text in UTF-16; save it as CSV UTF-8"),
    "excel": (_zip, r"t\.csv: .*an Excel workbook or a ZIP archive; export it as CSV UTF-8"),
    "old excel": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), r"an Excel workbook; export it as CSV UTF-8"),
    "gzip": (gzip.compress(TABLE.encode()), r"a gzipped file; give its name the ending \.gz"),
    "a web page": (b"\n<!DOCTYPE html><html>", r"found a web page"),
    "an image": (b"\x89PNG\r\n\x1a\n", r"found an image; name the table"),
    "semicolons": (TABLE.replace(",", ";"), r'columns parted by ",", found ";"; set delimiter: ";" in c\.yaml'),
    "tabs": (TABLE.replace(",", "\t"), r'columns parted by ",", found "\\t"; set delimiter: "\\t" in c\.yaml'),
    "sep": ("sep=,\n" + TABLE, r"Excel's line 'sep='; remove the line"),
    "empty": ("", r"expected a header with a column 'p', found an empty line or table"),
    "misspelt": (
        "p,file,e\n0,a.png,1\n",
        r"expected a column 'f', nearest found: .*; name it in c\.yaml as the tab",
    ),
    "a cell without end": (
        TABLE + '1,"b.png,0\n' + "x" * 200_000,
        r"t\.csv row 3: .*131,072.*an unclosed quote\?",
    ),
    "backslashes": (
        TABLE.replace("a.png", "x\\a.png"),
        r"t\.csv row 2: expected a path with '/', found one with '\\'",
    ),
    "a folder": (TABLE.replace("a.png", "x/"), r"t\.csv row 2: expected the path of a file"),
    "blank": (TABLE.replace("a.png", ""), r"t\.csv row 2: expected the path of a file, found a blank one"),
}


@pytest.mark.parametrize("what", SAYS)
def test_what_is_wrong_with_a_table_is_said(tmp_path: Path, what: str) -> None:
    content, message = SAYS[what]
    with pytest.raises(DataError, match=message) as caught:
        _read(tmp_path, content(tmp_path) if callable(content) else content)
    assert "ROOT" not in str(caught.value) and "\n" not in str(caught.value)
    assert "leaves it" not in str(caught.value)


def test_a_published_table_with_semicolons_is_saved_again(tmp_path: Path) -> None:
    table = write_chexpert(tmp_path, 2) / NAME / "train.csv"
    table.write_text(table.read_text().replace(",", ";"))
    with pytest.raises(DataError, match=r'parted by ",", found ";"; save it with commas'):
        SOURCES["chexpert"](tmp_path, SourceOptions())


def test_rows_of_empty_cells_and_doubled_slashes_change_nothing(tmp_path: Path) -> None:
    plain = _read(tmp_path, TABLE.replace("a.png", "x/a.png"))
    for content in (
        TABLE.replace("a.png", "x/a.png") + ",,\n , ,\n,\n,,,,,\n",
        TABLE.replace("a.png", "x//a.png"),
        TABLE.replace("a.png", "./x/./a.png"),
    ):
        assert _read(tmp_path, content).studies == plain.studies


def test_hints_of_the_manifest_name_its_own_arguments(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(YAML)
    for table in (tmp_path / "none.csv", tmp_path / "none" / "t.csv", tmp_path):
        with pytest.raises(CxrHvdError, match="check TABLE") as caught:
            manifest.read_studies(table, SourceOptions(columns=tmp_path / "c.yaml"))
        assert "ROOT" not in str(caught.value)


def _fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _in_time(act: Callable[[], object]) -> BaseException | None:
    """Return what `act` raises; fail where it does not end. A thread that hangs ends with the process."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive(), "it waits for a pipe"
    return raised[0] if raised else None


def test_no_pipe_is_waited_for(tmp_path: Path) -> None:
    write_chexpert(tmp_path / "chexpert", 2)
    write_mimic_cxr(tmp_path / "mimic", 2)
    manifests = tmp_path / "manifest"
    for name in ("t.csv", "labels.csv", "list.txt"):
        (manifests / name).parent.mkdir(exist_ok=True)
        (manifests / name).write_text(TABLE)
    joined = YAML + "join: {table: labels.csv, on: p}\nsplit: {lists: {list.txt: train}}\n"
    (manifests / "c.yaml").write_text(joined)
    drawn = tmp_path / "drawn.csv"
    places = [(tmp_path / "chexpert" / NAME / f"{name}.csv", "chexpert") for name in ("train", "valid")]
    places += [(path, "mimic-cxr") for path in (tmp_path / "mimic").glob("*.gz")]
    places += [(manifests / name, "manifest") for name in ("t.csv", "labels.csv", "list.txt", "c.yaml")]
    roots = {"chexpert": tmp_path / "chexpert", "mimic-cxr": tmp_path / "mimic", "manifest": manifests / "t.csv"}
    options = SourceOptions(columns=manifests / "c.yaml")
    for path, source in places:
        content = path.read_bytes()
        _fifo(path)
        error = _in_time(partial(SOURCES[source], roots[source], options))
        assert isinstance(error, CxrHvdError) and "expected" in str(error), (path, error)
        path.unlink()
        path.write_bytes(content)
    _fifo(drawn)
    assert isinstance(_in_time(lambda: repeat_drawn(drawn, [], keep_id)), DataError)
    assert isinstance(_in_time(lambda: load_key(drawn)), DataError)


def test_no_pipe_in_a_films_place_is_waited_for(tmp_path: Path) -> None:
    root = write_mimic_cxr(tmp_path, 2, write_image=write_dicom, suffix="dcm")
    (root / "mimic-cxr-2.0.0-metadata.csv.gz").unlink()
    _fifo(next(root.rglob("*.dcm")))
    assert _in_time(lambda: SOURCES["mimic-cxr-dicom"](root, SourceOptions())) is None


@pytest.mark.parametrize("piece", [b"x", b'\n","', b","])
def test_an_endless_row_in_a_small_file_takes_little_memory(tmp_path: Path, piece: bytes) -> None:
    path = tmp_path / "t.csv.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b'p,f,e\n0,"')
        for _ in range(40):
            file.write(piece * (1_000_000 // len(piece)))
    assert path.stat().st_size < 1_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"characters"):
        list(read_rows(path, ["p", "f"]))
    # 40 MB of text as a list of cells would be gigabytes.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000


def test_a_table_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MAX_TEXT", 10_000)
    with pytest.raises(DataError, match="expected at most 10,000 characters in a table"):
        _read(tmp_path, TABLE + "\n" * 20_000)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_list_has_one_name_a_line_with_blanks_and_all(tmp_path: Path, end: str) -> None:
    for name in ("left lung.jpg", "b.jpg"):
        write_jpeg(tmp_path / name, 1)
    (tmp_path / "train.txt").write_text(f"left lung.jpg {end}{end}", newline="")
    (tmp_path / "test.txt").write_text(f"\ufeffb.jpg{end}", newline="")
    yaml = YAML + "split: {lists: {train.txt: train, test.txt: test}}\n"
    studies = _read(tmp_path, "p,f,e\n0,left lung.jpg,1\n1,b.jpg,0\n", yaml).studies
    assert [study.split for study in studies] == [Split.TRAIN, Split.TEST]
    with pytest.raises(
        DataError, match=r"row 2: expected this image.*'images\.file' of c\.yaml.*train\.txt or test"
    ):
        _read(tmp_path, "p,f,e\n0,lung.jpg,1\n", yaml)


def test_every_message_is_one_plain_line() -> None:
    for magic, kind, advice in text._KINDS:
        assert magic and re.fullmatch(r"(an?|text) .+", kind) and advice
