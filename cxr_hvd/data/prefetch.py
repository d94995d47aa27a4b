"""What is made ready before it is asked for: by threads, and on a GPU by a stream of its own."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from threading import Event
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
Made = TypeVar("Made")
Task = Callable[[], None]


def prefetch_batches(
    begin: Callable[[Item], tuple[Made, list[Task]]], items: Iterable[Item], threads: int, prefetch: int
) -> Generator[Made, None, None]:
    """Yield what `begin(item)` made for each item in order, once the tasks that it gave are done.

    Args:
        begin: runs in the caller's thread, up to `prefetch` items ahead; its tasks run in other threads.

    Raises:
        Exception: whatever a task raised, at the item that it belongs to.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="loader")
    waiting: deque[tuple[Made, list[Future[None]]]] = deque()
    is_stopped = Event()

    def work(tasks: Sequence[Task]) -> None:
        for task in tasks:
            if is_stopped.is_set():
                return
            task()

    def next_made() -> Made:
        made, parts = waiting.popleft()
        for part in parts:
            part.result()
        return made

    try:
        for item in items:
            made, tasks = begin(item)
            # As many parts as threads: each further one wakes two threads up, at the cost of half an image.
            parts = [tasks[number::threads] for number in range(min(threads, len(tasks)))]
            waiting.append((made, [pool.submit(work, part) for part in parts]))
            if len(waiting) > prefetch:
                yield next_made()
        while waiting:
            yield next_made()
    finally:
        # Who stops early waits for the tasks that run, not for those that are to come.
        is_stopped.set()
        pool.shutdown()


def prefetch_to_device(
    hosts: Generator[Made, None, None], send: Callable[[Made], tuple[Tensor, ...]], device: torch.device
) -> Iterator[tuple[Tensor, ...]]:
    """Yield what `send` makes of each item; on a GPU one item ahead, on a stream beside the one that computes.

    Args:
        hosts: closed at the end, whatever ends it.
        send: starts an item's copies and computations on the current stream and returns its results.
    """
    with closing(hosts):  # else the threads would go on until it is collected
        if device.type != "cuda":
            yield from map(send, hosts)
            return
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        ahead: deque[tuple[tuple[Tensor, ...], torch.cuda.Event]] = deque()
        for host in hosts:
            with torch.cuda.stream(stream):
                ahead.append((send(host), stream.record_event()))
            if len(ahead) > 1:
                yield _received(*ahead.popleft(), device)
        while ahead:
            yield _received(*ahead.popleft(), device)


def _received(tensors: tuple[Tensor, ...], made: torch.cuda.Event, device: torch.device) -> tuple[Tensor, ...]:
    """Let the stream that computes wait for the tensors, and keep their memory until it is done with them."""
    compute = torch.cuda.current_stream(device)
    compute.wait_event(made)
    for tensor in tensors:
        # Their memory belongs to the other stream, which would use it again as soon as they are dropped here.
        tensor.record_stream(compute)
    return tensors
