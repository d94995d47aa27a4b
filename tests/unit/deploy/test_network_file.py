"""A network as one file: what is read is what was written, and nothing of a stranger's file is run or believed."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import cxr_hvd
from cxr_hvd.deploy.network_file import NETWORK_FILE, read_network, write_network
from cxr_hvd.errors import CxrHvdError
from cxr_hvd.models.layout import block_of
from cxr_hvd.models.weights import read_weights
from cxr_hvd.study.labels import LABELS
from cxr_hvd.training.network_record import METADATA_KEY
from tests.helpers.networks import PRIVATE, noise, record_of, tiny_network


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    """Alone, in an export's folder, and as a start of another network."""
    network = tiny_network()
    write_network(tmp_path / NETWORK_FILE, network)
    assert (tmp_path / NETWORK_FILE).stat().st_mode & 0o777 == 0o600
    for path in (tmp_path, tmp_path / NETWORK_FILE):
        read = cxr_hvd.load_model(path)
        assert read.record == network.record
        assert torch.equal(read.model(noise()), network.model(noise()))
    assert read_weights(tmp_path / NETWORK_FILE).label_names == LABELS
    first = (tmp_path / NETWORK_FILE).read_bytes()
    write_network(tmp_path / NETWORK_FILE, network)
    assert (tmp_path / NETWORK_FILE).read_bytes() == first


def test_a_network_without_its_private_blocks_is_no_network(tmp_path: Path) -> None:
    network, path = tiny_network(), tmp_path / "shared.safetensors"
    shared = {name: tensor for name, tensor in network.model.state_dict().items() if block_of(name) not in PRIVATE}
    write_network(path, network, shared)
    with pytest.raises(CxrHvdError, match=r"found none of its private blocks .*cxr-hvd onboard"):
        read_network(path)


@pytest.mark.parametrize(
    ("metadata", "line"),
    [
        ({}, "found a file that does not say what network it is"),
        ({METADATA_KEY: "[]"}, "expected a record of a network"),
        ({METADATA_KEY: "{" * 10_000}, "expected a record of a network"),
        ({METADATA_KEY: record_of(name="torchvision/no_such").model_dump_json()}, "no_such"),
        ({METADATA_KEY: record_of(label_names=["Nothing"]).model_dump_json()}, "tensor classifier"),
        ({METADATA_KEY: json.dumps(record_of().model_dump() | {"image_size": -1})}, "image_size"),
    ],
)
def test_a_file_that_is_no_network_is_one_line(metadata: dict[str, str], line: str, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_file(tiny_network().model.state_dict(), path, metadata)
    with pytest.raises(CxrHvdError, match=line) as raised:
        read_network(path)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 1000


def test_a_file_does_not_choose_which_code_runs(tmp_path: Path) -> None:
    path, name = tmp_path / "file.safetensors", "os.path:exists"
    save_file(tiny_network().model.state_dict(), path, record_of(name=name).metadata())
    for function in (None, "os.path:isdir"):
        with pytest.raises(CxrHvdError, match="look at that code"):
            read_network(path, function)


def test_damaged_files_and_pipes_are_refused(tmp_path: Path) -> None:
    write_network(tmp_path / "whole.safetensors", tiny_network())
    content = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[:-1])
    os.mkfifo(tmp_path / "pipe.safetensors")
    for name in ("cut", "pipe", "none"):
        with pytest.raises(CxrHvdError, match="expected a network as cxr-hvd export writes"):
            read_network(tmp_path / f"{name}.safetensors")
    network = tiny_network()
    network.model.state_dict()["classifier.weight"][0, 0] = torch.nan
    write_network(tmp_path / "nan.safetensors", network)
    with pytest.raises(CxrHvdError, match="expected finite numbers"):
        read_network(tmp_path / "nan.safetensors")
