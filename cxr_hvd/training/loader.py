"""Which studies a rank trains on at which step, and the thread that has the next batch ready.

The order of studies is a pure function of seed, site and step (`Shuffle.batch_at`): nothing needs to be saved
to go on after a stop, and one rank with a batch of 2B sees what two ranks with B see. Sites of different size
take the same number of steps; one that has run out starts a fresh shuffled pass (decision 0003).
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxr_hvd.config import Augmentation
from cxr_hvd.study.labels import LabelPolicy
from cxr_hvd.study.study_file import Split, StudyFile
from cxr_hvd.training.augment import fill_augmented, fill_plain

PREFETCH = 2

Item = TypeVar("Item")


@dataclass(frozen=True)
class Batch:
    """B studies as the network sees them; valid until the next batch is asked for, when its memory is used again.

    Attributes:
        images: (B, M, H, W) float32, 0 to 1; M is the most images of a study here, zeros after a study's last.
        targets: (B, L) float32 of 0 and 1.
        known: (B, L) bool; where False, the target is 0 and counts nowhere.
    """

    images: Tensor
    targets: Tensor
    known: Tensor


class StudySet:
    """The studies of one split, of one file or of several merged into one (experiment B).

    Attributes:
        label_names: names of the L labels, in order.
        num_images: (N,) images of each study, 1 to 20.
        targets, known: (N, L) as in `Batch`.
    """

    def __init__(self, files: Sequence[StudyFile], split: Split, policy: LabelPolicy) -> None:
        self._files = files
        indices = [file.indices(split) for file in files]
        self._file_of = np.repeat(np.arange(len(files)), [len(each) for each in indices])
        self._index_of = np.concatenate(indices)
        self.label_names = files[0].header.label_names
        own = list(zip(files, indices, strict=True))
        self.num_images: NDArray[np.uint8] = np.concatenate([file.num_images[each] for file, each in own])
        labels_NL = np.concatenate([file.labels[each] for file, each in own])
        self.targets, self.known = policy.targets(labels_NL, self.label_names)

    def __len__(self) -> int:
        return len(self._index_of)

    def images(self, position: int) -> NDArray[np.uint8]:
        """Read and check the images (n, H, W) of the study at a position of this set."""
        file, index = self._files[int(self._file_of[position])], int(self._index_of[position])
        images_NHW = file.images(index)
        file.check_images(index, images_NHW)
        return images_NHW


@dataclass(frozen=True)
class Shuffle:
    """The endless shuffled sequence of a set's studies, dealt out to the ranks that share it.

    Attributes:
        num_studies: size of the set.
        batch_size: studies of one rank in one step.
        num_ranks, rank: how many ranks share the set, and which of them this is.
        key: seeds of the sequence; equal for ranks that share it.
    """

    num_studies: int
    batch_size: int
    num_ranks: int
    rank: int
    key: tuple[int, ...]

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every study is seen at least once."""
        return -(-self.num_studies // (self.batch_size * self.num_ranks))

    def batch_at(self, step: int) -> list[tuple[int, int]]:
        """Return (position, pass) of each study in this rank's batch of a step."""
        first = (step * self.num_ranks + self.rank) * self.batch_size
        places = [divmod(place, self.num_studies) for place in range(first, first + self.batch_size)]
        orders = {number: self._order(number) for number in {number for number, _ in places}}
        return [(int(orders[number][place]), number) for number, place in places]

    def _order(self, number: int) -> NDArray[np.int64]:
        order: NDArray[np.int64] = np.random.default_rng([*self.key, number]).permutation(self.num_studies)
        return order


class BufferRing:
    """Float32 buffers used in turn: a fresh one of this size costs more in page faults than in filling."""

    def __init__(self, count: int) -> None:
        self._buffers = deque(np.empty(0, dtype=np.float32) for _ in range(count))

    def next(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return the buffer that was given out longest ago, in this shape, with whatever was in it."""
        buffer, size = self._buffers.popleft(), int(np.prod(shape))
        if buffer.size < size:
            buffer = np.empty(size, dtype=np.float32)
        self._buffers.append(buffer)
        return buffer[:size].reshape(shape)


def train_batches(
    studies: StudySet, shuffle: Shuffle, steps: Iterable[int], image_size: int, strength: Augmentation
) -> Iterator[Batch]:
    """Yield this rank's augmented batch of each step, `PREFETCH` of them made ahead in a thread."""
    buffers = BufferRing(PREFETCH + 1)

    def make(step: int) -> Batch:
        chosen = shuffle.batch_at(step)
        images_BMHW = buffers.next(_batch_shape(studies, [position for position, _ in chosen], image_size))
        for out_MHW, (position, number) in zip(images_BMHW, chosen, strict=True):
            # Keyed by study and pass: what is drawn does not depend on the batch's size or on any thread.
            rng = np.random.default_rng([*shuffle.key, number, position])
            fill_augmented(studies.images(position), strength, rng, out_MHW)
        return _batch(studies, [position for position, _ in chosen], images_BMHW)

    return _ahead(make, steps)


def plain_batches(
    studies: StudySet, positions: Sequence[int], batch_size: int, image_size: int
) -> Iterator[Batch]:
    """Yield the studies at these positions in order, as stored, for evaluation; the last batch may be smaller."""
    buffers = BufferRing(PREFETCH + 1)

    def make(start: int) -> Batch:
        chosen = list(positions[start : start + batch_size])
        images_BMHW = buffers.next(_batch_shape(studies, chosen, image_size))
        for out_MHW, position in zip(images_BMHW, chosen, strict=True):
            fill_plain(studies.images(position), out_MHW)
        return _batch(studies, chosen, images_BMHW)

    return _ahead(make, range(0, len(positions), batch_size))


def _batch_shape(studies: StudySet, positions: Sequence[int], image_size: int) -> tuple[int, int, int, int]:
    return len(positions), int(studies.num_images[positions].max()), image_size, image_size


def _batch(studies: StudySet, positions: Sequence[int], images_BMHW: NDArray[np.float32]) -> Batch:
    targets_BL, known_BL = studies.targets[positions], studies.known[positions]
    return Batch(torch.from_numpy(images_BMHW), torch.from_numpy(targets_BL), torch.from_numpy(known_BL))


def _ahead(make: Callable[[Item], Batch], items: Iterable[Item]) -> Iterator[Batch]:
    """Yield `make(item)` for each item in order, made in one other thread, up to `PREFETCH` ahead."""
    with ThreadPoolExecutor(1, thread_name_prefix="loader") as thread:
        waiting: deque[Future[Batch]] = deque()
        for item in items:
            waiting.append(thread.submit(make, item))
            if len(waiting) > PREFETCH:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
