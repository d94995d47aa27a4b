"""The page docs/architecture.md tells of the code as it is: drawing, floors, modules, walks and decisions."""

import configparser
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from lab.launch import PROJECT

PAGE = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
PROGRAMS = ("cxr_hvd", "preprocess")
WALKS = re.findall(r"^### (.+?)\n(.+?)(?=^##)", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def drawing() -> ModuleType:
    """The script that draws, which is in no package."""
    path = PROJECT / "tools" / "draw_architecture.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def drawn_modules(drawing: str) -> list[str]:
    """Return the files that a drawing names, by its indents."""
    paths, rooms = [], [""] * 4
    for line in drawing.splitlines():
        if not (name := re.match(r"( *)([a-z_]\w*)(/?)(?:  |$)", line)) or len(name[1]) > 6:
            continue
        depth = len(name[1]) // 2
        if depth == 0 and name[2] in PROGRAMS:
            program = name[2]
            paths.append(f"{program}/__init__.py")
            continue
        rooms[depth] = name[2]
        path = "/".join([program, *rooms[:depth], name[2]])
        paths.append(f"{path}/__init__.py" if name[3] else f"{path}.py")
    return paths


def test_the_drawing_is_what_the_script_draws(drawing: ModuleType) -> None:
    assert drawing.read_drawing(PAGE) == drawing.draw(), "run: python tools/draw_architecture.py --write"


def test_every_module_is_drawn_once(drawing: ModuleType) -> None:
    modules = [str(path.relative_to(PROJECT)) for name in PROGRAMS for path in (PROJECT / name).rglob("*.py")]
    assert sorted(drawn_modules(drawing.read_drawing(PAGE))) == sorted(modules)


@pytest.mark.parametrize(("program", "contract"), [("cxr_hvd", "floors"), ("preprocess", "preprocess")])
def test_floors_are_the_layers_that_lint_imports_checks(drawing: ModuleType, program: str, contract: str) -> None:
    parser = configparser.ConfigParser()
    parser.read(PROJECT / "setup.cfg")
    layers = parser[f"importlinter:contract:{contract}"]["layers"].split()
    rooms = [layer.removeprefix(f"{program}.") for layer in layers if layer != ":"]
    files = [Path(path).parts for path in drawn_modules(drawing.read_drawing(PAGE))]
    drawn = [Path(parts[1]).stem for parts in files if parts[0] == program and parts[1] != "__init__.py"]
    assert list(dict.fromkeys(drawn)) == rooms


def test_every_decision_is_linked() -> None:
    decisions = {f"decisions/{path.name}" for path in (PROJECT / "docs" / "decisions").glob("*.md")}
    assert set(re.findall(r"\((decisions/[^)]+)\)", PAGE)) == decisions


def test_there_are_three_walks() -> None:
    assert [title.partition(":")[0] for title, _ in WALKS] == [
        "One study",
        "One parameter",
        "One validation AUROC",
    ]


@pytest.mark.parametrize(("title", "walk"), WALKS, ids=[title.partition(":")[0] for title, _ in WALKS])
def test_a_walk_names_each_file_once(title: str, walk: str) -> None:
    files = re.findall(r"^\d+\. `([^`]+\.py)` ", walk, re.MULTILINE)
    assert len(files) == len(re.findall(r"^\d+\. ", walk, re.MULTILINE)) == len(set(files)) > 5
    assert [name for name in files if not (PROJECT / name).is_file()] == []


def test_every_path_of_the_page_exists() -> None:
    paths = re.findall(r"`((?:cxr_hvd|preprocess|tests|docs|tools)/[^` ]*)`", PAGE)
    assert paths
    assert [path for path in paths if not (PROJECT / path).exists()] == []
