"""Prefetching: threads share a batch's work, and a GPU gets the next batch while it computes."""

import itertools
import threading
from collections.abc import Callable, Generator
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from cxr_hvd.data.prefetch import prefetch_batches, prefetch_to_device


def test_threads_share_the_studies_of_a_batch() -> None:
    both_here = threading.Barrier(2, timeout=20)
    tasks: list[Callable[[], object]] = [both_here.wait, both_here.wait]
    assert list(prefetch_batches(lambda item: (item, tasks), [7], threads=2, prefetch=1)) == [7]  # type: ignore[arg-type, return-value]


def test_a_gpu_gets_the_next_batch_while_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def tensor(name: int) -> object:
        return SimpleNamespace(record_stream=lambda stream: calls.append(f"{stream.name} keeps {name}"))

    def stream(name: str) -> object:
        events = itertools.count()
        return SimpleNamespace(
            name=name,
            record_event=lambda: next(events),
            wait_event=lambda event: calls.append(f"{name} waits for {event}"),
        )

    def filled_batches() -> Generator[int, None, None]:
        try:
            yield from range(9)
        finally:
            calls.append("closed")

    def send(batch: int) -> tuple[torch.Tensor, ...]:
        calls.append(f"send {batch}")
        return (tensor(batch),)  # type: ignore[return-value]

    fake = SimpleNamespace(
        Stream=lambda device: stream("copy"),
        stream=lambda stream: nullcontext(),
        current_stream=lambda device: stream("compute"),
    )
    monkeypatch.setattr(torch, "cuda", fake)
    batches = prefetch_to_device(filled_batches(), send, torch.device("cuda"))
    next(batches)
    assert calls == ["send 0", "send 1", "compute waits for 0", "compute keeps 0"]
    next(batches)
    assert calls[4:] == ["send 2", "compute waits for 1", "compute keeps 1"]
    batches.close()
    assert calls[-1] == "closed"
