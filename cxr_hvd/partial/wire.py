"""Send sums as float32, or in fewer bits with rounding errors that are kept and sent later.

`Wire32` is one allreduce in place. `ShortWire` sends a half or a quarter of the bytes, and loses nothing for good:
every rank rounds what it sends and adds the rounding error to what it sends next (error feedback, as in Tang et
al., "DoubleSqueeze", ICML 2019; decisions 0012 and 0036). Horovod knows no bfloat16 and would round at every
addition, so what is rounded travels by collectives that look at no values:

- two ranks: an allgather of all that each sends; both add up the same numbers in the same order;
- more: an alltoall, after which each rank sums its part of the buffer in float32 and rounds the sum once more,
  with error feedback, and an allgather of the parts.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional

from cxr_hvd.comm.communicator import Communicator, Parts, Wait
from cxr_hvd.ledger.plan_record import PADDING, SCALES
from cxr_hvd.partial.buffers import FlatBuffer, run_lengths
from cxr_hvd.partial.plan import Wire
from cxr_hvd.partial.rounding import ROUNDINGS, Rounding


class Wire32:
    """Sums travel as they are, in float32."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm

    def begin_allreduce(self, name: str, flat: FlatBuffer, purpose: str) -> Wait[None]:
        """Begin to replace values by their sum over all ranks; the result waits. Collective: all ranks."""
        return self._comm.begin_allreduce(flat.values, purpose, flat.parts)

    def state(self) -> dict[str, Tensor]:
        """Return what has to be kept from one exchange to the next: nothing."""
        return {}

    def load_state(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        pass


class ShortWire:
    """Sums travel in fewer bits; what rounding took is kept here, by a name, and added the next time."""

    def __init__(self, comm: Communicator, rounding: Rounding) -> None:
        self._comm = comm
        self._rounding = rounding
        self._errors: dict[str, Tensor] = {}
        self._sections: dict[str, list[FlatBuffer]] = {}

    def begin_allreduce(self, name: str, flat: FlatBuffer, purpose: str) -> Wait[None]:
        """Begin to replace values by their sum over all ranks, as all ranks receive it.

        The first half of the way runs at once, the second, of more than two ranks, when the returned function is
        called.

        Args:
            name: by which errors are kept.

        Collective: all ranks.
        """
        if not flat.values.numel():
            return lambda: None
        begin = self._begin_whole if self._comm.num_ranks <= 2 else self._begin_in_parts
        return begin(name, flat, f"{purpose}.{name}")

    def _begin_whole(self, name: str, flat: FlatBuffer, purpose: str) -> Wait[None]:
        payload, decoded = self._rounded(f"{name}/sent", flat)
        wait_for_all = self._comm.begin_allgather(payload, purpose, self._payload_parts(name, flat))

        def wait() -> None:
            rows = wait_for_all()
            flat.values.copy_(decoded)
            for rank, row in enumerate(rows):  # of two: a sum of two numbers is the same in either order
                if rank != self._comm.rank:
                    flat.values.add_(self._rounding.decode(row, flat.rows))

        return wait

    def _begin_in_parts(self, name: str, flat: FlatBuffer, purpose: str) -> Wait[None]:
        num_ranks, size = self._comm.num_ranks, flat.values.numel()
        if name not in self._sections:
            self._sections[name] = cut_evenly(flat, num_ranks, f"{PADDING}{name}")
        sections = [
            replace(section, values=values)
            for section, values in zip(self._sections[name], split_evenly(flat.values, num_ranks), strict=True)
        ]
        payloads = [self._rounded(f"{name}/sent to {rank}", part)[0] for rank, part in enumerate(sections)]
        # Rows of scales differ in number from section to section, and all payloads are of one length.
        length = max(payload.numel() for payload in payloads)
        sent = torch.stack([functional.pad(payload, (0, length - payload.numel())) for payload in payloads])
        sent_parts = _summed_up(self._payload_parts(name, section, length) for section in sections)
        wait_for_parts = self._comm.begin_alltoall(sent, purpose, sent_parts)

        def wait() -> None:
            section = sections[self._comm.rank]
            received = [self._decoded(row, section) for row in wait_for_parts()]
            summed = replace(section, values=torch.stack(received).sum(0))
            payload, _ = self._rounded(f"{name}/summed", summed)
            padded = functional.pad(payload, (0, length - payload.numel()))
            rows = self._comm.begin_allgather(padded, purpose, self._payload_parts(name, section, length))()
            parts = [self._decoded(row, section) for row, section in zip(rows, sections, strict=True)]
            flat.values.copy_(torch.cat(parts)[:size])

        return wait

    def state(self) -> dict[str, Tensor]:
        """Return the errors that are still to be sent."""
        return dict(self._errors)

    def load_state(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Put them back, on the device that values will be on."""
        self._errors = {name: tensor.to(device) for name, tensor in state.items()}

    def _rounded(self, name: str, flat: FlatBuffer) -> tuple[Tensor, Tensor]:
        """Round values plus what was missing; return the payload and what it is read as; note what is missing now.

        A finite value beyond the form's range is sent in portions. Infinity and NaN are sent for all ranks to
        see, and nothing of them is kept.
        """
        if name not in self._errors:
            self._errors[name] = torch.zeros_like(flat.values)
        due = self._errors[name].add_(flat.values)
        payload = self._rounding.encode(due, flat.rows)
        # Infinity minus itself is NaN; a value that is not finite may be sent as another that is not.
        decoded = self._rounding.decode(payload, flat.rows)
        due.sub_(decoded).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        return payload, decoded

    def _decoded(self, padded: Tensor, flat: FlatBuffer) -> Tensor:
        num_elements = flat.values.numel() + self._rounding.num_added(flat.rows)
        return self._rounding.decode(padded[:num_elements], flat.rows)

    def _payload_parts(self, name: str, flat: FlatBuffer, length: int | None = None) -> Parts:
        """Return what lies in a payload: the parts of its values, and what the form adds to them."""
        num_scales = self._rounding.num_added(flat.rows)
        num_filled = 0 if length is None else length - flat.values.numel() - num_scales
        parts = dict(flat.parts)
        for part, size in ((f"{SCALES}{name}", num_scales), (f"{PADDING}{name}", num_filled)):
            if size:
                parts[part] = parts.get(part, 0) + size
        return parts


def _summed_up(sections: Iterable[Parts]) -> Parts:
    total: Counter[str] = Counter()
    for section in sections:
        total.update(section)
    return total


def cut_evenly(flat: FlatBuffer, num_sections: int, padding: str) -> list[FlatBuffer]:
    """Return sections of one length of a flat buffer, of which the last is filled up with zeros.

    Args:
        padding: name of the part that fills it up.
    """
    values = split_evenly(flat.values, num_sections)
    width = values[0].numel()
    num_filled = width * num_sections - flat.values.numel()
    names, sizes = [*flat.parts, padding], [*flat.parts.values(), num_filled]
    lengths = [length for count, length in flat.rows for _ in range(count)] + [num_filled]
    sections = []
    for number in range(num_sections):
        start, end = number * width, (number + 1) * width
        part_sizes, row_sizes = overlaps(sizes, start, end), overlaps(lengths, start, end)
        parts = {name: size for name, size in zip(names, part_sizes, strict=True) if size}
        sections.append(FlatBuffer(values[number], parts, run_lengths(row_sizes)))
    return sections


def split_evenly(values: Tensor, num_sections: int) -> tuple[Tensor, ...]:
    """Return sections of one length, the last filled up with zeros."""
    return functional.pad(values, (0, -values.numel() % num_sections)).chunk(num_sections)


def overlaps(sizes: Sequence[int], start: int, end: int) -> list[int]:
    """Return how much of each of some consecutive pieces lies between two places."""
    ends = accumulate(sizes)
    return [max(0, min(end, last) - max(start, last - size)) for size, last in zip(sizes, ends, strict=True)]


def wire_of(form: Wire, comm: Communicator) -> Wire32 | ShortWire:
    """Return the wire that a plan asks for."""
    return ShortWire(comm, ROUNDINGS[form]) if form in ROUNDINGS else Wire32(comm)
