"""Send sums as float32, or in 16 bits with rounding errors that are kept and sent later.

`Wire32` is one allreduce in place. `ShortWire` sends half the bytes, and loses nothing for good: every rank
rounds what it sends and adds the rounding error to what it sends next; each rank sums its part of the buffer in
float32, rounds the sum once more, and adds that error to its next sum (error feedback on both ways, as in Tang et
al., "DoubleSqueeze", ICML 2019; decision 0012). Horovod knows no bfloat16 and would round at every addition: the
parts travel by an alltoall and an allgather, which look at no values.
"""

import torch
from torch import Tensor
from torch.nn import functional

from cxr_hvd.comm.communicator import Communicator, Wait
from cxr_hvd.partial.plan import Wire

SHORT_DTYPES: dict[Wire, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Wire32:
    """Sums travel as they are, in float32."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm

    def begin_allreduce(self, name: str, buffer: Tensor, purpose: str) -> Wait[None]:
        """Begin to replace a flat float32 buffer by its sum over all ranks; the result waits. Collective: all."""
        return self._comm.begin_allreduce({name: buffer}, purpose)

    def state(self) -> dict[str, Tensor]:
        """Return what has to be kept from one exchange to the next: nothing."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        pass


class ShortWire:
    """Sums travel in 16 bits; what rounding took is kept here, by the buffer's name, and added the next time."""

    def __init__(self, comm: Communicator, dtype: torch.dtype) -> None:
        self._comm = comm
        self._dtype = dtype
        self._errors: dict[str, Tensor] = {}

    def begin_allreduce(self, name: str, buffer: Tensor, purpose: str) -> Wait[None]:
        """Begin to replace a flat float32 buffer by its sum over all ranks, as all ranks receive it.

        The first half of the way runs at once, the second when the returned function is called.

        Collective: all ranks.
        """
        num_ranks, size = self._comm.num_ranks, buffer.numel()
        padded = functional.pad(buffer, (0, -size % num_ranks)) if size % num_ranks else buffer
        rows = self._rounded(f"{name}/sent", padded).view(num_ranks, -1)
        wait_for_parts = self._comm.begin_alltoall(rows, f"{purpose}.{name}")

        def wait() -> None:
            summed_part = wait_for_parts().float().sum(0)
            short_part = self._rounded(f"{name}/summed", summed_part)
            parts = self._comm.begin_allgather(short_part, f"{purpose}.{name}")()
            buffer.copy_(parts.flatten()[:size])

        return wait

    def state(self) -> dict[str, Tensor]:
        """Return the errors that are still to be sent."""
        return dict(self._errors)

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._errors = dict(state)

    def _rounded(self, name: str, wanted: Tensor) -> Tensor:
        """Round what is wanted plus what was missing; note what is missing now.

        A finite value beyond the short type's range is sent in portions. Infinity and NaN are sent as they are,
        for all ranks to see, and nothing of them is kept.
        """
        if name not in self._errors:
            self._errors[name] = torch.zeros_like(wanted)
        due = self._errors[name].add_(wanted)
        max_value = torch.finfo(self._dtype).max
        short = torch.where(due.isinf(), due, due.clamp(-max_value, max_value)).to(self._dtype)
        due.sub_(short).nan_to_num_(nan=0.0)  # infinity minus itself is NaN
        return short


def wire_of(form: Wire, comm: Communicator) -> Wire32 | ShortWire:
    """Return the wire that a plan asks for."""
    return ShortWire(comm, SHORT_DTYPES[form]) if form in SHORT_DTYPES else Wire32(comm)
