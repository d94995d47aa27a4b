"""Exchanges, key, contract, plan and ledger as a user meets them: by command, under launchers."""

import json
import os
from math import prod
from pathlib import Path

import pytest

from lab.launch import BIN, LAUNCHERS, PROJECT, Finished, launch, need_horovod, run
from lab.study_files import write_study_file
from tests.helpers.commands import cxr_here

need_horovod()

TRAIN = [str(BIN / "cxr-hvd"), "train", str(PROJECT / "jobs/configs/D.yaml")]
VERIFY = [str(BIN / "cxr-hvd"), "ledger", "verify"]
PLAN = ["plan", PROJECT / "jobs/configs/D.yaml"]
QUICK = [
    *("model.name=tiny", "model.image_size=32", "training.batch_size=4"),
    *("training.max_steps=3", "training.precision=fp32"),
]
NIGHT = (pytest.mark.slow, pytest.mark.night)
LIMIT_S = 10.0


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sites")
    for seed, site in enumerate(("chexpert", "mimic")):
        write_study_file(folder / f"{site}.h5", num_studies=24, seed=seed, site=site)
    for name in ("one", "other"):
        (folder / f"{name}.key").write_bytes(os.urandom(32))
        (folder / f"{name}.key").chmod(0o600)
    return folder


def settings(folder: Path, *more: str) -> list[str]:
    data = [f"sites.{site}.data={folder / site}.h5" for site in ("chexpert", "mimic")]
    return [word for setting in (*QUICK, *data, *more) for word in ("--set", setting)]


def launch_apart(*commands: list[str]) -> Finished:
    """Start one rank for each command, in one MPI job."""
    parts = [[*([":"] if rank else []), "-np", "1", *command] for rank, command in enumerate(commands)]
    return run([*LAUNCHERS["mpirun"], *[word for part in parts for word in part]])


@pytest.mark.parametrize(
    ("launcher", "sharing"),
    [
        ("gloo", ["sharing.exchange=gradients", "sharing.wire=bfloat16"]),
        pytest.param("mpirun", ["sharing.every=2", "sharing.wire=float16"], marks=NIGHT),
    ],
)
def test_a_run_can_be_held_against_its_ledger(
    launcher: str, sharing: list[str], sites: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "D"
    key = ["--key", str(sites / "one.key")]
    told = launch(2, [*TRAIN, "--run", str(runs), *key, *settings(sites, *sharing)], launcher)
    assert told.exit_code == 0, told.output
    assert told.lines("all ranks hold the same key")
    held = run([*VERIFY, str(runs)])
    assert held.exit_code == 0, held.output
    assert "All holds" in held.output
    ledger = runs / "mimic" / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace("float", "floot", 1))
    tampered = run([*VERIFY, str(runs)])
    assert tampered.exit_code == 1
    assert tampered.lines("FAULT mimic/ledger.jsonl")


@pytest.mark.parametrize(
    ("differs", "named"),
    [
        (["--set", "training.learning_rate=0.5"], "config.training.learning_rate"),
        pytest.param(["--set", "sharing.private=head"], "config.sharing.private", marks=NIGHT),
        pytest.param(["--set", "sharing.wire=float16"], "config.sharing.wire", marks=NIGHT),
        pytest.param(["--key", "{sites}/other.key"], "--key", marks=NIGHT),
        pytest.param([], "--key", marks=NIGHT),
    ],
)
def test_a_difference_ends_all_ranks_with_its_name_in_time(
    differs: list[str], named: str, sites: Path, tmp_path: Path
) -> None:
    common = [*TRAIN, "--run", str(tmp_path / "D"), *settings(sites)]
    keyed = ["--key", str(sites / "one.key")]
    own = [word.replace("{sites}", str(sites)) for word in differs]
    job = launch_apart([*common, *keyed], [*common, *(keyed if "--set" in own else []), *own])
    assert job.exit_code != 0
    said = [line for line in job.lines("error:") if named in line]
    assert len(said) == 2, job.output
    assert "Traceback" not in job.output
    assert not list(tmp_path.glob("D/*/checkpoints/step-*"))


def test_a_key_that_others_may_read_is_refused(sites: Path, tmp_path: Path) -> None:
    key = tmp_path / "open.key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o644)
    job = run([*TRAIN, "--site", "mimic", "--run", str(tmp_path / "D"), "--key", str(key), *settings(sites)])
    assert job.exit_code == 2
    assert job.lines("chmod 600")


def test_the_plan_says_what_a_run_will_send_and_all_else(sites: Path) -> None:
    told = cxr_here(*PLAN, *settings(sites, "sharing.every=2"))
    assert told.exit_code == 0
    for said in ("in a run of 3 steps", "every 2 steps", "the loss of the batch", "verdict"):
        assert said in told.output, said
    plan = json.loads(cxr_here(*PLAN, "--json", *settings(sites, "sharing.wire=bfloat16")).output)
    exact = json.loads(cxr_here(*PLAN, "--json", *settings(sites)).output)
    assert plan["bytes_per_step"] * 2 == exact["bytes_per_step"]
    shared = [t for t in exact["tensors"] if t["scope"] == "shared"]
    assert exact["bytes_per_exchange"] == 4 * sum(prod(t["shape"]) for t in shared)
    assert exact["bytes_per_run"] == 3 * exact["bytes_per_exchange"]
    agreed = ["--set", "training.steps_per_epoch=100", "--set", "training.epochs=2"]  # no study file is needed
    assert json.loads(cxr_here(*PLAN, "--json", *agreed).output)["num_steps"] == 200
