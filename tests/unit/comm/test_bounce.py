"""A tensor is copied out before it travels and back after, in one reused buffer a name, and no bit is changed."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from cxr_hvd.comm.bounce import BounceBuffers, GpuBoundary
from tests.helpers.boundaries import CopyingBoundary


def test_a_tensor_beyond_is_copied_out_and_its_result_back_and_only_then() -> None:
    boundary = CopyingBoundary()
    buffers, tensor = BounceBuffers(boundary), torch.arange(5.0)
    host = buffers.to_host(tensor, "weights")
    assert torch.equal(host, tensor) and host.data_ptr() != tensor.data_ptr()
    host.mul_(3)
    assert torch.equal(tensor, torch.arange(5.0))
    buffers.put_back(host, tensor)
    assert torch.equal(tensor, 3 * torch.arange(5.0))
    assert boundary.events == ["allocate", "to_host", "to_device"]


def test_a_buffer_is_reused_for_its_name_shape_and_type_and_for_no_other() -> None:
    boundary = CopyingBoundary()
    buffers = BounceBuffers(boundary)
    others = [("a", torch.zeros(4)), ("b", torch.zeros(4)), ("a", torch.zeros(2, 2)), ("a", torch.zeros(4).half())]
    first, *different = (buffers.to_host(tensor, name).data_ptr() for name, tensor in others)
    assert first not in different and len(set(different)) == 3
    for turn in range(5):
        host = buffers.to_host(torch.full((4,), float(turn)), "a")
        assert host.data_ptr() == first and host.tolist() == [turn] * 4
    assert boundary.events.count("allocate") == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int16, torch.int64, torch.uint8])
def test_a_result_of_another_shape_arrives_bit_for_bit(dtype: torch.dtype) -> None:
    sent, rows = torch.zeros(3, dtype=dtype), torch.randint(-9, 9, (4, 3)).to(dtype)
    arrived = BounceBuffers(CopyingBoundary()).to_device_of(sent, rows)
    assert torch.equal(arrived, rows) and arrived.dtype == dtype and arrived.data_ptr() != rows.data_ptr()


def test_what_is_not_finite_stays_what_it_is() -> None:
    tensor = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    host = BounceBuffers(CopyingBoundary()).to_host(tensor, "gradients")
    assert torch.equal(host.view(torch.int32), tensor.view(torch.int32))


@pytest.mark.parametrize(
    "buffers", [BounceBuffers(), BounceBuffers(CopyingBoundary(is_beyond=lambda tensor: False))]
)
def test_what_is_on_the_host_is_not_copied(buffers: BounceBuffers) -> None:
    tensor: Tensor = torch.ones(3)
    host = buffers.to_host(tensor, "status")
    assert host is tensor
    buffers.put_back(host, tensor)
    assert buffers.to_device_of(tensor, host) is host


def test_a_gpu_s_buffer_is_handed_over_filled_and_filled_again_only_after_it_was_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a GPU: the events that CUDA would record, in the order in which they are waited for."""
    events: list[str] = []

    def record_event() -> SimpleNamespace:
        number = sum(event.startswith("record") for event in events)
        events.append(f"record {number}")
        return SimpleNamespace(synchronize=lambda: events.append(f"wait {number}"))

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(record_event=record_event))
    monkeypatch.setattr(Tensor, "is_pinned", lambda tensor: True)
    boundary, tensor, host = GpuBoundary(), torch.ones(3), torch.empty(3)
    boundary.to_host(tensor, host)
    assert events == ["record 0", "wait 0"] and host.tolist() == [1.0] * 3
    boundary.to_device(host.mul_(2), tensor)
    assert events == ["record 0", "wait 0", "record 1"] and tensor.tolist() == [2.0] * 3
    boundary.to_host(tensor, host)
    assert events[3:] == ["wait 1", "record 2", "wait 2"]
    assert not boundary.is_beyond(tensor)
