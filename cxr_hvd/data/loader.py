"""Which studies a rank trains on at which step, and the threads that have the next batches ready.

The order of studies is a pure function of seed, site and step (`Shuffle.batch_at`): nothing needs to be saved
to go on after a stop, and one rank with a batch of 2B sees what two ranks with B see. Sites of different size
take the same number of steps; one that has run out starts a fresh shuffled pass (decision 0003).

Threads, not processes: reading, checking, moving and converting images all release Python's lock, and a batch
stays where it was made. What is drawn for a study is keyed by study and pass, so that a batch is the same whatever
the number of threads.
"""

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxr_hvd.config.schema import Augmentation
from cxr_hvd.data.augment import Change, draw_changes, fill_augmented, fill_plain, scaled
from cxr_hvd.data.augment_gpu import move_images, place_images, stack_changes
from cxr_hvd.data.memory import Pages, PinnedBuffer, to_device
from cxr_hvd.data.prefetch import Task, prefetch_batches, prefetch_to_device
from cxr_hvd.study.labels import LabelPolicy
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile

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


class StudySet:
    """The studies of one split, of one file or of several merged into one (experiment B).

    An image is checked against its digest when it is first read, and in no later pass: checking takes a fifth of
    the loader's time, and most of it where a GPU moves the images. What happens to the file after that goes
    unnoticed until the next run, or `cxr-preprocess verify`.

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
        self._is_checked_N = np.zeros(len(self), dtype=bool)

    def __len__(self) -> int:
        return len(self._index_of)

    def images(self, position: int) -> NDArray[np.uint8]:
        """Read the images (n, H, W) of the study at a position of this set; check them, the first time.

        Raises:
            StudyFileError: the file cannot be read, or an image differs from its digest.
        """
        file, index = self._files[int(self._file_of[position])], int(self._index_of[position])
        images_NHW = file.images(index)
        if not self._is_checked_N[position]:
            file.check_images(index, images_NHW)
            self._is_checked_N[position] = True
        return images_NHW

    def labels(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return targets and known (B, L) of the studies at these positions."""
        return torch.from_numpy(self.targets[positions]), torch.from_numpy(self.known[positions])


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
        orders = {
            number: _order(self.key, number, self.num_studies) for number in {number for number, _ in places}
        }
        return [(int(orders[number][place]), number) for number, place in places]


@lru_cache(maxsize=4)
def _order(key: tuple[int, ...], number: int, num_studies: int) -> NDArray[np.int64]:
    """Return the order of a pass; kept, as drawing it for every step would cost milliseconds at a large site."""
    order_N: NDArray[np.int64] = np.random.default_rng([*key, number]).permutation(num_studies)
    order_N.setflags(write=False)
    return order_N


@dataclass(frozen=True)
class Wanted:
    """A study that a batch is to show.

    Attributes:
        position: of the study in its set.
        key: seeds of all that is drawn for its images; None shows them as stored.
    """

    position: int
    key: tuple[int, ...] | None = None


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
    device: torch.device | None = None,
) -> Generator[Batch, None, None]:
    """Yield this rank's augmented batch of each step.

    Args:
        threads: that fill studies; how many changes nothing of what is in a batch.
        prefetch: batches that are made ahead.
        device: where batches are to be; on a GPU, images are augmented there. None is the CPU.

    Raises:
        StudyFileError: at the batch that it belongs to, where an image cannot be read or differs from its digest.
    """
    # Keyed by study and pass: what is drawn does not depend on the batch's size or on any thread.
    plans = (
        [Wanted(position, (*shuffle.key, number, position)) for position, number in shuffle.batch_at(step)]
        for step in steps
    )
    most = shuffle.batch_size * int(studies.num_images.max(initial=1))
    make = batches_on_gpu if device is not None and device.type == "cuda" else batches_on_cpu
    return make(studies, plans, most, image_size, strength, threads, prefetch, device or CPU)


def plain_batches(
    studies: StudySet,
    positions: Sequence[int],
    batch_size: int,
    image_size: int,
    threads: int = 1,
    prefetch: int = 2,
    device: torch.device | None = None,
) -> Generator[Batch, None, None]:
    """Yield the studies at these positions in order, as stored, for evaluation; the last batch may be smaller.

    Arguments and errors are those of `train_batches`.
    """
    starts = range(0, len(positions), batch_size)
    plans = ([Wanted(position) for position in positions[start : start + batch_size]] for start in starts)
    most = batch_size * int(studies.num_images.max(initial=1))
    make = batches_on_gpu if device is not None and device.type == "cuda" else batches_on_cpu
    return make(studies, plans, most, image_size, Augmentation(), threads, prefetch, device or CPU)


def batches_on_cpu(
    studies: StudySet,
    plans: Iterable[Sequence[Wanted]],
    most_images: int,
    image_size: int,
    strength: Augmentation,
    threads: int,
    prefetch: int,
    device: torch.device,
) -> Generator[Batch, None, None]:
    """Yield each plan's batch; its images are written straight to where they stay."""
    ring = deque(Pages(most_images, image_size) for _ in range(prefetch + 1))

    def begin(plan: Sequence[Wanted]) -> tuple[Batch, list[Task]]:
        positions = [wanted.position for wanted in plan]
        num_channels = int(studies.num_images[positions].max())
        pages = ring[0]  # given out longest ago
        ring.rotate(-1)

        def fill(row: int, wanted: Wanted) -> None:
            images_NHW = studies.images(wanted.position)
            out_NHW = pages.claim(row, num_channels, len(images_NHW))
            if wanted.key is None:
                fill_plain(images_NHW, out_NHW)
            else:
                fill_augmented(images_NHW, strength, np.random.default_rng(wanted.key), out_NHW)

        images_BMHW = torch.from_numpy(pages.batch(len(plan), num_channels))
        batch = Batch(images_BMHW, *studies.labels(positions))
        return batch, [partial(fill, row, wanted) for row, wanted in enumerate(plan)]

    return prefetch_batches(begin, plans, threads, prefetch)


@dataclass(frozen=True)
class _Gathered:
    """A batch in pinned memory: K images as stored, and the changes to be made to them, study by study."""

    buffer: PinnedBuffer
    images_KHW: Tensor
    plan: Sequence[Wanted]
    counts: list[int]
    changes: list[list[Change]]


def batches_on_gpu(
    studies: StudySet,
    plans: Iterable[Sequence[Wanted]],
    most_images: int,
    image_size: int,
    strength: Augmentation,
    threads: int,
    prefetch: int,
    device: torch.device,
) -> Generator[Batch, None, None]:
    """Yield each plan's batch; the threads gather its images, the device moves them."""
    # One more than on the CPU: a buffer is claimed while the last copy out of the one before it may still run.
    ring = deque(PinnedBuffer(most_images * image_size**2, device) for _ in range(prefetch + 2))

    def begin(plan: Sequence[Wanted]) -> tuple[_Gathered, list[Task]]:
        counts = studies.num_images[[wanted.position for wanted in plan]].tolist()
        ring.rotate(-1)
        images_KHW = ring[-1].claim(sum(counts), image_size)
        gathered = _Gathered(ring[-1], images_KHW, plan, counts, [[] for _ in plan])
        views = images_KHW.numpy()
        firsts = np.cumsum([0, *counts]).tolist()

        def gather(row: int, wanted: Wanted) -> None:
            images_NHW = studies.images(wanted.position)
            order: Sequence[int] = range(len(images_NHW))
            if wanted.key is not None:
                rng = np.random.default_rng(wanted.key)
                gathered.changes[row] = draw_changes(len(images_NHW), strength, image_size, rng)
                order = [change.position for change in gathered.changes[row]]
            for out_HW, position in zip(views[firsts[row] : firsts[row + 1]], order, strict=True):
                out_HW[:] = scaled(images_NHW[position], image_size)

        return gathered, [partial(gather, row, wanted) for row, wanted in enumerate(plan)]

    def send(gathered: _Gathered) -> tuple[Tensor, ...]:
        images_KHW = gathered.buffer.send(gathered.images_KHW)
        changes = [change for of_study in gathered.changes for change in of_study]
        moved_KHW = move_images(images_KHW, stack_changes(changes, device)) if changes else images_KHW / 255
        shape = (len(gathered.plan), max(gathered.counts))
        places = [
            row * shape[1] + channel for row, count in enumerate(gathered.counts) for channel in range(count)
        ]
        images_BMHW = place_images(moved_KHW, to_device(torch.tensor(places), device), shape)
        labels = studies.labels([wanted.position for wanted in gathered.plan])
        return images_BMHW, *[to_device(each, device) for each in labels]

    for tensors in prefetch_to_device(prefetch_batches(begin, plans, threads, prefetch), send, device):
        yield Batch(*tensors)
