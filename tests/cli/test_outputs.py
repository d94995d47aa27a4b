"""What commands write: over regular files alone, a user's on request alone, and for its owner's eyes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cxr_hvd.cli import app as cli
from cxr_hvd.errors import CheckpointError, CxrHvdError, UsageError
from cxr_hvd.experiment.folder import open_folder
from cxr_hvd.experiment.plan import plan_experiment
from cxr_hvd.experiment.variants import choose_variants
from cxr_hvd.report.page import build_page, check_folder
from cxr_hvd.study.layout import Split
from cxr_hvd.training.run_folder import RunFolder
from lab.launch import Finished
from lab.study_files import write_study_file
from preprocess.cli import app as preprocess_app
from tests.helpers.commands import preprocess_command
from tests.helpers.comparisons import make_comparison
from tests.helpers.synthetic import write_chexpert
from tests.unit.monitor.test_inspect_run import write_run

CONFIG = """\
experiment: C
sites:
  north: {ranks: 1, data: north.h5}
  south: {ranks: 1, data: south.h5}
model: {name: densenet121, image_size: 64}
training: {max_steps: 2, batch_size: 2}
"""


def _here(app: Callable[[list[str]], None], *words: object) -> Finished:
    """Run a command in this process; its error is its output."""
    try:
        app([str(word) for word in words])
    except SystemExit as ended:
        return Finished(int(ended.code or 0), "", 0.0)
    except CxrHvdError as error:
        return Finished(error.exit_code, str(error), 0.0)
    return Finished(0, "", 0.0)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source, study files of two sites, a config and a run."""
    folder = tmp_path_factory.mktemp("inputs")
    write_chexpert(folder / "data")
    for site in ("north", "south"):
        write_study_file(folder / f"{site}.h5", splits=tuple(Split), site=site)
    (folder / "config.yaml").write_text(CONFIG.replace("data: ", f"data: {folder}/"))
    write_run(folder / "run")
    return folder


COMMANDS: dict[str, tuple[Callable[[list[str]], None], str, list[str]]] = {
    "preprocess": (preprocess_app, "--out", ["chexpert", "{}/data", "--keep-ids"]),
    "inspect": (preprocess_app, "--html", ["inspect", "{}/north.h5"]),
    "show-batch": (cli.app, "--out", ["show-batch", "{}/config.yaml", "--site", "north"]),
    "inspect-run": (cli.app, "--out", ["inspect-run", "{}/run"]),
    "jobs render": (cli.app, "--out", ["jobs", "render", "preprocess", "--machine", "slurm"]),
}


def _make(path: Path, kind: str) -> None:
    aside = path.with_name("aside")
    aside.write_text("a user's")
    match kind:
        case "FIFO":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "link":
            path.symlink_to(aside)
        case "link to nothing":
            path.symlink_to(path.with_name("nothing"))
        case "socket":
            os.mknod(path, 0o140600)


@pytest.mark.parametrize("kind", ["FIFO", "folder", "link", "link to nothing", "socket"])
@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_replaces_regular_files_alone(command: str, kind: str, inputs: Path, tmp_path: Path) -> None:
    app, option, words = COMMANDS[command]
    out = tmp_path / "out.png"
    _make(out, kind)
    before = out.lstat()
    told = _here(app, *(word.format(inputs) for word in words), option, out, "--overwrite")
    assert told.exit_code == 2 and kind.split()[0] in told.output and "\n" not in told.output
    assert os.path.samestat(out.lstat(), before) and (tmp_path / "aside").read_text() == "a user's"
    assert {path.name for path in tmp_path.iterdir()} == {out.name, "aside"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_users_file_is_replaced_on_request_alone(command: str, inputs: Path, tmp_path: Path) -> None:
    app, option, words = COMMANDS[command]
    out, words = tmp_path / "out.png", [word.format(inputs) for word in words]
    out.write_text("a user's")
    told = _here(app, *words, option, out)
    assert told.exit_code == 2 and "add --overwrite" in told.output
    assert out.read_text() == "a user's"
    assert _here(app, *words, option, out, "--overwrite").exit_code == 0
    assert out.read_bytes() != b"a user's" and out.stat().st_mode & 0o077 == 0


def test_the_lists_beside_a_study_file_are_outputs_too(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    for kind in ("drawn", "quarantine"):
        (beside := tmp_path / f"out.h5.{kind}.csv").write_text("a user's")
        told = _here(preprocess_app, "chexpert", inputs / "data", "--keep-ids", "--out", out)
        assert told.exit_code == 2 and f"out.h5.{kind}.csv: expected a new file" in told.output
        assert beside.read_text() == "a user's" and not out.exists()
        beside.unlink()


def test_a_report_replaces_an_earlier_report_alone(tmp_path: Path) -> None:
    for name in ("report.html", "comparison.json", "figures/fig1.png"):
        folder = tmp_path / name.replace("/", "-")
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("a user's")
        told = _here(cli.app, "report", tmp_path, "--out", folder)
        assert told.exit_code == 2 and "add --overwrite" in told.output
        check_folder(folder, overwrite=True)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.html").write_text(build_page(make_comparison(), {}), encoding="utf-8")
    check_folder(tmp_path / "report", overwrite=False)
    (tmp_path / "report" / "comparison.json").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="found a link"):
        check_folder(tmp_path / "report", overwrite=True)


def test_a_run_folder_takes_the_place_of_a_run_alone(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "north")
    folder.path.mkdir()
    (folder.path / "config.yaml").write_text("of the hospital's own software")
    (folder.path / "images").mkdir()
    for overwrite in (False, True):
        with pytest.raises(CheckpointError, match="of no run"):
            folder.open_new(overwrite)
    assert (folder.path / "images").is_dir()
    run = RunFolder(tmp_path, "south")
    run.open_new(overwrite=False)
    run.open_new(overwrite=False)  # it was stopped before it had a config
    run.write_record("config.yaml", {})
    with pytest.raises(CheckpointError, match="holds a run already"):
        run.open_new(overwrite=False)
    run.open_new(overwrite=True)
    assert not (run.path / "config.yaml").exists()


def test_an_experiment_takes_no_file_that_no_experiment_made(inputs: Path, tmp_path: Path) -> None:
    plan = plan_experiment(inputs / "config.yaml", [], choose_variants(["C"], None), 1, tmp_path)
    for name in ("experiment.json", "C/config.yaml"):
        (path := tmp_path / name).parent.mkdir(exist_ok=True)
        path.write_text('{"tool": "another"}')
        with pytest.raises(CheckpointError, match="not replaced"):
            open_folder(plan)
        assert json.loads(path.read_text()) == {"tool": "another"}
        path.unlink()
    open_folder(plan)
    open_folder(plan)


def test_what_is_made_of_patients_data_is_its_owners_whatever_the_umask(tmp_path: Path) -> None:
    data = write_chexpert(tmp_path / "data", num_patients=10)
    image = sorted(data.rglob("*.jpg"))[0]
    image.write_bytes(image.read_bytes()[:-9])
    out = tmp_path / "out"
    out.mkdir(mode=0o777)
    key = ["--key", out / "new" / "site.key", "--max-bad", "20%"]
    for words in (
        ["chexpert", data, "--out", out / "site.h5", *key],
        ["inspect", out / "site.h5", "--html", out / "page.html"],
    ):
        subprocess.run(preprocess_command(*words), check=True, capture_output=True, umask=0)
    modes = {path.name: path.stat().st_mode & 0o777 for path in out.rglob("*")}
    private = ["site.h5", "site.h5.drawn.csv", "site.h5.quarantine.csv", "page.html", "site.key"]
    assert modes == {**dict.fromkeys(private, 0o600), "new": 0o700}


@pytest.mark.parametrize("program", ["cxr_hvd.cli.app", "preprocess.cli.verbs"])
def test_both_programs_keep_what_they_make_to_their_owner(program: str, tmp_path: Path) -> None:
    """Also what libraries write: TensorBoard's files, Horovod's timeline, safetensors, logs."""
    code = f"import {program} as cli; cli.app = lambda **_: open('file', 'w'); cli.main()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, umask=0)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
