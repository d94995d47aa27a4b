"""Four experiments that are killed on the way go on, and end as those that nothing happened to."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from cxr_hvd.experiment.scores import NAME, read_scores
from lab.launch import PROJECT, environment
from tests.cli.test_experiment import LAUNCHER, PROGRAM, experiment, ok, write_sites

pytestmark = [pytest.mark.slow, pytest.mark.night]


def test_the_four_experiments_killed_on_the_way_end_with_the_scores_of_an_undisturbed_run(tmp_path: Path) -> None:
    config = write_sites(tmp_path, num_steps=30)
    words = ["A", "B", "C", "D", "--seeds", "1"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    ok(experiment(config, whole, *words, limit_s=600))

    command = [PROGRAM, "experiment", "--config", str(config), "--out", str(broken), "--launcher", LAUNCHER]
    for number, where in ((signal.SIGKILL, "B"), (signal.SIGTERM, "C")):
        with subprocess.Popen(
            [*command, *words],
            env=environment(),
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            wait_for(broken, f"{where}/seed-1/*/metrics.jsonl")
            if number == signal.SIGKILL:
                os.kill(process.pid, number)
                process.wait(60)
            else:
                process.send_signal(number)
                output, _ = process.communicate(timeout=120)
                assert process.returncode == 75, output
                assert "run the same command to go on" in output
        time.sleep(5)  # the ranks of a killed one see its end
    ok(experiment(config, broken, *words, limit_s=600))
    for path in sorted(whole.glob("*/seed-1/scores.safetensors")):
        assert path.read_bytes() == (broken / path.relative_to(whole)).read_bytes(), path
    assert len(list(whole.glob("*/seed-1/scores.safetensors"))) == 4
    assert yaml.safe_load((whole / "A" / "config.yaml").read_text())["sharing"]["private"] is None

    # A has a network for each site, C just one.
    networks = {name: read_scores(whole / name / "seed-1" / NAME).origin.networks for name in "AC"}
    assert networks == {"A": ("north", "south", "averaged"), "C": ("common",)}


def wait_for(folder: Path, pattern: str, limit_s: float = 200) -> None:
    """Wait until a file of this pattern has content."""
    deadline = time.monotonic() + limit_s
    while not any(path.stat().st_size for path in folder.glob(pattern)):
        assert time.monotonic() < deadline, f"no {pattern} in {folder}"
        time.sleep(0.2)
