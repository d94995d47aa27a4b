"""The command line from hospital folder to study file: what it writes, prints and refuses."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cxr_hvd.study.study_file import StudyFile
from lab.launch import run
from preprocess.cli.sources import VERBS
from preprocess.pixels import pipelines
from preprocess.records import SourceOptions
from preprocess.sources import SOURCES
from tests.helpers.commands import preprocess_command, preprocess_here
from tests.helpers.synthetic import NAME, write_chexpert, write_csv, write_jpeg, write_mimic_cxr

WRITERS = {"chexpert": write_chexpert, "mimic-cxr": write_mimic_cxr}


@pytest.fixture(autouse=True)
def _own_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.parametrize("source", WRITERS)
def test_the_file_holds_the_folder(tmp_path: Path, source: str) -> None:
    WRITERS[source](tmp_path / "data")
    out = tmp_path / "out.h5"
    job = preprocess_here(source, tmp_path / "data", "--out", out, "--keep-ids", "--site", "north")
    assert job.exit_code == 0, job.output
    studies = {study.study_id: study for study in SOURCES[source](tmp_path / "data", SourceOptions()).studies}
    with StudyFile(out) as file:
        assert (file.header.site, file.header.source, file.header.pixels) == ("north", source, pipelines.RASTER)
        assert sorted(file.study_ids) == sorted(studies)
        for index, study_id in enumerate(file.study_ids):
            study = studies[study_id]
            np.testing.assert_array_equal(file.images(index), pipelines.load_study(study, 256))
            np.testing.assert_array_equal(file.labels[index], np.float32(study.labels))
            views = [image.view for image in study.images]
            assert file.views[index].tolist() == [*views, *[0] * (20 - len(views))]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_no_identifier_in_the_file_or_the_output(tmp_path: Path) -> None:
    write_chexpert(tmp_path / "data")
    out = tmp_path / "out.h5"
    job = preprocess_here("chexpert", tmp_path / "data", "--out", out)
    content = out.read_bytes()
    for written in (content, job.output.encode()):
        assert b"patient0" not in written
    assert str(tmp_path / "data").encode() not in content
    key = tmp_path / "config" / "cxr-hvd" / "chexpert.key"
    assert f"{key}" in job.output and key.stat().st_mode & 0o777 == 0o600 and len(key.read_bytes()) == 32
    assert key.read_bytes() not in content


def test_ids_stay_equal_under_a_key_and_differ_between_keys(tmp_path: Path) -> None:
    write_chexpert(tmp_path / "data")
    ids = []
    for name, key in (("a", "one"), ("b", "one"), ("c", "two")):
        out = tmp_path / f"{name}.h5"
        preprocess_here("chexpert", tmp_path / "data", "--out", out, "--key", tmp_path / key)
        with StudyFile(out) as file:
            ids.append(list(file.patient_ids))
    assert ids[0] == ids[1]
    assert not set(ids[0]) & set(ids[2])
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids[0])


def test_counts_seed_and_json(tmp_path: Path) -> None:
    write_chexpert(tmp_path / "data")
    counts = ("--train", 9, "--validate", 3, "--test", 4)
    results: list[dict[str, Any]] = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        out = tmp_path / f"{name}.h5"
        more = (*counts, "--seed", seed, "--json", "--keep-ids")
        job = preprocess_here("chexpert", tmp_path / "data", "--out", out, *more)
        results.append(json.loads(job.output))
    assert [results[0]["splits"][split]["studies"] for split in ("train", "validate", "test")] == [9, 3, 4]
    assert results[0]["digest"] == results[1]["digest"] != results[2]["digest"]


def test_a_drawn_list_repeats_the_draw(tmp_path: Path) -> None:
    write_chexpert(tmp_path / "data")
    ids = []
    draws = (("--train", 7, "--test", 4, "--seed", 3), ("--drawn", tmp_path / "a.h5.drawn.csv", "--seed", 8))
    for name, more in zip("ab", draws, strict=True):
        job = preprocess_here("chexpert", tmp_path / "data", "--out", tmp_path / f"{name}.h5", *more)
        assert job.exit_code == 0, job.output
        with StudyFile(tmp_path / f"{name}.h5") as file:
            ids.append([*file.study_ids, *file.splits])
    assert ids[0] == ids[1] and len(ids[0]) == 22
    assert (tmp_path / "a.h5.drawn.csv").read_bytes() == (tmp_path / "b.h5.drawn.csv").read_bytes()
    assert "balance of what was drawn" in job.output and "as drawn before (11 studies listed)" in job.output
    assert "patient0" not in (tmp_path / "a.h5.drawn.csv").read_text()
    more = ("--drawn", tmp_path / "a.h5.drawn.csv", "--key", tmp_path / "none.key")
    other = preprocess_here("chexpert", tmp_path / "data", "--out", tmp_path / "c.h5", *more)
    assert other.exit_code == 1 and "expected a key file" in other.output


def test_inspect_and_verify(tmp_path: Path) -> None:
    write_mimic_cxr(tmp_path / "data")
    out = tmp_path / "out.h5"
    preprocess_here("mimic-cxr", tmp_path / "data", "--out", out)
    shown = preprocess_here("inspect", out)
    assert shown.exit_code == 0
    for word in ("validate", "images per study", "LATERAL", "Pleural Effusion", "uncertain"):
        assert word in shown.output
    assert json.loads(preprocess_here("inspect", out, "--json").output)["files"][0]["source"] == "mimic-cxr"
    assert "all as they were written" in preprocess_here("verify", out).output
    content = bytearray(out.read_bytes())
    with StudyFile(out) as file:
        page = file.images(2)[0].tobytes()
    content[content.index(page) + 9] ^= 1
    out.write_bytes(content)
    damaged = preprocess_here("verify", out)
    assert damaged.exit_code == 1
    assert damaged.lines("error:") == [
        line for line in damaged.output.splitlines() if "image 0 of study 2" in line
    ]


def test_an_earlier_file_stays_until_overwrite_succeeds(tmp_path: Path) -> None:
    data, out = write_chexpert(tmp_path / "data"), tmp_path / "out.h5"
    preprocess_here("chexpert", data, "--out", out)
    before = out.read_bytes()
    refused = preprocess_here("chexpert", data, "--out", out)
    assert refused.exit_code == 2 and "add --overwrite" in refused.output
    image = sorted((data / NAME / "train").rglob("*.jpg"))[-1]
    image.write_bytes(image.read_bytes()[:-9])
    failed = preprocess_here("chexpert", data, "--out", out, "--overwrite")
    assert failed.exit_code == 1 and len(failed.lines("error:")) == 1 and "to be bad, found 1" in failed.output
    assert out.read_bytes() == before
    whole = image.read_bytes()
    image.unlink()
    assert preprocess_here("chexpert", data, "--out", out, "--overwrite").exit_code == 1
    assert out.read_bytes() == before
    image.write_bytes(whole)
    assert preprocess_here("chexpert", data, "--out", out, "--overwrite", "--max-bad", "5%").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith(".csv")) == [
        "config",
        "data",
        "out.h5",
    ]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--train", 0], 2, "expected 1 or more studies for train, found 0: empty split"),
        (["--train", 3, "--validate", 0, "--test", 3], 2, "empty split"),
        (["--train", 300, "--validate", 2, "--test", 3], 1, "expected 300 studies for train"),
        (["--site", "../up"], 2, "--site: expected letters"),
        (["--out", "/nowhere/at/all.h5"], 2, "expected an existing folder"),
        (["--train", "many"], 2, "not a valid integer|valid integer"),
    ],
)
def test_bad_usage(tmp_path: Path, arguments: list[object], exit_code: int, message: str) -> None:
    write_chexpert(tmp_path / "data")
    job = preprocess_here("chexpert", tmp_path / "data", "--out", tmp_path / "out.h5", *arguments)
    assert (job.exit_code, "Traceback" in job.output) == (exit_code, False)
    assert re.search(message, job.output)
    assert not (tmp_path / "out.h5").exists()


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    write_chexpert(tmp_path / "data")
    key = tmp_path / "key"
    key.write_bytes(bytes(32))
    key.chmod(0o644)
    job = preprocess_here("chexpert", tmp_path / "data", "--out", tmp_path / "o.h5", "--key", key)
    assert job.exit_code == 1 and "chmod 600" in job.output


def _write_table(folder: Path, num: int = 10) -> Path:
    write_csv(folder / "t.csv", [["p", "path", "Edema"], *[[str(n), f"{n}.jpg", str(n % 2)] for n in range(num)]])
    for number in range(num):
        write_jpeg(folder / f"{number}.jpg", number)
    return folder / "t.csv"


def test_manifest_asks_for_a_site_and_writes_a_draft_without(tmp_path: Path) -> None:
    table, out, columns = _write_table(tmp_path), tmp_path / "o.h5", tmp_path / "y.yaml"
    written = preprocess_here("manifest", table, "--draft", columns)
    assert written.exit_code == 0 and "replace CHANGE-ME" in written.output and not out.exists()
    again = preprocess_here("manifest", table, "--draft", columns)
    assert again.exit_code == 2 and "add --overwrite" in again.output
    columns.write_text(columns.read_text().replace("CHANGE-ME", "p"))
    for left_out, message in (
        ("--site", "--site: expected the site's name"),
        ("--out", "--out: expected the study"),
    ):
        options = {"--out": out, "--site": "north", "--columns": columns}
        del options[left_out]
        refused = preprocess_here("manifest", table, *[part for option in options.items() for part in option])
        assert refused.exit_code == 2 and message in refused.output and not out.exists()
    job = preprocess_here("manifest", table, "--columns", columns, "--out", out, "--site", "north", "--keep-ids")
    assert job.exit_code == 0, job.output
    with StudyFile(out) as file:
        assert file.header.site == "north" and len(file) == 10


def test_rows_said_twice_and_studies_without_labels_are_counted_in_the_summary(tmp_path: Path) -> None:
    table = _write_table(tmp_path)
    (tmp_path / "labels.csv").write_text("p,e\n" + "".join(f"{number},1\n" for number in [*range(9), 3]))
    (tmp_path / "y.yaml").write_text(
        'patient: p\nstudy: p\nimages: {file: "{path}"}\nlabels: {columns: {Edema: e}}\n'
        "join: {table: labels.csv, on: p}\nnegative: {column: shades, values: [MONOCHROME1]}\n"
    )
    command = ["manifest", table, "--columns", tmp_path / "y.yaml", "--site", "north", "--keep-ids"]
    output = preprocess_here(*command, "--out", tmp_path / "o.h5").output
    assert "left out: 1 rows that say once more" in output and "left out: 1 studies without a label row" in output
    assert "note: t.csv has no column 'shades'" in output
    refused = preprocess_here(*command, "--out", tmp_path / "p.h5", "--max-unlabelled", "5%", "--max-bad", "0")
    assert refused.exit_code == 0
    (tmp_path / "labels.csv").write_text("p,e\n" + "".join(f"{number}.0,1\n" for number in range(10)))
    refused = preprocess_here(*command, "--out", tmp_path / "q.h5")
    assert refused.exit_code == 1 and "10 of 10 studies have no labels" in refused.output


def test_a_table_without_rows_is_said(tmp_path: Path) -> None:
    table = _write_table(tmp_path, 0)
    (tmp_path / "y.yaml").write_text(
        'patient: p\nstudy: p\nimages: {file: "{path}"}\nlabels: {columns: {Edema: Edema}}\n'
    )
    job = preprocess_here(
        "manifest", table, "--columns", tmp_path / "y.yaml", "--out", tmp_path / "o.h5", "--site", "n"
    )
    assert job.exit_code == 1 and "expected rows of images below the header, found none" in job.output


def test_an_error_of_the_process_is_one_line_and_its_exit_code(tmp_path: Path) -> None:
    job = run(preprocess_command("chexpert", tmp_path, "--out", tmp_path / "out.h5"), 60)
    assert job.exit_code == 1
    assert job.output.startswith("cxr-preprocess: error: ") and job.output.count("\n") == 1


def test_help_has_an_example_for_each_verb() -> None:
    for verb in (*(verb.name for verb in VERBS), "phantom", "inspect", "verify", "compare"):
        job = preprocess_here(verb, "--help")
        assert job.exit_code == 0 and "Example:" in job.output
        text = " ".join(job.output.split())
        assert all(code in text for code in ("Exit codes: 0 done", "1 failed", "2 wrong usage", "75 stopped")), (
            text
        )


def test_a_user_without_a_home_is_asked_for_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container, for example: no HOME, and no entry of this user."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    data, out = write_chexpert(tmp_path / "data"), tmp_path / "out.h5"
    job = preprocess_here("chexpert", data, "--out", out)
    assert job.exit_code == 2 and "name a file with --key" in job.output
    assert preprocess_here("chexpert", data, "--out", out, "--key", tmp_path / "site.key").exit_code == 0


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    probe = (
        "import sys, preprocess.cli; print(sorted({'torch', 'h5py', 'cv2', 'mpi4py', 'numpy'} & set(sys.modules)))"
    )
    assert run(["python", "-c", probe]).output.strip() == "[]"


@pytest.mark.parametrize(
    ("source", "folder"), [("chexpert", "site-nih"), ("mimic-cxr", "site-guangzhou/mimic-cxr-jpg")]
)
def test_real_sites_become_study_files(real_data: Path, tmp_path: Path, source: str, folder: str) -> None:
    out = tmp_path / "out.h5"
    counts = ("--train", 60, "--validate", 10, "--test", 20)
    job = preprocess_here(source, real_data / folder, "--out", out, *counts)
    assert job.exit_code == 0, job.output
    with StudyFile(out) as file:
        assert len(file) == 90
        assert 40 < file.images(0).mean() < 220
