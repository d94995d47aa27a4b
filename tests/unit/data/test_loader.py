"""Batches: the same whatever makes them, whole while they are looked at, and gone without a trace."""

import itertools
import threading
import time
from collections.abc import Generator
from pathlib import Path

import pytest
import torch

from cxr_hvd.config.sections import Augmentation, Labels
from cxr_hvd.data.buffers import GpuBuffer
from cxr_hvd.data.loader import (
    Batch,
    StudyRequest,
    make_batches,
    plain_batches,
    threads_for,
    train_batches,
)
from cxr_hvd.data.studies import Shuffle, StudySet
from cxr_hvd.errors import StudyFileError
from cxr_hvd.study.labels import LABELS
from cxr_hvd.study.layout import Split
from cxr_hvd.study.study_file import StudyFile
from lab.study_files import SIZE, write_study_file

STRENGTH = Augmentation(noise=0.1, cutout=0.4)
POLICY = Labels().policy(LABELS)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study_file(tmp_path_factory.mktemp("study") / "north.h5", num_studies=23, splits=(Split.TRAIN,))


@pytest.fixture
def studies(path: Path) -> StudySet:
    return StudySet([StudyFile(path)], Split.TRAIN, POLICY)


def kept(batches: Generator[Batch, None, None]) -> list[Batch]:
    """Return copies of all batches."""
    return [Batch(each.images.clone(), each.targets, each.known) for each in batches]


def are_equal(some: list[Batch], others: list[Batch]) -> bool:
    """Return whether two runs saw the same, bit for bit."""
    return len(some) == len(others) and all(
        torch.equal(getattr(one, name), getattr(other, name))
        for one, other in zip(some, others, strict=True)
        for name in ("images", "targets", "known")
    )


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


# ---- the same batches


@pytest.mark.parametrize(("threads", "prefetch"), [(1, 1), (1, 5), (2, 1), (2, 2), (5, 1), (5, 3), (5, 16)])
def test_batches_are_the_same_whatever_threads_and_prefetch(
    studies: StudySet, threads: int, prefetch: int
) -> None:
    shuffle = Shuffle(len(studies), 4, 1, 0, (1, 2))
    expected = kept(train_batches(studies, shuffle, range(9), 32, STRENGTH))
    assert are_equal(kept(train_batches(studies, shuffle, range(9), 32, STRENGTH, threads, prefetch)), expected)
    plain = kept(plain_batches(studies, range(23), 4, 32))
    assert are_equal(kept(plain_batches(studies, range(23), 4, 32, threads, prefetch)), plain)


def test_batches_do_not_depend_on_the_first_step_nor_on_how_ranks_share_them(studies: StudySet) -> None:
    whole = kept(train_batches(studies, Shuffle(23, 4, 1, 0, (1, 2)), range(12), 32, STRENGTH, threads=2))
    later = kept(train_batches(studies, Shuffle(23, 4, 1, 0, (1, 2)), range(5, 12), 32, STRENGTH, threads=3))
    assert are_equal(whole[5:], later)
    for rank in range(2):
        own = kept(train_batches(studies, Shuffle(23, 2, 2, rank, (1, 2)), range(12), 32, STRENGTH, threads=2))
        for one, other in zip(whole, own, strict=True):
            rows = one.images[2 * rank : 2 * rank + 2]
            num_channels = other.images.shape[1]
            assert torch.equal(rows[:, :num_channels], other.images)
            assert not rows[:, num_channels:].any()


def test_each_pass_draws_order_and_changes_anew(studies: StudySet) -> None:
    shuffle = Shuffle(23, 23, 1, 0, (1, 2))
    one, two = kept(train_batches(studies, shuffle, range(2), 32, STRENGTH))
    assert not torch.equal(one.targets, two.targets)
    first_seen = [position for position, _ in shuffle.batch_at(0)]
    again = [position for position, _ in shuffle.batch_at(1)]
    for position in range(23):
        a, b = one.images[first_seen.index(position)], two.images[again.index(position)]
        assert not torch.equal(a, b)


def test_a_batch_stays_whole_while_others_are_made(studies: StudySet) -> None:
    shuffle = Shuffle(23, 4, 1, 0, (1, 2))
    expected = kept(train_batches(studies, shuffle, range(9), 32, STRENGTH))
    batches = train_batches(studies, shuffle, range(9), 32, STRENGTH, threads=4, prefetch=1)
    for each, batch in zip(expected, batches, strict=True):
        time.sleep(0.02)  # let the threads run ahead as far as they may
        assert torch.equal(each.images, batch.images)


def test_a_set_without_studies_has_no_batches(path: Path) -> None:
    empty = StudySet([StudyFile(path)], Split.TEST, POLICY)
    assert list(plain_batches(empty, [], 4, 32, threads=2)) == []


def test_memory_is_used_again(studies: StudySet) -> None:
    for prefetch in (1, 3):
        batches = train_batches(studies, Shuffle(23, 4, 1, 0, (1,)), range(30), 32, STRENGTH, 2, prefetch)
        assert len({batch.images.data_ptr() for batch in batches}) == prefetch + 1


def test_plain_batches_are_the_file(studies: StudySet) -> None:
    positions = [4, 0, 22]
    [batch] = list(plain_batches(studies, positions, 8, SIZE))
    for row, position in enumerate(positions):
        stored = torch.from_numpy(studies.images(position)) / 255
        torch.testing.assert_close(batch.images[row, : len(stored)], stored)
        assert not batch.images[row, len(stored) :].any()


@pytest.mark.parametrize("size", [SIZE, 32])
def test_what_is_gathered_for_a_gpu_becomes_the_same_batch(studies: StudySet, size: int) -> None:
    shuffle = Shuffle(23, 4, 1, 0, (1, 2))
    requests = [
        [StudyRequest(position, (1, 2, number, position)) for position, number in shuffle.batch_at(s)]
        for s in range(9)
    ]
    expected = kept(train_batches(studies, shuffle, range(9), size, STRENGTH))
    buffers = [GpuBuffer(16, size, CPU) for _ in range(4)]
    found = kept(make_batches(studies, requests, buffers, size, STRENGTH, 3, 2, CPU))
    for one, other in zip(expected, found, strict=True):
        assert one.images.shape == other.images.shape
        assert float((one.images - other.images).abs().max()) < (1.1 * 0.5 + 0.1) / 255
        is_empty = ~one.images.flatten(2).any(2)
        assert not other.images[is_empty].any()
        assert torch.equal(one.targets, other.targets) and torch.equal(one.known, other.known)
    [plain] = kept(make_batches(studies, [[StudyRequest(4), StudyRequest(0)]], buffers, size, STRENGTH, 1, 1, CPU))
    [expected_plain] = kept(plain_batches(studies, [4, 0], 2, size))
    torch.testing.assert_close(plain.images, expected_plain.images)


# ---- errors and ends


def damage(path: Path, study: int) -> StudySet:
    """Flip a bit of a study's first image; return the set."""
    with StudyFile(path) as file:
        pixels = file.images(study)[0].tobytes()
    content = path.read_bytes()
    assert content.count(pixels) == 1
    path.write_bytes(content.replace(pixels, pixels[:-1] + bytes([pixels[-1] ^ 1])))
    return StudySet([StudyFile(path)], Split.TRAIN, POLICY)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_an_error_comes_with_the_batch_that_it_belongs_to(tmp_path: Path, threads: int) -> None:
    path = write_study_file(tmp_path / "north.h5", num_studies=12, splits=(Split.TRAIN,))
    batches = plain_batches(damage(path, 7), range(12), 2, SIZE, threads, prefetch=4)
    for _ in range(3):
        next(batches)
    with pytest.raises(StudyFileError, match="image 0 of study 7 differs from its digest"):
        next(batches)
    assert not loader_threads()


def test_images_are_checked_once(studies: StudySet, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []
    monkeypatch.setattr(StudyFile, "check_images", lambda _, index, images: checked.append(index))
    list(train_batches(studies, Shuffle(23, 4, 1, 0, (1,)), range(12), 32, STRENGTH, threads=2))
    assert sorted(checked) == list(range(23))


def slow(studies: StudySet, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Make every study take its time."""
    read = studies.images

    def wait_and_read(position: int) -> object:
        time.sleep(seconds)
        return read(position)

    monkeypatch.setattr(studies, "images", wait_and_read)


@pytest.mark.parametrize("threads", [1, 3])
def test_who_stops_early_waits_for_no_more_than_a_study(
    studies: StudySet, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    slow(studies, monkeypatch, 0.1)
    batches = train_batches(studies, Shuffle(23, 8, 1, 0, (1,)), range(99), 32, STRENGTH, threads, prefetch=8)
    next(batches)
    assert len(loader_threads()) == threads
    started = time.monotonic()
    batches.close()
    assert time.monotonic() - started < 0.6  # 64 studies are waiting: 6.4 s in one thread
    assert not loader_threads()


def test_an_error_of_the_one_who_asks_ends_the_threads(studies: StudySet) -> None:
    def train() -> None:
        for _ in train_batches(studies, Shuffle(23, 4, 1, 0, (1,)), itertools.count(), 32, STRENGTH, threads=3):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert not loader_threads()


def test_auto_leaves_a_core_to_the_rank() -> None:
    assert [threads_for("auto", cores) for cores in (1, 2, 3, 9, 64)] == [1, 1, 2, 8, 8]
    assert threads_for(3, 1) == 3
