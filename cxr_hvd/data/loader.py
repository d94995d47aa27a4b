"""Batches of studies, read and augmented by threads while the network trains on the ones before.

Each batch goes one way: threads read its studies, draw their changes and fill a buffer; the buffer becomes a batch
on the device; several are under way at a time. Threads, not processes: reading, checking, moving and converting
images all release Python's lock, and a batch stays where it was made. What is drawn for a study is keyed by study
and pass, so that a batch is the same whatever the number of threads.
"""

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cxr_hvd.config.schema import Config
from cxr_hvd.config.sections import Augmentation
from cxr_hvd.data.augment import draw_changes
from cxr_hvd.data.augment_gpu import to_device
from cxr_hvd.data.buffers import BatchBuffer, CpuBuffer, GpuBuffer
from cxr_hvd.data.prefetch import Task, prefetch_batches, prefetch_to_device
from cxr_hvd.data.studies import Shuffle, StudySet

CPU = torch.device("cpu")
MAX_AUTO_THREADS = 8


@dataclass(frozen=True)
class Batch:
    """B studies as the network sees them: not to be written to, and valid until the next batch is asked for.

    Attributes:
        images: (B, M, H, W) float32, 0 to 1; M is the most images of a study here, zeros after a study's last.
        targets: (B, L) float32 of 0 and 1.
        known: (B, L) bool; where False, the target is 0 and counts nowhere.
    """

    images: Tensor
    targets: Tensor
    known: Tensor


@dataclass(frozen=True)
class StudyRequest:
    """A study that a batch is to show.

    Attributes:
        position: of the study in its set.
        key: seeds of all that is drawn for its images; None shows them as stored.
    """

    position: int
    key: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Batching:
    """How batches of a run are made.

    Attributes:
        batch_size: studies of a batch.
        image_size: pixels a side.
        threads: that fill studies; how many changes nothing of what is in a batch.
        prefetch: batches that are made ahead.
    """

    batch_size: int
    image_size: int
    threads: int = 1
    prefetch: int = 2


def batching_of_run(config: Config, num_cores: int) -> Batching:
    """Return how a config's batches are made by a rank that has `num_cores` cores to itself."""
    return Batching(
        batch_size=config.training.batch_size,
        image_size=config.model.image_size,
        threads=threads_for(config.loader.threads, num_cores),
        prefetch=config.loader.prefetch,
    )


def threads_for(setting: Literal["auto"] | int, num_cores: int) -> int:
    """Return the number of loader threads of a rank that has `num_cores` cores to itself.

    `auto` leaves one core to the rank's own thread; more than `MAX_AUTO_THREADS` have nothing left to do.
    """
    return max(1, min(num_cores - 1, MAX_AUTO_THREADS)) if setting == "auto" else setting


def train_batches(
    studies: StudySet,
    shuffle: Shuffle,
    steps: Iterable[int],
    image_size: int,
    strength: Augmentation,
    threads: int = 1,
    prefetch: int = 2,
    device: torch.device = CPU,
) -> Generator[Batch, None, None]:
    """Yield this rank's augmented batch of each step.

    Args:
        threads: that fill studies; how many changes nothing of what is in a batch.
        prefetch: batches that are made ahead.
        device: where batches are to be; on a GPU, images are augmented there.

    Raises:
        StudyFileError: at the batch that it belongs to, where an image cannot be read or differs from its digest.
    """
    # Keyed by study and pass: what is drawn does not depend on the batch's size or on any thread.
    requests = (
        [StudyRequest(position, (*shuffle.key, number, position)) for position, number in shuffle.batch_at(step)]
        for step in steps
    )
    buffers = build_buffers(studies, shuffle.batch_size, image_size, prefetch, device)
    return make_batches(studies, requests, buffers, image_size, strength, threads, prefetch, device)


def plain_batches(
    studies: StudySet,
    positions: Sequence[int],
    batch_size: int,
    image_size: int,
    threads: int = 1,
    prefetch: int = 2,
    device: torch.device = CPU,
) -> Generator[Batch, None, None]:
    """Yield the studies at these positions in order, as stored, for evaluation; the last batch may be smaller.

    Arguments and errors are those of `train_batches`.
    """
    starts = range(0, len(positions), batch_size)
    requests = ([StudyRequest(position) for position in positions[start : start + batch_size]] for start in starts)
    buffers = build_buffers(studies, batch_size, image_size, prefetch, device)
    return make_batches(studies, requests, buffers, image_size, Augmentation(), threads, prefetch, device)


def build_buffers(
    studies: StudySet, batch_size: int, image_size: int, prefetch: int, device: torch.device
) -> list[BatchBuffer]:
    """Build one buffer for each batch that is under way at a time."""
    max_images = batch_size * int(studies.num_images.max(initial=1))
    if device.type == "cuda":
        # One more than on the CPU: a buffer is claimed while the last copy out of the one before it may still run.
        return [GpuBuffer(max_images, image_size, device) for _ in range(prefetch + 2)]
    return [CpuBuffer(max_images, image_size) for _ in range(prefetch + 1)]


@dataclass(frozen=True)
class _FilledBatch:
    """A batch that threads have filled, on its way to the device."""

    buffer: BatchBuffer
    targets: Tensor
    known: Tensor


def make_batches(
    studies: StudySet,
    requests: Iterable[Sequence[StudyRequest]],
    buffers: Sequence[BatchBuffer],
    image_size: int,
    strength: Augmentation,
    threads: int,
    prefetch: int,
    device: torch.device,
) -> Generator[Batch, None, None]:
    """Yield a batch for each list of requests: filled by threads, augmented on the CPU or the GPU, prefetched."""
    ring = deque(buffers)

    def begin(batch: Sequence[StudyRequest]) -> tuple[_FilledBatch, list[Task]]:
        positions = [request.position for request in batch]
        buffer = ring[0]  # given out longest ago
        ring.rotate(-1)
        buffer.claim(studies.num_images[positions].tolist())

        def fill(row: int, request: StudyRequest) -> None:
            images_NHW = studies.images(request.position)
            changes = None
            if request.key is not None:
                rng = np.random.default_rng(request.key)
                changes = draw_changes(len(images_NHW), strength, image_size, rng)
            buffer.fill(row, images_NHW, changes)

        filled = _FilledBatch(buffer, *studies.labels(positions))
        return filled, [partial(fill, row, request) for row, request in enumerate(batch)]

    def send(filled: _FilledBatch) -> tuple[Tensor, ...]:
        images_BMHW = filled.buffer.to_batch()
        return images_BMHW, to_device(filled.targets, device), to_device(filled.known, device)

    filled_batches = prefetch_batches(begin, requests, threads, prefetch)
    with closing(prefetch_to_device(filled_batches, send, device)) as batches:
        for tensors in batches:
            yield Batch(*tensors)
