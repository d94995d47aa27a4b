"""Draw the house for docs/architecture.md: floors, rooms and modules, each with its first sentence.

`python tools/draw_architecture.py` prints the drawing; `--write` puts it into the page. Floors are the layers of
setup.cfg's import contracts, the highest first. What a module owns is the first sentence of its docstring.
"""

import argparse
import ast
import configparser
import re
import textwrap
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PAGE = PROJECT / "docs" / "architecture.md"
START, END = "<!-- drawing: tools/draw_architecture.py -->", "<!-- end of the drawing -->"
CONTRACTS = {"cxr_hvd": "floors", "preprocess": "preprocess"}
COLUMNS, NAME_COLUMNS = 100, 20


def read_floors(program: str) -> list[list[str]]:
    """Return a program's floors, the highest first: dotted names of the rooms and modules on each."""
    parser = configparser.ConfigParser()
    parser.read(PROJECT / "setup.cfg", encoding="utf-8")
    layers = parser[f"importlinter:contract:{CONTRACTS[program]}"]["layers"]
    return [[name.strip() for name in line.split(":")] for line in layers.split("\n") if line.strip()]


def first_sentence(path: Path) -> str:
    """Return the first sentence of a module's docstring.

    Raises:
        ValueError: for a module without one.
    """
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not docstring:
        raise ValueError(f"{path}: expected a docstring whose first sentence says what the module owns")
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return paragraph.split(". ")[0].rstrip(".:")


def shorten(sentence: str) -> str:
    """Return a sentence that is too long for a line without what follows its colon, where enough is left."""
    head = re.split(r"[:;] ", sentence)[0]
    return head if len(sentence) > COLUMNS - NAME_COLUMNS and len(head.split()) >= 4 else sentence


def draw_line(depth: int, name: str, sentence: str) -> str:
    """Return a name and what it owns, wrapped into two columns."""
    head = f"{'  ' * depth}{name}"
    return textwrap.fill(
        shorten(sentence),
        COLUMNS,
        initial_indent=f"{head:<{NAME_COLUMNS - 2}}  ",
        subsequent_indent=" " * NAME_COLUMNS,
        break_on_hyphens=False,
    )


def draw_module(path: Path, depth: int) -> list[str]:
    """Return the lines of a module, or of a room with all that is in it."""
    if path.is_file():
        return [draw_line(depth, path.stem, first_sentence(path))]
    lines = [draw_line(depth, f"{path.name}/", first_sentence(path / "__init__.py"))]
    for inner in sorted(path.iterdir(), key=lambda inner: (inner.is_dir(), inner.name)):
        if (inner.suffix == ".py" and inner.stem != "__init__") or (inner / "__init__.py").exists():
            lines += draw_module(inner, depth + 1)
    return lines


def draw_program(program: str) -> list[str]:
    """Return the lines of a program, floor by floor.

    Raises:
        ValueError: where a room or module stands on no floor, or a floor names none.
    """
    root = PROJECT / program
    floors = read_floors(program)
    rooms = {path.stem for path in root.glob("*.py")} | {path.parent.name for path in root.glob("*/__init__.py")}
    named = {name.rpartition(".")[2] for floor in floors for name in floor}
    if difference := named ^ (rooms - {"__init__"}):
        raise ValueError(f"setup.cfg: expected each room of {program} on one floor, see {', '.join(difference)}")
    lines = [draw_line(0, program, first_sentence(root / "__init__.py"))]
    for number, floor in reversed(list(enumerate(reversed(floors)))):
        lines.append(f"── {number:2} {'─' * (COLUMNS - 6)}")
        for name in floor:
            room = root / name.rpartition(".")[2]
            lines += draw_module(room if room.is_dir() else room.with_suffix(".py"), 0)
    return lines


def draw() -> str:
    """Return the drawing of both programs, as it stands in the page between its marks."""
    programs = ["\n".join(draw_program(program)) for program in CONTRACTS]
    return "\n".join([START, "~~~", "\n\n\n".join(programs), "~~~", END])


def read_drawing(page: str) -> str:
    """Return the drawing that stands in a page.

    Raises:
        ValueError: for a page without the marks.
    """
    if START not in page or END not in page:
        raise ValueError(f"expected a drawing between '{START}' and '{END}'")
    return page[page.index(START) : page.index(END) + len(END)]


def main() -> None:
    """Print the drawing, or write it into the page."""
    parser = argparse.ArgumentParser(description="Draw floors, rooms and modules for docs/architecture.md.")
    parser.add_argument("--write", action="store_true", help="put the drawing into docs/architecture.md")
    if parser.parse_args().write:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(page.replace(read_drawing(page), draw()), encoding="utf-8")
    else:
        print(draw())


if __name__ == "__main__":
    main()
