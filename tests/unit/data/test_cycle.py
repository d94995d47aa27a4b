"""A loader over and over: so many batches, no more, no fewer, and each pass is shuffled anew."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

from cxr_hvd.data.cycle import cycle
from cxr_hvd.errors import UsageError


class Counted:
    """Batches 0, 1, ... of a loader that counts passes and the batches that it was asked for."""

    def __init__(self, length: int) -> None:
        self.length, self.num_passes, self.num_asked = length, 0, 0

    def __iter__(self) -> Iterator[int]:
        self.num_passes += 1
        for number in range(self.length):
            self.num_asked += 1
            yield number


@given(st.integers(1, 7), st.integers(0, 30))
def test_so_many_batches_and_no_more_are_asked_for(length: int, num_steps: int) -> None:
    loader = Counted(length)
    expected = list(itertools.islice(itertools.cycle(range(length)), num_steps))
    assert list(cycle(loader, num_steps)) == expected
    assert loader.num_asked == num_steps and loader.num_passes == -(-num_steps // length)


def loader_of(num_studies: int, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.arange(num_studies)), **options)


def passes(batches: Iterable[list[torch.Tensor]], length: int) -> list[list[int]]:
    """Return the values of all batches, pass by pass."""
    values = [value for [batch] in batches for value in batch.tolist()]
    return [values[start : start + length] for start in range(0, len(values), length)]


def test_each_pass_is_shuffled_anew() -> None:
    drawn = passes(cycle(loader_of(20, batch_size=4, shuffle=True), 15), 20)
    assert [sorted(order) for order in drawn] == [list(range(20))] * 3
    assert len(set(map(tuple, drawn))) == 3


@pytest.mark.parametrize("place", ["sampler", "batch_sampler"])
def test_a_distributed_sampler_hears_of_each_pass(place: str) -> None:
    data = TensorDataset(torch.arange(20))
    seen = []
    for rank in range(2):
        sampler: Any = DistributedSampler(data, num_replicas=2, rank=rank)
        options = {"sampler": sampler, "batch_size": 5}
        if place == "batch_sampler":
            options = {"batch_sampler": BatchSampler(sampler, 5, drop_last=False)}
        seen.append(passes(cycle(DataLoader(data, **options), 6), 10))
    whole = [sorted(one + other) for one, other in zip(*seen, strict=True)]
    assert whole == [list(range(20))] * 3  # the ranks are in the same pass
    assert len(set(map(tuple, seen[0]))) == 3


@pytest.mark.parametrize("loader", [loader_of(0), loader_of(3, batch_size=4, drop_last=True), []])
def test_a_loader_without_batches_is_refused_and_not_waited_for(loader: Iterable[Any]) -> None:
    with pytest.raises(UsageError, match="expected one batch or more in each pass, found none in pass 0"):
        next(cycle(loader, 3))
    assert list(cycle(loader, 0)) == []


def test_what_can_be_iterated_over_but_once_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="expected a loader that begins anew, found an iterator"):
        cycle(iter([1, 2]), 5)
    with pytest.raises(UsageError, match="expected 0 or more, found -1"):
        cycle([1, 2], -1)


def test_a_loader_with_persistent_workers_serves_all_passes() -> None:
    loader = loader_of(6, batch_size=2, num_workers=1, persistent_workers=True)
    assert passes(cycle(loader, 7), 6) == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [0, 1]]


def test_an_error_of_the_loader_comes_through() -> None:
    def broken() -> Iterator[int]:
        yield 0
        raise OSError("no disk")

    class Broken:
        def __iter__(self) -> Iterator[int]:
            return broken()

    with pytest.raises(OSError, match="no disk"):
        list(cycle(Broken(), 5))
