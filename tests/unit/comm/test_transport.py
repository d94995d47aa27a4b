"""All ranks choose the way that none of their devices forbids; no rank's answer can make them differ."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cxr_hvd.comm.answers import read_answers
from cxr_hvd.comm.local import LocalComm
from cxr_hvd.comm.transport import (
    RankDevice,
    choose_transport,
    describe_device,
    machine_identity,
    number_gpu,
)
from cxr_hvd.errors import ContractError

CPU, ONE, TWO = RankDevice(0, True), RankDevice(11, True), RankDevice(12, True)
DEVICES = st.lists(st.builds(RankDevice, st.integers(0, 3), st.booleans()), min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("devices", "reason"),
    [
        ([ONE], None),
        ([ONE, TWO], None),
        ([RankDevice(0, False)] * 2, None),
        ([ONE, ONE], "rank 0 and rank 1 share a GPU"),
        ([ONE, TWO, ONE], "rank 0 and rank 2 share a GPU"),
        ([ONE, CPU], "rank 1 computes on a processor"),
        ([ONE, RankDevice(12, False)], "the Horovod of rank 1 is built without NCCL"),
        ([RankDevice(11, False)], "the Horovod of rank 0 is built without NCCL"),
    ],
)
def test_what_forbids_nccl_is_named(devices: list[RankDevice], reason: str | None) -> None:
    transport = choose_transport(devices)
    assert transport.bounce_reason == reason
    assert transport.has_gpus == any(device.gpu for device in devices)
    assert reason is None or reason in str(transport)


@given(DEVICES)
def test_nccl_moves_tensors_only_where_every_rank_has_it_and_a_gpu_of_its_own(devices: list[RankDevice]) -> None:
    is_by_nccl = choose_transport(devices).has_gpus and not choose_transport(devices).bounce_reason
    gpus = [device.gpu for device in devices]
    assert is_by_nccl == (all(gpus) and len(set(gpus)) == len(gpus) and all(d.has_nccl for d in devices))


@given(st.builds(RankDevice, st.integers(0, (1 << 63) - 1), st.booleans()))
def test_what_is_sent_is_read_back(device: RankDevice) -> None:
    assert RankDevice.read(device.row().tolist()) == device


@pytest.mark.parametrize("row", [[-1, 0], [5, 2], [5], [5, 1, 1]])
def test_a_row_without_its_form_is_refused_and_its_rank_named(row: list[int]) -> None:
    with pytest.raises(ContractError, match="rank 1: its answer in device has not its form"):
        read_answers([[5, 1], row], RankDevice.read, "device")


def test_a_gpu_s_number_tells_gpus_and_machines_apart_and_is_never_that_of_a_processor() -> None:
    places = [(domain, bus, device) for domain in range(2) for bus in (0, 1, 10) for device in (0, 1)]
    numbers = [number_gpu(place, machine) for place in places for machine in ("a", "b")]
    assert len(set(numbers)) == len(numbers)
    assert all(0 < number < 1 << 63 for number in numbers)
    assert number_gpu((0, 1, 0), "a") == number_gpu((0, 1, 0), "a")


def test_a_machine_is_known_by_its_boot_or_else_by_its_name(tmp_path: Path) -> None:
    boot_id = tmp_path / "boot_id"
    nameless = machine_identity(boot_id)
    assert nameless
    boot_id.write_text("5f0c-11\n")
    assert machine_identity(boot_id) == "5f0c-11" != nameless


def test_a_processor_says_no_more_than_that() -> None:
    assert describe_device(torch.device("cpu"), has_nccl=False) == RankDevice(0, False)


def test_one_process_alone_bounces_nothing() -> None:
    assert LocalComm().use_device(torch.device("cpu")).bounce_reason is None
    assert LocalComm().use_device(torch.device("cuda")).has_gpus
