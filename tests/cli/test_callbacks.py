"""The callbacks of `examples/` under the real libraries: two ranks, shared blocks bit-equal, private ones not.

Neither library is among the requirements (decision 26): the tests run where they are installed.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from lab.launch import PROJECT, Finished, launch, need_horovod

EXAMPLES = {"lightning": ["lightning"], "huggingface": ["transformers", "accelerate"]}
HEADS = {"lightning": ("network.classifier.",), "huggingface": ("vit.layernorm.", "classifier.")}
CASES = [(library, exchange) for library in EXAMPLES for exchange in ("weights", "gradients")]
NUM_STEPS = 20
# Calls the averager once too often at the first site only, as a loop does whose sites differ in length.
UNEQUAL = """
import runpy, sys
import cxr_hvd
average = cxr_hvd.PartialAverager.close
def close(self):
    if self._job.is_leader:
        self.average()
    average(self)
cxr_hvd.PartialAverager.close = close
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def example(library: str) -> Path:
    return PROJECT / "examples" / f"{library}_callback.py"


def start(library: str, folder: Path, launcher: str, *arguments: str) -> Finished:
    """Start an example on two ranks in a folder."""
    need_horovod()
    for name in EXAMPLES[library]:
        if not find_spec(name):
            pytest.skip(f"{name} is not installed, and is no requirement: uv pip install {name}")
    command = ["env", "-C", str(folder), sys.executable, *arguments]
    return launch(2, command, launcher, 300, HF_HUB_OFFLINE="1")


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize("library", EXAMPLES)
def test_an_example_stays_short(library: str) -> None:
    assert len(example(library).read_text(encoding="utf-8").splitlines()) < 60


@pytest.mark.slow
@pytest.mark.parametrize(("library", "exchange"), CASES)
def test_two_sites_share_all_but_their_heads(tmp_path: Path, library: str, exchange: str) -> None:
    done = start(library, tmp_path, "horovodrun", str(example(library)), exchange)
    assert done.exit_code == 0, done.output
    (north, metadata), (south, _) = (read(tmp_path / f"{site}.safetensors") for site in ("north", "south"))
    assert metadata["num_steps"] == str(NUM_STEPS) and metadata["private"] == "head"
    is_equal = {name: torch.equal(north[name], south[name]) for name in north}
    is_head = {name: name.startswith(HEADS[library]) for name in north}
    counters = {name for name in north if name.endswith("num_batches_tracked")}  # never leave a rank
    assert len(is_equal) > 6 and sum(is_head.values()) >= 2
    for name in set(is_equal) - counters:
        assert is_equal[name] is not is_head[name], name
    assert all(tensor.isfinite().all() for tensor in north.values())


@pytest.mark.slow
@pytest.mark.parametrize("library", EXAMPLES)
def test_sites_that_take_other_numbers_of_steps_are_refused(tmp_path: Path, library: str) -> None:
    done = start(library, tmp_path, "mpirun", "-c", UNEQUAL, str(example(library)), "weights")
    assert done.exit_code == 1
    assert len(done.lines("the ranks are not at the same step: ")) >= 1, done.output
    assert not done.lines("Traceback"), done.output
