"""Study files of different pixel pipelines are judged together only where the config allows it."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from cxr_hvd.errors import StudyFileError
from cxr_hvd.experiment.compare import list_notes
from cxr_hvd.experiment.plan import plan_experiment
from cxr_hvd.experiment.scores import NAME, read_scores, write_scores
from cxr_hvd.experiment.scoring import open_whole
from cxr_hvd.experiment.site_record import describe_sites
from cxr_hvd.experiment.variants import choose_variants
from lab.study_files import write_study_file
from tests.helpers.scores import runs_of, scores_of

ANY = ("pixel_pipelines=any",)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder of two sites whose files are of one pipeline; beside it a file of another."""
    sites = {}
    for seed, name in enumerate(("north", "south")):
        sites[name] = {"data": str(write_study_file(tmp_path / f"{name}.h5", 8, seed, site=name))}
    write_study_file(tmp_path / "east.h5", 8, 2, site="east", pixels="test-2")
    for name in sites:
        (tmp_path / "run" / name).mkdir(parents=True)
        text = yaml.safe_dump({"experiment": "D", "sites": sites, "model": {"image_size": 32}})
        (tmp_path / "run" / name / "config.yaml").write_text(text)
    return tmp_path / "run"


def test_an_institution_outside_of_another_pipeline_is_refused_unless_the_config_allows_it(run: Path) -> None:
    outside = {"east": run.parent / "east.h5"}
    said = r"east\.h5: its pixel pipeline is test-2, .*north\.h5 has test-1; .*pixel_pipelines: any"
    with ExitStack() as opened, pytest.raises(StudyFileError, match=said):
        open_whole(run, (), outside, opened)
    with ExitStack() as opened:
        assert open_whole(run, ANY, outside, opened).outside == ("east",)


def test_a_sites_file_that_has_moved_is_held_to_it_too(run: Path) -> None:
    moved = (f"sites.south.data={run.parent / 'east.h5'}",)
    with ExitStack() as opened, pytest.raises(StudyFileError, match="its pixel pipeline is test-2"):
        open_whole(run, moved, {}, opened)


def test_an_experiment_refuses_it_before_anything_is_trained(run: Path) -> None:
    config, outside = run / "north" / "config.yaml", {"east": run.parent / "east.h5"}
    with pytest.raises(StudyFileError, match="its pixel pipeline is test-2"):
        plan_experiment(config, [], choose_variants(["D"], None), 1, run.parent / "out", outside)
    plan_experiment(config, ANY, choose_variants(["D"], None), 1, run.parent / "out", outside)


def test_the_page_says_which_pipelines_are_mixed(tmp_path: Path) -> None:
    scores = scores_of(1, 0.25)
    alike = scores.origin.model_copy(update={"pixels": dict.fromkeys(("north", "south", "east"), "test-1")})
    mixed = alike.model_copy(update={"pixels": {**alike.pixels, "east": "test-2"}})
    write_scores(tmp_path / NAME, replace(scores, origin=mixed))
    assert read_scores(tmp_path / NAME).origin == mixed
    [note] = list_notes(runs_of(D=[replace(scores, origin=mixed)]))
    assert "different pixel pipelines (north test-1, south test-1, east test-2)" in note
    assert list_notes(runs_of(D=[replace(scores, origin=alike)])) == []
    assert describe_sites(tmp_path, mixed)[-1].pixels == "test-2"


def test_scores_of_before_are_read_and_know_no_pipeline(tmp_path: Path) -> None:
    write_scores(tmp_path / NAME, scores_of(1, 0.25))
    whole = (tmp_path / NAME).read_bytes()
    old = whole.replace(b'\\"schema\\": 3', b'\\"schema\\": 1').replace(b', \\"pixels\\": {}', b"")
    length = int.from_bytes(whole[:8], "little") - (len(whole) - len(old))
    (tmp_path / NAME).write_bytes(length.to_bytes(8, "little") + old[8:])
    assert read_scores(tmp_path / NAME).origin.pixels == {}
