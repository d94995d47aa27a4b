"""The notebook of `examples/`: its cells run, and what is committed holds no output."""

import ast
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cxr_hvd.study.layout import Split
from lab.launch import PROJECT, run
from lab.study_files import write_study_file

NOTEBOOK = PROJECT / "examples" / "read_a_study_file.ipynb"
# Runs the cells as Jupyter does: in one namespace, with the last expression of each displayed.
RUN_CELLS = """
import ast, json, sys

names = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] != "code":
        continue
    body = ast.parse("".join(cell["source"])).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), cell["id"], "exec"), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), cell["id"], "eval"), names)
        if value is not None:
            print(repr(value))
            print(value._repr_html_() if hasattr(value, "_repr_html_") else "")
"""


def code_cells() -> list[dict[str, Any]]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_what_is_committed_holds_no_output() -> None:
    cells = code_cells()
    assert len(cells) > 4
    for cell in cells:
        assert cell["outputs"] == [] and cell["execution_count"] is None
        ast.parse("".join(cell["source"]))


def test_it_stays_short() -> None:
    lines = [line for cell in code_cells() for line in "".join(cell["source"]).splitlines() if line]
    assert len(lines) < 60


@pytest.mark.slow
@pytest.mark.parametrize("file", ["phantom", "own"])
def test_its_cells_run(tmp_path: Path, file: str) -> None:
    settings = {"MPLBACKEND": "Agg", "TMPDIR": str(tmp_path)}
    if file == "own":
        splits = (Split.TRAIN, Split.TEST)
        settings["STUDY_FILE"] = str(write_study_file(tmp_path / "own.h5", splits=splits))
    done = run([sys.executable, "-c", RUN_CELLS, str(NOTEBOOK)], 120, **settings)
    assert done.exit_code == 0, done.output
    assert "StudyFile(" in done.output and "<table>" in done.output and "Study(" in done.output
    assert done.output.count("loss ") == 4
    assert done.output.count("(4, 20, 64, 64) (4, 14)") == 2
