"""`cxr-hvd onboard`: a hospital that joins later trains private blocks alone, and is judged as all others."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from cxr_hvd.comm.local import LocalComm
from cxr_hvd.config.file import load_config
from cxr_hvd.config.sections import Labels
from cxr_hvd.console import open_console
from cxr_hvd.data.loader import Batching
from cxr_hvd.data.studies import StudySet
from cxr_hvd.deploy.network import load_model
from cxr_hvd.deploy.network_file import write_network
from cxr_hvd.deploy.onboarding.config import Budget
from cxr_hvd.deploy.onboarding.onboard import OnboardingOptions, onboard
from cxr_hvd.deploy.onboarding.record import read_onboarding
from cxr_hvd.deploy.onboarding.table import print_onboarding
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile
from cxr_hvd.training.train import train
from cxr_hvd.training.validation import predict
from lab.launch import BIN, PROJECT, launch, need_horovod, run
from lab.study_files import write_study_file
from tests.helpers.commands import cxr_here

SPLITS = (Split.TRAIN, Split.VALIDATE, Split.TEST)
SITES = {"chexpert": ("Fracture",), "mimic": ("Fracture", "Pneumonia")}
"""What each site's source says nothing of."""

CONFIG = PROJECT / "jobs/configs/D.yaml"
SMALL = ["model.name=tiny", "model.image_size=32", "training.batch_size=4", "training.max_steps=2"]
SMALL += ["training.precision=fp32", "validation.every_epochs=0"]
PRIVATE = ("conv0", "norm0", "denseblock1", "denseblock4", "norm5", "classifier")
BUDGET = Budget(steps=8, batch_size=4, learning_rate=0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sites' networks, a third site's study file, and what came of its onboarding.

    The two trained without ranks: their shared blocks are frozen, and so alike at both.
    """
    folder = tmp_path_factory.mktemp("onboard")
    for seed, (site, unknown) in enumerate(SITES.items()):
        write_study_file(folder / f"{site}.h5", 24, seed, SPLITS, unknown, site=site)
    write_study_file(folder / "third.h5", 96, 7, SPLITS, site="third")
    frozen = "model.freeze=[denseblock2, denseblock3, 'transition*']"
    data = [f"sites.{site}.data={folder / site}.h5" for site in SITES]
    for site in SITES:
        train(load_config(CONFIG, [*SMALL, *data, frozen]).alone(site), folder / "D", LocalComm())
    onboard(folder / "D", folder / "third.h5", OnboardingOptions(folder / "third", budget=BUDGET))
    return folder


def command(folder: Path, *more: object, out: str = "third", source: str = "D") -> list[object]:
    """Return the words of the same onboarding as a command."""
    words: list[object] = ["onboard", folder / source, "--data", folder / "third.h5", "--run", folder / out]
    return [*words, "--steps", 8, "--batch-size", 4, "--learning-rate", 0.01, *more]


def tensors_of(site: Path, name: str = "latest") -> dict[str, torch.Tensor]:
    checkpoint = site / "checkpoints" / name
    return load_file(checkpoint / "shared.safetensors") | load_file(checkpoint / "private.safetensors")


def is_private(name: str) -> bool:
    return any(part in name for part in PRIVATE)


def test_private_blocks_alone_are_trained_from_the_others_mean(folder: Path) -> None:
    """Shared blocks stay bit for bit, running statistics among them; nothing leaves the site."""
    others = [tensors_of(folder / "D" / site) for site in SITES]
    start, after = load_file(folder / "third" / "start.safetensors"), tensors_of(folder / "third" / "third")
    for name, tensor in after.items():
        if not tensor.is_floating_point():
            continue
        if is_private(name):
            assert not torch.equal(tensor, start[name]), name
            torch.testing.assert_close(start[name], (others[0][name] + others[1][name]) / 2)
        else:
            assert torch.equal(tensor, others[0][name]) and torch.equal(tensor, others[1][name]), name
    ledger = (folder / "third" / "third" / "ledger.jsonl").read_text()
    assert not [entry for line in ledger.splitlines() for entry in json.loads(line).get("entries", [])]


def test_networks_are_worth_what_evaluation_says(folder: Path) -> None:
    """Also the mean of answers; a label that a network was never trained on counts as 0.5 there."""
    record = read_onboarding(folder / "third" / "onboarding.json")
    assert record.labels and set(record.labels_of_others) == set(record.labels) - {"Fracture"}
    networks = {site: load_model(folder / "D" / site) for site in SITES}
    networks |= {name: load_model(folder / "D", name) for name in ("ensemble", "averaged")}
    networks |= {"onboarded": load_model(folder / "third")}
    networks |= {"from nothing": load_model(folder / "third" / "from-nothing")}
    never = {**SITES, "ensemble": ("Fracture",), "averaged": ("Fracture",)}
    with StudyFile(folder / "third.h5") as file:
        studies = StudySet([file], Split.TEST, Labels().policy(LABELS))
        for name, network in networks.items():
            scores_NL = predict(network.model, studies, np.arange(len(studies)), Batching(4, 32))
            expected = {}
            for label in record.labels:
                targets_N, scores_N = (rows[:, LABELS.index(label)] for rows in (studies.targets, scores_NL))
                known_N = studies.known[:, LABELS.index(label)]
                auroc = roc_auc_score(targets_N[known_N], scores_N[known_N])
                expected[label] = 0.5 if label in never.get(name, ()) else auroc
            judged = record.network(name)
            assert judged is not None
            near = (
                0.01 if name == "ensemble" else 1e-6
            )  # its probabilities go through logits, where close ones tie
            assert judged.of_site.value == pytest.approx(np.mean(list(expected.values())), abs=near), name
            of_others = [expected[label] for label in record.labels_of_others]
            assert judged.of_others.value == pytest.approx(np.mean(of_others), abs=near), name
            for label, estimate in judged.labels.items():
                assert estimate.value == pytest.approx(expected[label], abs=near)
                assert estimate.low is not None and estimate.low <= expected[label] + near
    best = max((judged for judged in record.networks if judged.kind == "other"), key=lambda n: n.validation or 0)
    assert record.best_other == best.network


def test_it_says_what_follows_and_how_little(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = read_onboarding(folder / "third" / "onboarding.json")
    print_onboarding(record, open_console())
    output = capsys.readouterr().out
    assert "third: 32 TEST studies of 32 patients; 8 steps of 4, 32 training studies" in output
    for sentence in record.advice:
        assert sentence in output
    assert "a rule of thumb" in record.advice[-1] and "For Fracture only networks" in " ".join(record.advice)


@pytest.mark.slow
def test_it_goes_on_and_prints_the_same_as_json(folder: Path) -> None:
    """Nothing is trained twice, and an earlier onboarding is not replaced unasked."""
    weights = folder / "third/third/checkpoints/latest/private.safetensors"
    before = weights.stat().st_mtime_ns
    job = run([str(BIN / "cxr-hvd"), *map(str, command(folder, "--resume", "auto", "--json"))])
    assert job.exit_code == 0, job.output
    line = next(line for line in job.output.splitlines() if line.startswith("{"))
    assert json.loads(line) == json.loads((folder / "third" / "onboarding.json").read_text())
    assert weights.stat().st_mtime_ns == before
    assert cxr_here(*command(folder)).exit_code == 2


def test_shared_blocks_alone_are_onboarded_with_fresh_private_ones(folder: Path) -> None:
    """From a file that holds no site's private blocks; one more block is trained because the user asks for it."""
    network = load_model(folder / "D" / "mimic")
    tensors = network.model.state_dict()
    record = network.record.model_copy(update={"private_blocks": ["stem", "denseblock1", "denseblock4", "head"]})
    network = type(network)(network.model, record, network.source)
    write_network(folder / "shared.safetensors", network, {n: t for n, t in tensors.items() if not is_private(n)})
    options = OnboardingOptions(folder / "of-file", more_private=["transition3"], budget=BUDGET)
    judged = onboard(folder / "shared.safetensors", folder / "third.h5", options)
    after = tensors_of(folder / "of-file" / "third")
    for name, tensor in after.items():
        if not is_private(name) and tensor.is_floating_point():
            assert torch.equal(tensor, tensors[name]) is ("transition3" not in name), name
    assert [network.network for network in judged.networks] == ["onboarded", "from nothing"]
    assert judged.best_other is None and judged.labels_of_others == judged.labels


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (("--site", "mimic"), "--site mimic: expected a name that none of chexpert, mimic has"),
        (("--private", "denseblok2"), "--private: 'denseblok2' matches no block and no tensor; did you mean"),
        (("--private", "all"), "expected a network with shared blocks, found none"),
        (("--epochs", "1"), "--steps and --epochs both say how long"),
        (("--data", "pixels.h5"), "expected images of pixel pipeline test-1, which"),
        (("--data", "labels.h5"), "in its order, found others"),
        (("--data", "unjudged.h5"), "expected VALIDATE studies, found none"),
        (("--data", "untrained.h5"), "expected training studies, found none"),
        (("--data", "nothing.h5"), "nothing.h5"),
    ],
)
def test_what_does_not_fit_is_one_line(folder: Path, more: tuple[str, str], line: str) -> None:
    files: dict[str, dict[str, object]] = {
        "pixels.h5": {"pixels": "test-2"},
        "labels.h5": {"label_names": LABELS[::-1]},
        "unjudged.h5": {"splits": (Split.TRAIN, Split.TEST)},
        "untrained.h5": {"splits": (Split.VALIDATE, Split.TEST)},
    }
    if more[1] in files:
        write_study_file(folder / more[1], 12, site="third", **{"splits": SPLITS, **files[more[1]]})  # type: ignore[arg-type]
    words = [folder / word if word.endswith(".h5") else word for word in more]
    job = cxr_here(*command(folder, *words, out="wrong"))
    assert job.exit_code != 0 and line in job.output, job.output
    assert job.output.count("cxr-hvd: error") == 1 and not (folder / "wrong" / "third").exists()


def test_nothing_private_is_nothing_to_onboard(folder: Path) -> None:
    """A network that all sites share is to be used as it is, unless blocks of it are named."""
    one = ["sharing.private=none", f"sites={{chexpert: {{data: {folder / 'chexpert.h5'}}}}}"]
    train(load_config(CONFIG, [*SMALL, *one]), folder / "C", LocalComm())
    job = cxr_here(*command(folder, out="of-C", source="C"))
    assert job.exit_code == 2 and "expected a network with private blocks, found none" in job.output
    assert "with cxr-hvd predict, or name blocks to train with --private head" in job.output


@pytest.mark.slow
def test_it_joins_a_run_from_its_own_network(folder: Path) -> None:
    """Each site goes on from its own private blocks; shared ones are bit-equal at all three."""
    need_horovod()
    third = "  third: {ranks: 1, data: third.h5}\n  mimic:"
    (folder / "three.yaml").write_text(CONFIG.read_text().replace("  mimic:", third))
    networks = {"chexpert": folder / "D/chexpert", "third": folder / "third", "mimic": folder / "D/mimic"}
    settings = [*SMALL, "training.learning_rate=1e-12", "training.optimizer=sgd", "training.weight_decay=0"]
    settings += [f"sites.{site}.data={folder / site}.h5" for site in networks]
    joint: list[str] = []
    for network in networks.values():
        words = [word for s in (*settings, f"model.weights={network}") for word in ("--set", s)]
        start = [str(BIN / "cxr-hvd"), "train", str(folder / "three.yaml"), "--run", str(folder / "joint"), *words]
        joint += [":", "-np", "1", *start] if joint else start
    job = launch(1, joint, limit_s=300)
    assert job.exit_code == 0, job.output
    after = {site: tensors_of(folder / "joint" / site) for site in networks}
    before = {"third": tensors_of(folder / "third/third", "best"), "mimic": tensors_of(folder / "D/mimic")}
    for name, tensor in after["third"].items():
        if not is_private(name):
            assert torch.equal(tensor, after["chexpert"][name]) and torch.equal(tensor, after["mimic"][name])
        elif "running" not in name and tensor.is_floating_point():
            for site, tensors in before.items():
                torch.testing.assert_close(after[site][name], tensors[name], rtol=0, atol=1e-6)
