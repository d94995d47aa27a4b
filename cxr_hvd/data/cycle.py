"""Iterate over a loader again and again, for as many steps as all sites have agreed on.

Sites of different size have loaders of different length, and all ranks have to take equally many steps.
"""

from collections.abc import Generator, Iterable, Iterator
from typing import Any, TypeVar

from cxr_hvd.errors import UsageError

Item = TypeVar("Item")


def cycle(loader: Iterable[Item], num_steps: int) -> Iterator[Item]:
    """Yield exactly `num_steps` batches of a loader, beginning again where it ends.

    Each pass iterates over the loader anew, so that one that shuffles shuffles again. A sampler with `set_epoch`,
    such as torch's `DistributedSampler`, is given the number of the pass first: 0, 1, and so on. Not collective.

    Args:
        loader: a `DataLoader`, or whatever can be iterated over several times.
        num_steps: 0 or more, the same on all ranks.

    Raises:
        UsageError: at once, where `num_steps` is negative or the loader can be iterated over but once; later,
            where a pass has no batch.
    """
    if num_steps < 0:
        raise UsageError(f"cycle: num_steps: expected 0 or more, found {num_steps}")
    if isinstance(loader, Iterator):
        raise UsageError(
            f"cycle: expected a loader that begins anew, found an iterator ({type(loader).__name__}), which ends "
            "after one pass; give the loader itself"
        )
    return _batches(loader, num_steps)


def _batches(loader: Iterable[Item], num_steps: int) -> Generator[Item, None, None]:
    num_done = num_pass = 0
    while num_done < num_steps:
        num_before = num_done
        _set_epoch(loader, num_pass)
        for batch in loader:
            num_done += 1
            yield batch
            if num_done == num_steps:  # before the loader is asked for a batch that nobody wants
                return
        if num_done == num_before:
            raise UsageError(
                f"cycle: expected one batch or more in each pass, found none in pass {num_pass} of the "
                f"{type(loader).__name__}: its data set is empty, or smaller than a batch with drop_last=True"
            )
        num_pass += 1


def _set_epoch(loader: Any, epoch: int) -> None:
    """Give the number of the pass to the samplers of a loader that want it."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    for sampler in (getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)):
        if set_epoch := getattr(sampler, "set_epoch", None):
            set_epoch(epoch)
