"""Prefetch batches with threads, and copy them to the GPU on a side stream."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from threading import Event
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
Filled = TypeVar("Filled")
Task = Callable[[], None]


def prefetch_batches(
    begin: Callable[[Item], tuple[Filled, list[Task]]], items: Iterable[Item], threads: int, prefetch: int
) -> Generator[Filled, None, None]:
    """Yield a batch for each item in order, once its tasks are done.

    Args:
        begin: returns an item's batch and the tasks that fill it. It runs in the caller's thread, up to `prefetch`
            items ahead; the tasks run in other threads.
        items: what the batches are made of.
        threads: how many run tasks.
        prefetch: batches that are made ahead.

    Raises:
        Exception: whatever a task raised, at the item that it belongs to.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="loader")
    waiting: deque[tuple[Filled, list[Future[None]]]] = deque()
    is_stopped = Event()

    def work(tasks: Sequence[Task]) -> None:
        for task in tasks:
            if is_stopped.is_set():
                return
            task()

    def next_batch() -> Filled:
        batch, parts = waiting.popleft()
        for part in parts:
            part.result()
        return batch

    try:
        for item in items:
            batch, tasks = begin(item)
            # As many parts as threads: each further one wakes two threads up, at the cost of half an image.
            parts = [tasks[number::threads] for number in range(min(threads, len(tasks)))]
            waiting.append((batch, [pool.submit(work, part) for part in parts]))
            if len(waiting) > prefetch:
                yield next_batch()
        while waiting:
            yield next_batch()
    finally:
        # Who stops early waits for the tasks that run, not for those that are to come.
        is_stopped.set()
        pool.shutdown()


def prefetch_to_device(
    batches: Generator[Filled, None, None], send: Callable[[Filled], tuple[Tensor, ...]], device: torch.device
) -> Generator[tuple[Tensor, ...], None, None]:
    """Yield each batch on the device; a GPU gets it one batch ahead, on a stream beside the one that computes.

    Args:
        batches: filled in the host's memory; closed at the end, whatever ends it.
        send: starts a batch's copies and computations on the current stream, and returns its tensors.
        device: where they are to be.
    """
    with closing(batches):  # else the threads would go on until it is collected
        if device.type != "cuda":
            yield from map(send, batches)
            return
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        ahead: deque[tuple[tuple[Tensor, ...], torch.cuda.Event]] = deque()
        for batch in batches:
            with torch.cuda.stream(stream):
                ahead.append((send(batch), stream.record_event()))
            if len(ahead) > 1:
                yield _received(*ahead.popleft(), device)
        while ahead:
            yield _received(*ahead.popleft(), device)


def _received(tensors: tuple[Tensor, ...], is_sent: torch.cuda.Event, device: torch.device) -> tuple[Tensor, ...]:
    """Let the stream that computes wait for the tensors, and keep their memory until it is done with them."""
    compute = torch.cuda.current_stream(device)
    compute.wait_event(is_sent)
    for tensor in tensors:
        # Their memory belongs to the other stream, which would use it again as soon as they are dropped here.
        tensor.record_stream(compute)
    return tensors
