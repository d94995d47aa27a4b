"""An export: whole or not at all, the same bytes each time, and nothing private in it unless asked for."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cxr_hvd.deploy.card.run_facts import RunFacts
from cxr_hvd.deploy.combine import average_networks, ensemble_networks
from cxr_hvd.deploy.export import onnx_file
from cxr_hvd.deploy.export.check import (
    CheckStudies,
    Program,
    check_program,
    largest_difference,
    studies_of_file,
    synthetic_studies,
)
from cxr_hvd.deploy.export.export import export_network, shared_tensors
from cxr_hvd.deploy.export.options import ExportOptions, check_folder, read_licence
from cxr_hvd.deploy.network import load_model
from cxr_hvd.deploy.network_file import read_network_file
from cxr_hvd.deploy.trained_network import TrainedNetwork
from cxr_hvd.errors import CxrHvdError, UsageError
from cxr_hvd.models.layout import block_of
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import Split
from lab.study_files import write_study_file
from tests.helpers.networks import PRIVATE, SHARED, SITES, tiny_network

SHARED_ALONE = ExportOptions()
WHOLE = ExportOptions(with_private=True, has_programs=False)
KNOWN = list(LABELS[:-2])


def export(network: TrainedNetwork, folder: Path, options: ExportOptions = SHARED_ALONE) -> Path:
    return export_network(network, RunFacts(), folder, options).folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def metadata(folder: Path) -> dict[str, object]:
    known: dict[str, object] = json.loads((folder / "configs" / "metadata.json").read_text())["cxr_hvd"]
    return known


def as_program(network: TrainedNetwork) -> Program:
    """Return the network as a program, without `torch.export`."""
    is_trained = np.array([network.is_trained(label) for label in network.label_names])

    def run(images_NCHW: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            probabilities_NL = torch.sigmoid(network.model(torch.from_numpy(images_NCHW))).numpy()
        return np.where(is_trained, probabilities_NL, np.nan)

    return run


def test_without_leave_no_private_tensor_and_no_threshold_is_in_it(tmp_path: Path) -> None:
    network = tiny_network()
    folder = export(network, tmp_path / "out")
    tensors = load_file(folder / "network.safetensors")
    assert {block_of(name) for name in tensors} == set(SHARED)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, network.model.state_dict()[name])
    record, _ = read_network_file(folder / "network.safetensors")
    assert record.thresholds == {} and metadata(folder)["network"]["thresholds"] == {}  # type: ignore[index]
    assert metadata(folder)["private_blocks_of"] == []
    files = ["LICENSE", "README.md", "card.html", "configs/metadata.json", "docs/README.md", "network.safetensors"]
    assert sorted(content(folder)) == files
    assert "This folder holds no private block" in (folder / "README.md").read_text()
    with pytest.raises(CxrHvdError, match="found none of its private blocks"):
        load_model(folder)


def test_with_leave_it_is_the_network_and_says_whose_private_blocks_it_holds(tmp_path: Path) -> None:
    network = tiny_network("south", trained_labels=KNOWN)
    folder = export(network, tmp_path / "out", WHOLE)
    loaded = load_model(folder)
    assert loaded.record == network.record
    for name, tensor in network.model.state_dict().items():
        assert torch.equal(tensor, loaded.model.state_dict()[name])
    assert metadata(folder)["private_blocks_of"] == ["south"]
    assert metadata(folder)["never_trained"] == list(LABELS[-2:])
    card = (folder / "README.md").read_text()
    assert "holds the private blocks of south, as they were trained there" in card
    assert f"Never trained, and so without an answer: {', '.join(LABELS[-2:])}" in card


def test_an_average_says_that_it_holds_the_private_blocks_of_all(tmp_path: Path) -> None:
    averaged = average_networks([tiny_network(site) for site in SITES])
    folder = export(averaged, tmp_path / "out", WHOLE)
    assert metadata(folder)["private_blocks_of"] == list(SITES)
    assert "private blocks of north and south, as their mean" in (folder / "README.md").read_text()
    for refused in (averaged, ensemble_networks([tiny_network(site) for site in SITES])):
        with pytest.raises(UsageError, match="expected --with-private, since it is made of the private blocks"):
            export(refused, tmp_path / "other")


def test_the_same_network_gives_the_same_bytes_digests_are_right_and_only_the_owner_reads(tmp_path: Path) -> None:
    one, two = (export(tiny_network(), tmp_path / name, WHOLE) for name in ("one", "two"))
    assert content(one) == content(two)
    digests = metadata(one)["sha256"]
    assert digests == {
        name: hashlib.sha256(held).hexdigest()
        for name, held in sorted(content(one).items())
        if name != "configs/metadata.json"
    }
    for path in (one, *one.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    assert not [name for name, held in content(one).items() if str(tmp_path).encode() in held]


def test_what_fails_leaves_nothing_and_an_earlier_export_stays_whole(tmp_path: Path) -> None:
    options = ExportOptions(with_private=True, check=tmp_path / "none.h5")
    with pytest.raises(CxrHvdError):
        export(tiny_network(), tmp_path / "out", options)
    assert list(tmp_path.iterdir()) == []
    before = content(export(tiny_network(), tmp_path / "out"))
    with pytest.raises(CxrHvdError):
        export_network(tiny_network(), RunFacts(), tmp_path / "out", options, overwrite=True)
    assert content(tmp_path / "out") == before and list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_only_an_earlier_export_is_replaced(tmp_path: Path) -> None:
    folder = export(tiny_network(), tmp_path / "out")
    with pytest.raises(UsageError, match="add --overwrite"):
        check_folder(folder, overwrite=False)
    check_folder(folder, overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "file").write_text("mine")
    for name in ("mine", "link", "file"):
        with pytest.raises(UsageError, match="found something else, which is not replaced"):
            check_folder(tmp_path / name, overwrite=True)


def test_a_block_is_private_as_a_whole_where_no_checkpoint_says_more() -> None:
    assert {block_of(name) for name in shared_tensors(tiny_network())} == set(SHARED)
    with pytest.raises(UsageError, match="found none: all of this network is private to north"):
        shared_tensors(tiny_network(private_blocks=[*SHARED, *PRIVATE]))


def test_padding_to_20_channels_changes_no_probability_and_silence_on_a_label_is_nan() -> None:
    for network in (
        tiny_network(trained_labels=KNOWN),
        ensemble_networks([tiny_network("north", trained_labels=KNOWN), tiny_network("south")]),
    ):
        studies = synthetic_studies(32)
        assert sorted({len(images) for images in studies.images}) == list(range(1, 12))
        assert largest_difference(network, as_program(network), studies) < 1e-6
    silent = tiny_network(trained_labels=KNOWN)
    speaks = as_program(tiny_network())
    assert largest_difference(silent, speaks, synthetic_studies(32)) == np.inf


@pytest.mark.parametrize("fault", [2e-4, np.nan])
def test_one_wrong_probability_in_one_study_is_refused(fault: float) -> None:
    network = tiny_network()
    studies = CheckStudies("studies", synthetic_studies(32).images[-5:])

    def run(images_NCHW: np.ndarray) -> np.ndarray:
        probabilities_NL = as_program(network)(images_NCHW)
        probabilities_NL[-1, 3] += fault if len(images_NCHW) == 1 else 0
        return probabilities_NL

    path = Path("model.onnx")
    assert check_program(network, path, as_program(network), ("R", "1"), studies).num_studies == 5
    with pytest.raises(CxrHvdError, match=r"model.onnx: expected probabilities within 0.0001 of PyTorch's on 5"):
        check_program(network, path, run, ("R", "1"), studies)


def test_programs_are_checked_on_test_studies_of_a_file_else_validation(tmp_path: Path) -> None:
    splits = (Split.TRAIN, Split.VALIDATE, Split.TEST)
    with_test = studies_of_file(write_study_file(tmp_path / "a.h5", 210, 0, splits))
    assert (with_test.name, len(with_test.images)) == ("TEST studies of north", 64)
    without = studies_of_file(write_study_file(tmp_path / "b.h5", 9, 0, splits[:2]))
    assert (without.name, len(without.images)) == ("VALIDATE studies of north", 4)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "NEEDED", ("json", "onnx_of_mars"))
    with pytest.raises(UsageError, match=r"found no onnx_of_mars: pip install 'cxr_hvd\[export\]'"):
        onnx_file.check_extra()


def test_a_licence_is_an_identifier() -> None:
    assert (read_licence("CC-BY-4.0"), read_licence(None)) == ("cc-by-4.0", None)
    with pytest.raises(UsageError, match="expected an identifier"):
        read_licence("do what\nyou want")
