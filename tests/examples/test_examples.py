"""The examples run as their README shows them: real ranks, real networks, and what they promise."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lab.launch import PROJECT, Finished, launch, need_horovod, run
from lab.study_files import write_study_file

need_horovod()

EXAMPLES = PROJECT / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
LIMIT_S = 400


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Study files of two sites, of unequal sizes."""
    folder = tmp_path_factory.mktemp("sites")
    return [
        str(write_study_file(folder / f"{site}.h5", num_studies=24 + 12 * seed, seed=seed, site=site))
        for seed, site in enumerate("ab")
    ]


def start(script: str, arguments: list[str], launcher: str, folder: Path) -> Finished:
    """Run an example on two ranks in a folder of its own."""
    job = launch(2, [sys.executable, str(EXAMPLES / script), *arguments], launcher, LIMIT_S, folder)
    assert job.exit_code == 0, job.output
    return job


def check_networks(folder: Path, name: str, sites: tuple[str, str], is_private: Callable[[str], bool]) -> None:
    """Check that two saved networks are bit-equal but for their private tensors, each of which differs."""
    one, other = (load_file(folder / f"{name}-{site}.safetensors") for site in sites)
    assert one.keys() == other.keys()
    differing = {tensor for tensor in one if not one[tensor].equal(other[tensor])}
    private = {tensor for tensor in one if is_private(tensor) and "num_batches_tracked" not in tensor}
    assert private and differing == private


@pytest.mark.parametrize("path", SCRIPTS, ids=[path.name for path in SCRIPTS])
def test_an_example_is_short_and_listed(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) < 60
    assert f"[{path.name}]({path.name})" in (EXAMPLES / "README.md").read_text()
    shown = re.search(r"horovodrun -np 2 (python examples/.+)", path.read_text())
    assert shown and shown[1] in (EXAMPLES / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", ["horovodrun", *[pytest.param(name, marks=pytest.mark.night) for name in ("gloo", "mpirun")]]
)
def test_an_own_loop_shares_the_middle_of_its_network(launcher: str, files: list[str], tmp_path: Path) -> None:
    job = start("plain_pytorch.py", files, launcher, tmp_path)
    for site in "ab":
        assert job.lines(f"{site}: step 20/20, loss ")
    assert len(job.lines("stem")) == 1, "the leader alone prints the plan"
    ends = ("conv1.", "bn1.", "fc.")
    check_networks(tmp_path, "network", ("a", "b"), lambda name: name.startswith(ends))


@pytest.mark.slow
def test_an_own_loop_runs_alone(files: list[str], tmp_path: Path) -> None:
    job = run([sys.executable, str(EXAMPLES / "plain_pytorch.py"), files[0]], LIMIT_S, tmp_path)
    assert job.exit_code == 0, job.output
    assert job.lines("a: step 20/20, loss ")
    assert "fc.weight" in load_file(tmp_path / "network-a.safetensors")


@pytest.mark.slow
def test_a_network_of_timm_shares_its_middle_by_gradients(files: list[str], tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="timm is not installed here: uv pip install timm")
    job = start("timm_two_sites.py", files, "mpirun", tmp_path)
    for site in "ab":
        assert job.lines(f"{site}: step 20/20, loss ")
    ends = ("stem.", "stages.0.", "stages.3.", "head.")
    check_networks(tmp_path, "timm", ("a", "b"), lambda name: name.startswith(ends))


@pytest.mark.slow
def test_two_sites_read_more_digits_together_than_alone(tmp_path: Path) -> None:
    job = start("digits_two_sites.py", [], "horovodrun", tmp_path)
    way = "alone|all weights averaged|all but the norms averaged"
    rows = re.findall(rf"(north|south), ({way}): ([0-9.]+)% of all ten digits", job.output)
    accuracy = {(site, way): float(percent) for site, way, percent in rows}
    assert len(accuracy) == 6
    for site in ("north", "south"):
        together = accuracy[site, "all but the norms averaged"]
        assert together > accuracy[site, "alone"] + 2
        assert together > accuracy[site, "all weights averaged"] + 20
    check_networks(tmp_path, "digits", ("north", "south"), lambda name: name.startswith(("0.", "2.", "5.")))
