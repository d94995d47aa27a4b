"""The memory of batches: nothing of an earlier batch is left in it, and no copy out of it is disturbed."""

from types import SimpleNamespace

import numpy as np
import torch

from cxr_hvd.data.buffers import CpuBuffer, GpuBuffer

CPU = torch.device("cpu")


def test_a_buffer_is_zero_wherever_no_image_is() -> None:
    rng, buffer = np.random.default_rng(0), CpuBuffer(24, 4)
    for _ in range(200):
        num_channels = int(rng.integers(1, 7))
        counts = [num_channels, *rng.integers(1, num_channels + 1, 24 // num_channels - 1).tolist()]
        buffer.claim(counts)
        for row in rng.permutation(len(counts)).tolist():
            buffer.fill(row, np.full((counts[row], 4, 4), 255, dtype=np.uint8), None)
        batch = buffer.to_batch()
        assert batch.shape == (len(counts), num_channels, 4, 4)
        for row, num_images in enumerate(counts):
            assert (batch[row, :num_images] == 1).all()
            assert not batch[row, num_images:].any()


def test_a_pinned_buffer_is_not_filled_before_the_gpu_has_read_it() -> None:
    calls: list[str] = []
    buffer = GpuBuffer(2, 4, CPU)
    buffer.claim([2])
    buffer._is_read = SimpleNamespace(synchronize=lambda: calls.append("read"))  # type: ignore[assignment]
    buffer.claim([1, 1])
    assert calls == ["read"]
    for row in range(2):
        buffer.fill(row, np.full((1, 4, 4), 51 * row, dtype=np.uint8), None)
    batch = buffer.to_batch()
    assert batch.shape == (2, 1, 4, 4)
    torch.testing.assert_close(batch[:, 0, 0, 0], torch.tensor([0.0, 0.2]))
